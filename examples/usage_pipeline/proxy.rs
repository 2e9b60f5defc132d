//! Stands before a server, so that connections can be reset in the middle of anything.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

pub(crate) struct Proxy {
    pub(crate) port: u16,
    connections: Arc<Mutex<JoinSet<()>>>,
}

impl Proxy {
    pub(crate) async fn before(server: u16) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let connections = Arc::new(Mutex::new(JoinSet::new()));
        let shared = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let Ok(mut server) = TcpStream::connect(("127.0.0.1", server)).await else {
                    continue;
                };
                let _ = client.set_nodelay(true);
                let _ = server.set_nodelay(true);
                let pass = async move {
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                };
                shared
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .spawn(pass);
            }
        });
        Ok(Self { port, connections })
    }

    pub(crate) fn reset(&self) {
        let mut connections = self
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        connections.abort_all();
    }
}
