//! A proxy in front of a real server that delays, withholds, cuts and breaks what passes.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::AbortHandle,
};

/// What happens to an exchange. Requests always reach the server but where it says otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// Answers come so much later.
    Delay(Duration),
    /// Answers never come.
    Hold,
    /// The connection ends after so many bytes of the answer.
    CutAfter(usize),
    /// Existing connections are broken and new ones end at once; requests reach nobody.
    Refuse,
    /// The proxy answers scripts itself, with this line; they reach nobody.
    Answer(String),
}

#[derive(Debug)]
pub(crate) struct FaultProxy {
    pub(crate) addr: SocketAddr,
    fault: Arc<Mutex<Fault>>,
    task: AbortHandle,
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl FaultProxy {
    /// A proxy on a free port in front of a server on another.
    pub(crate) async fn before(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0))
            .await
            .expect("a free port");
        let addr = listener.local_addr().expect("a bound socket");
        let fault = Arc::new(Mutex::new(Fault::None));
        let shared = Arc::clone(&fault);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if current(&shared) == Fault::Refuse {
                    continue;
                }
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else {
                    continue;
                };
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                let to_client = Arc::new(tokio::sync::Mutex::new(to_client));
                tokio::spawn(requests(
                    from_client,
                    to_server,
                    Arc::clone(&to_client),
                    Arc::clone(&shared),
                ));
                tokio::spawn(answers(from_server, to_client, Arc::clone(&shared)));
            }
        });
        Self {
            addr,
            fault,
            task: task.abort_handle(),
        }
    }

    pub(crate) fn set(&self, fault: Fault) {
        *self.fault.lock().expect("no panic holds the lock") = fault;
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.addr)
    }
}

fn current(fault: &Mutex<Fault>) -> Fault {
    fault.lock().expect("no panic holds the lock").clone()
}

async fn requests(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    back: Arc<tokio::sync::Mutex<OwnedWriteHalf>>,
    fault: Arc<Mutex<Fault>>,
) {
    let mut buffer = vec![0; 65_536];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        let chunk = &buffer[..n];
        match current(&fault) {
            Fault::Refuse => break,
            Fault::Answer(line) if chunk.windows(4).any(|word| word == b"EVAL") => {
                let line = format!("{line}\r\n");
                if back.lock().await.write_all(line.as_bytes()).await.is_err() {
                    break;
                }
            }
            _ => {
                if to.write_all(chunk).await.is_err() {
                    break;
                }
            }
        }
    }
    let _ = back.lock().await.shutdown().await;
}

async fn answers(
    mut from: OwnedReadHalf,
    to: Arc<tokio::sync::Mutex<OwnedWriteHalf>>,
    fault: Arc<Mutex<Fault>>,
) {
    let mut buffer = vec![0; 65_536];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        let mut chunk = &buffer[..n];
        let mut is_last = false;
        match current(&fault) {
            Fault::None | Fault::Answer(_) => {}
            Fault::Delay(by) => tokio::time::sleep(by).await,
            Fault::Hold => continue,
            Fault::CutAfter(n) => {
                chunk = &chunk[..n.min(chunk.len())];
                is_last = true;
            }
            Fault::Refuse => break,
        }
        if to.lock().await.write_all(chunk).await.is_err() || is_last {
            break;
        }
    }
    let _ = to.lock().await.shutdown().await;
}
