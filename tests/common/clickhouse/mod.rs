//! ClickHouse's engine behind HTTP on a free port of its own, killed when it is dropped.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use clickhouse::{Client, RowOwned, RowRead};

use super::temp::TempDir;

const INSTALL: &str = "install it with scripts/install-test-servers";

/// A running server.
#[derive(Debug)]
pub(crate) struct ClickHouseServer {
    child: Child,
    pub(crate) port: u16,
    dir: TempDir,
}

impl Drop for ClickHouseServer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn start(data: &Path, port: u16) -> (Child, u16) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("target/test-servers/bin/python");
    let mut child = Command::new(&python)
        .arg(root.join("tests/common/clickhouse/server.py"))
        .arg(data)
        .arg(port.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}; {INSTALL}", python.display()));
    let mut line = String::new();
    let mut said = BufReader::new(child.stdout.take().expect("its output"));
    said.read_line(&mut line).expect("a line");
    let port = line.trim().strip_prefix("listening on ");
    let port = port.and_then(|port| port.parse().ok());
    let port = port.unwrap_or_else(|| panic!("ClickHouse did not start: {line:?}; {INSTALL}"));
    (child, port)
}

impl ClickHouseServer {
    pub(crate) fn start() -> Self {
        let dir = TempDir::new();
        let (child, port) = start(&dir.path().join("data"), 0);
        Self { child, port, dir }
    }

    /// Ends the server as `kill -9` does.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts the server, on the same port and folder, after a [`kill`](Self::kill).
    pub(crate) fn start_again(&mut self) {
        (self.child, self.port) = start(&self.dir.path().join("data"), self.port);
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// A client of a database.
    pub(crate) fn client(&self, database: &str) -> Client {
        Client::default()
            .with_url(self.url())
            .with_database(database)
    }
}

/// Runs a statement.
pub(crate) async fn run(client: &Client, statement: &str) {
    let done = client.query_raw(statement).execute().await;
    done.unwrap_or_else(|error| panic!("{error} in {statement}"));
}

/// The one number that a query gives.
pub(crate) async fn number(client: &Client, query: &str) -> u64 {
    let query = format!("SELECT toUInt64(assumeNotNull(({query})))");
    let asked = client.query_raw(&query).fetch_one::<u64>().await;
    asked.unwrap_or_else(|error| panic!("{error} in {query}"))
}

/// The rows that a query gives.
pub(crate) async fn rows<T>(client: &Client, query: &str) -> Vec<T>
where
    T: RowOwned + RowRead,
{
    let asked = client.query_raw(query).fetch_all::<T>().await;
    asked.unwrap_or_else(|error| panic!("{error} in {query}"))
}
