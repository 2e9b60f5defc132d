//! A client of HTTP/1.1 that does as little as it can, so that the server is what is measured.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::Instant,
};

/// A connection that sends one request after the other.
pub(crate) struct Connection {
    stream: TcpStream,
    /// Whole requests, sent in turn.
    requests: Vec<Vec<u8>>,
    next: usize,
    received: Vec<u8>,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr, requests: Vec<Vec<u8>>) -> Self {
        let stream = TcpStream::connect(address).await.expect("a server");
        stream.set_nodelay(true).expect("a socket");
        Self {
            stream,
            requests,
            next: 0,
            received: Vec::with_capacity(4096),
        }
    }

    /// Sends requests until `until`, each after the answer to the one before, and says how many were answered.
    ///
    /// # Panics
    ///
    /// If an answer is not 200 or does not end in `body`.
    pub(crate) async fn drive(&mut self, until: Instant, body: &[u8]) -> u64 {
        let mut n_answers = 0;
        while Instant::now() < until {
            let request = &self.requests[self.next];
            self.next = (self.next + 1) % self.requests.len();
            self.stream.write_all(request).await.expect("a connection");
            self.read_answer(body).await;
            n_answers += 1;
        }
        n_answers
    }

    async fn read_answer(&mut self, body: &[u8]) {
        self.received.clear();
        let end = loop {
            let n = self.stream.read_buf(&mut self.received).await;
            assert_ne!(n.expect("a connection"), 0, "the server closed");
            let fields = self.received.windows(4).position(|it| it == b"\r\n\r\n");
            if let Some(length) = fields {
                break length + 4;
            }
        };
        while self.received.len() < end + body.len() {
            let n = self.stream.read_buf(&mut self.received).await;
            assert_ne!(n.expect("a connection"), 0, "the server closed");
        }
        let status_line = b"HTTP/1.1 200 ";
        let is_good = self.received.starts_with(status_line) && &self.received[end..] == body;
        assert!(is_good, "{}", String::from_utf8_lossy(&self.received));
    }
}
