//! A real `redis-server` on a free port of its own, killed when it is dropped.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

pub(crate) use super::temp::{TempDir, free_port};

const INSTALL: &str = "install it with: apt-get install -y redis-server redis-tools (or scripts/install-test-servers)";
const START_SECONDS: u64 = 10;

/// A running server.
#[derive(Debug)]
pub(crate) struct RedisServer {
    child: Child,
    pub(crate) port: u16,
    arguments: Vec<String>,
    dir: TempDir,
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(program: &str, arguments: &[String], dir: &Path) -> Child {
    let log = fs::File::create(dir.join("log")).expect("a log file");
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a log file"))
        .stderr(log)
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start {program}: {error}; {INSTALL}"))
}

impl RedisServer {
    /// A server that keeps nothing on disk.
    pub(crate) fn start() -> Self {
        Self::with(&[])
    }

    /// A server with more arguments, of which `DIR` in one stands for its folder.
    pub(crate) fn with(arguments: &[&str]) -> Self {
        Self::on(free_port(), TempDir::new(), arguments)
    }

    pub(crate) fn on(port: u16, dir: TempDir, arguments: &[&str]) -> Self {
        let folder = dir.path().to_str().expect("a path in UTF-8").to_owned();
        let mut all: Vec<String> = [
            "--port",
            &port.to_string(),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
            "--dir",
            &folder,
            "--enable-debug-command",
            "yes",
            "--loglevel",
            "warning",
        ]
        .map(str::to_owned)
        .to_vec();
        all.extend(
            arguments
                .iter()
                .map(|argument| argument.replace("DIR", &folder)),
        );
        let child = spawn("redis-server", &all, dir.path());
        let mut server = Self {
            child,
            port,
            arguments: all,
            dir,
        };
        server.wait();
        server
    }

    fn wait(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(START_SECONDS);
        loop {
            let answer = self.raw("PING\r\n");
            if answer.starts_with('+')
                || answer.starts_with("-NOAUTH")
                || answer.starts_with("-DENIED")
            {
                return;
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("redis-server ended with {status}: {}", self.log());
            }
            assert!(
                Instant::now() < deadline,
                "redis-server does not answer: {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Sends a line as it is and answers what comes back at once; empty when the server is not there.
    pub(crate) fn raw(&self, line: &str) -> String {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else {
            return String::new();
        };
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .expect("a read timeout");
        let _ = stream.write_all(line.as_bytes());
        let mut answer = [0; 4096];
        let n = stream.read(&mut answer).unwrap_or(0);
        String::from_utf8_lossy(&answer[..n]).into_owned()
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A blocking client of the test's own.
    pub(crate) fn client(&self) -> redis::Connection {
        redis::Client::open(self.url())
            .expect("a URL")
            .get_connection()
            .expect("a connection")
    }

    /// Runs a command and answers what it gives.
    pub(crate) fn query<T: redis::FromRedisValue>(&self, command: &[&str]) -> T {
        let mut query = redis::cmd(command[0]);
        query.arg(&command[1..]);
        query.query(&mut self.client()).expect("an answer")
    }

    /// Ends the server as a power cut does.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again with the same arguments and folder.
    pub(crate) fn restart(&mut self) {
        self.kill();
        self.child = spawn("redis-server", &self.arguments, self.dir.path());
        self.wait();
    }
}
