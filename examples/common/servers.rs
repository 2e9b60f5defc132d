//! Servers of an example's own, on free ports and in a folder that is removed at the end.

use std::{
    error::Error,
    fs,
    net::{TcpListener, TcpStream},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

pub(crate) type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// A server that can be killed and started again as it was.
pub(crate) struct Server {
    child: Child,
    command: Box<dyn Fn() -> Command + Send>,
    /// What a crash is to it.
    signal: &'static str,
    pub(crate) port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.crash();
    }
}

fn free_port() -> Outcome<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0)
}

impl Server {
    fn start(
        port: u16,
        signal: &'static str,
        command: impl Fn() -> Command + Send + 'static,
    ) -> Outcome<Self> {
        let child = spawn(&mut command(), port)?;
        Ok(Self {
            child,
            command: Box::new(command),
            signal,
            port,
        })
    }

    /// A Redis that has every command on disk before it answers.
    pub(crate) fn redis(dir: &Path) -> Outcome<Self> {
        let port = free_port()?;
        let dir = dir.to_owned();
        Self::start(port, "KILL", move || {
            let mut server = Command::new("redis-server");
            server.args([
                "--port",
                &port.to_string(),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
            ]);
            server.args(["--appendonly", "yes", "--appendfsync", "always"]);
            server.arg("--dir").arg(&dir);
            server
        })
    }

    /// A PostgreSQL with an empty database `postgres` and a user `tollgate`.
    pub(crate) fn postgres(dir: &Path) -> Outcome<Self> {
        let data = dir.join("postgres");
        fs::create_dir(&data)?;
        if is_root() {
            // The server refuses to run as root.
            Command::new("chown")
                .arg("postgres")
                .args([dir, &data])
                .status()?;
        }
        let mut initdb = postgres("initdb")?;
        initdb.arg("-D").arg(&data).args([
            "-U",
            "tollgate",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-locale",
            "-N",
        ]);
        if !initdb.stdout(Stdio::null()).status()?.success() {
            return Err("initdb failed".into());
        }
        let port = free_port()?;
        // SIGQUIT is its immediate shutdown, after which it recovers as from a crash.
        Self::start(port, "QUIT", move || {
            let mut server = postgres("postgres").unwrap_or_else(|_| Command::new("postgres"));
            server.arg("-D").arg(&data).args(["-p", &port.to_string()]);
            server.args([
                "-c",
                "listen_addresses=127.0.0.1",
                "-c",
                "unix_socket_directories=",
            ]);
            server.args(["-c", "max_wal_size=4GB"]);
            server
        })
    }

    pub(crate) fn crash(&mut self) -> Outcome<()> {
        let pid = self.child.id().to_string();
        Command::new("kill")
            .args(["-s", self.signal, &pid])
            .status()?;
        self.child.wait()?;
        Ok(())
    }

    pub(crate) fn start_again(&mut self) -> Outcome<()> {
        self.child = spawn(&mut (self.command)(), self.port)?;
        Ok(())
    }
}

fn spawn(command: &mut Command, port: u16) -> Outcome<Child> {
    let quiet = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut child = quiet.spawn().map_err(|error| {
        format!(
            "{error}: apt-get install -y redis-server postgresql (or scripts/install-test-servers)"
        )
    })?;
    let deadline = Instant::now() + Duration::from_secs(60);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if child.try_wait()?.is_some() || Instant::now() > deadline {
            return Err(format!("{command:?} does not answer").into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(child)
}

/// A program of PostgreSQL's newest version, as a user that it accepts.
fn postgres(program: &str) -> Outcome<Command> {
    let mut versions: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .map_err(|_| "apt-get install -y postgresql")?
        .filter_map(|version| Some(version.ok()?.path().join("bin").join(program)))
        .collect();
    versions.sort();
    let program = versions.pop().ok_or("apt-get install -y postgresql")?;
    if !is_root() {
        return Ok(Command::new(program));
    }
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=postgres", "--regid=postgres", "--clear-groups"])
        .arg(program);
    Ok(command)
}
