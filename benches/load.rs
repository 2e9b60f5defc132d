//! A load client that counts answers by status, to hold against what the gate metered.
//!
//! `cargo bench --bench load -- ADDRESS PATH REQUESTS CONNECTIONS KEY...` sends the requests with the keys in
//! turn and prints one line for each status. It also runs without arguments (as `cargo bench` does): then it
//! says how to use it.

use std::{collections::BTreeMap, env, error::Error, net::SocketAddr, time::Instant};

use bytes::Bytes;
use http::{Request, header::HOST};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task::JoinSet};

type Count = BTreeMap<u16, u64>;
type Failure = Box<dyn Error + Send + Sync>;

/// Sends `n` requests, one after the other, on one connection.
async fn drive(
    address: SocketAddr,
    path: String,
    keys: Vec<String>,
    n: u64,
) -> Result<Count, Failure> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut count = Count::new();
    for key in keys.iter().cycle().take(usize::try_from(n)?) {
        let request = Request::get(&path)
            .header(HOST, "load")
            .header("x-api-key", key);
        sender.ready().await?;
        let response = sender
            .send_request(request.body(Empty::<Bytes>::new())?)
            .await?;
        *count.entry(response.status().as_u16()).or_default() += 1;
        response.into_body().collect().await?;
    }
    Ok(count)
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    let [address, path, requests, connections, keys @ ..] = &arguments[..] else {
        println!("usage: load ADDRESS PATH REQUESTS CONNECTIONS KEY...");
        return Ok(());
    };
    let (address, requests, connections) = (
        address.parse()?,
        requests.parse::<u64>()?,
        connections.parse::<u64>()?,
    );
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for i in 0..connections {
        let share = requests / connections + u64::from(i < requests % connections);
        let mut keys = keys.to_vec();
        let start = usize::try_from(i)? % keys.len().max(1);
        keys.rotate_left(start);
        tasks.spawn(drive(address, path.clone(), keys, share));
    }
    let mut total = Count::new();
    while let Some(count) = tasks.join_next().await {
        for (status, n) in count?? {
            *total.entry(status).or_default() += n;
        }
    }
    let elapsed = started.elapsed();
    for (status, n) in &total {
        println!("{status} {n}");
    }
    println!("total {} in {elapsed:.1?}", total.values().sum::<u64>());
    Ok(())
}
