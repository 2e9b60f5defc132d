//! A real PostgreSQL server on a free port of its own, killed when it is dropped.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use sqlx::{Connection, Executor, PgConnection, PgPool};
use tollgate::postgres_support::Postgres;

use super::temp::{TempDir, free_port};

const INSTALL: &str =
    "install it with: apt-get install -y postgresql-15 (or scripts/install-test-servers)";
const START_SECONDS: u64 = 20;
/// The server refuses to run as root.
const USER: &str = "postgres";

/// A running server.
#[derive(Debug)]
pub(crate) struct PostgresServer {
    child: Option<Child>,
    pub(crate) port: u16,
    settings: Vec<String>,
    dir: TempDir,
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        self.crash();
    }
}

/// The folder of the newest version that is installed.
fn binaries() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let mut versions: Vec<_> = versions
        .filter_map(|entry| {
            let name = entry.ok()?.file_name();
            name.to_str()?.parse::<u32>().ok()
        })
        .collect();
    versions.sort_unstable();
    let newest = versions
        .pop()
        .unwrap_or_else(|| panic!("PostgreSQL is missing; {INSTALL}"));
    PathBuf::from(format!("/usr/lib/postgresql/{newest}/bin"))
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0)
}

/// A program of PostgreSQL's, as a user that it accepts.
fn command(program: &str) -> Command {
    let program = binaries().join(program);
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args([
        &format!("--reuid={USER}"),
        &format!("--regid={USER}"),
        "--clear-groups",
    ]);
    command.arg(program);
    command
}

fn run(mut command: Command) -> Output {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}; {INSTALL}"));
    assert!(
        output.status.success(),
        "{command:?} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

fn give_away(path: &Path) {
    if is_root() {
        let mut chown = Command::new("chown");
        chown.args(["-R", USER]).arg(path);
        run(chown);
    }
}

/// An empty cluster that all servers are copies of, as making one takes a second.
fn template() -> PathBuf {
    let temp = std::env::temp_dir();
    let user = if is_root() { USER } else { "own" };
    let template = temp.join(format!("tollgate-test-postgres-template-{user}"));
    if template.exists() {
        return template;
    }
    let own = TempDir::new();
    give_away(own.path());
    let data = own.path().join("data");
    let mut initdb = command("initdb");
    initdb.arg("-D").arg(&data).args([
        "-U",
        "tollgate",
        "-A",
        "trust",
        "--no-locale",
        "-E",
        "UTF8",
        "-N",
        "--no-instructions",
    ]);
    run(initdb);
    // Another test may have been first.
    if fs::rename(&data, &template).is_err() {
        assert!(template.exists(), "a template for PostgreSQL's servers");
    }
    template
}

impl PostgresServer {
    /// A server that does not wait for the disk: what is committed survives the death of its processes, not that of
    /// the machine.
    pub(crate) fn start() -> Self {
        Self::with(&[])
    }

    /// A server with more settings, such as `max_connections=20`.
    pub(crate) fn with(settings: &[&str]) -> Self {
        let dir = TempDir::new();
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(template()).arg(dir.path().join("data"));
        run(copy);
        give_away(dir.path());
        let mut server = Self {
            child: None,
            port: free_port(),
            settings: settings.iter().copied().map(str::to_owned).collect(),
            dir,
        };
        server.start_again();
        server
    }

    /// Starts the server, on the same port and folder, after a [`crash`](Self::crash).
    pub(crate) fn start_again(&mut self) {
        let mut server = command("postgres");
        server
            .arg("-D")
            .arg(self.dir.path().join("data"))
            .args(["-p", &self.port.to_string()]);
        for setting in [
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "fsync=off",
            "full_page_writes=off",
            "synchronous_commit=off",
            "logging_collector=off",
        ] {
            server.args(["-c", setting]);
        }
        for setting in &self.settings {
            server.args(["-c", setting]);
        }
        let log = fs::File::create(self.dir.path().join("log")).expect("a log file");
        let child = server
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log file"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start PostgreSQL: {error}; {INSTALL}"));
        self.child = Some(child);
        let deadline = Instant::now() + Duration::from_secs(START_SECONDS);
        loop {
            let mut ready = command("pg_isready");
            ready.args(["-q", "-h", "127.0.0.1", "-U", "tollgate", "-d", "postgres"]);
            ready.args(["-p", &self.port.to_string()]);
            if ready.status().is_ok_and(|status| status.success()) {
                return;
            }
            assert!(Instant::now() < deadline, "no answer: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Ends the server at once, as a crash does: connections break, and the next start recovers.
    pub(crate) fn crash(&mut self) {
        if let Some(mut child) = self.child.take() {
            // SIGQUIT is PostgreSQL's immediate shutdown; SIGKILL would leave its shared memory behind.
            let mut quit = Command::new("kill");
            quit.args(["-QUIT", &child.id().to_string()]);
            let _ = quit.status();
            let _ = child.wait();
        }
    }

    /// The URL of a database.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://tollgate@127.0.0.1:{}/{database}", self.port)
    }

    /// A new, empty database of this name.
    pub(crate) async fn create(&self, database: &str) -> String {
        let mut connection = PgConnection::connect(&self.url("postgres"))
            .await
            .expect("a connection");
        connection
            .execute(sqlx::query(&format!("CREATE DATABASE {database}")))
            .await
            .expect("a database");
        self.url(database)
    }

    /// A database with the schema of this crate, and a pool.
    pub(crate) async fn migrated(&self, database: &str) -> Postgres {
        let url = self.create(database).await;
        let postgres = Postgres::connect(&url).await.expect("a connection");
        postgres.migrate().await.expect("a schema");
        postgres
    }

    /// A pool of a database, unchecked.
    pub(crate) async fn pool(&self, database: &str) -> PgPool {
        PgPool::connect(&self.url(database))
            .await
            .expect("a connection")
    }
}
