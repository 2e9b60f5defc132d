// cargo run --example row_level_security
//! Handlers that see their own tenant's rows only, over one pool of connections: PostgreSQL itself keeps them apart.
//!
//! It starts a PostgreSQL of its own; `DATABASE_URL=postgres://owner@host/database` names another, whose user must be
//! allowed to make a table and a role. Forty tasks of four tenants share two connections; some give up in the middle. The
//! last line is `seen=own leaked=0`.

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use sqlx::{PgPool, postgres::PgPoolOptions};
use tollgate::{id::TenantId, tenant::RowLevelSecurity};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// What a migration of the service does once, as the owner of the table.
const TABLE: [&str; 7] = [
    "DROP TABLE IF EXISTS orders",
    "CREATE TABLE orders (tenant text NOT NULL, item text NOT NULL)",
    "ALTER TABLE orders ENABLE ROW LEVEL SECURITY",
    "CREATE POLICY own ON orders USING (tenant = current_setting('app.current_tenant', true))",
    "INSERT INTO orders SELECT 't' || t, 'item ' || n FROM generate_series(0, 3) t, generate_series(1, 3) n",
    "DO $$ BEGIN CREATE ROLE shop LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
    "GRANT SELECT ON orders TO shop",
];

/// A handler: true when it saw its own tenant's three orders and nothing else.
async fn orders(pool: PgPool, tenant: TenantId) -> Result<bool, sqlx::Error> {
    let mut transaction = RowLevelSecurity::new().begin(&pool, &tenant).await?;
    let rows: Vec<(String,)> = sqlx::query_as("SELECT tenant FROM orders, pg_sleep(0.001)")
        .fetch_all(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(rows.len() == 3 && rows.iter().all(|(owner,)| *owner == tenant.to_string()))
}

async fn share(url: &str) -> Outcome<()> {
    let owner = PgPool::connect(url).await?;
    for sql in TABLE {
        sqlx::query(sql).execute(&owner).await?;
    }
    // A superuser is bound by no policy: the service has a role of its own.
    let pool = PgPoolOptions::new()
        .max_connections(2)
        .after_connect(|connection, _| {
            Box::pin(async {
                let role = sqlx::query("SET ROLE shop").execute(connection).await;
                role.map(drop)
            })
        })
        .connect(url)
        .await?;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..40 {
        let work = orders(pool.clone(), TenantId::new(format!("t{}", n % 4))?);
        // Every fourth gives up wherever it is.
        let patience = Duration::from_millis(if n % 4 == 3 { 2 } else { 10_000 });
        tasks.spawn(tokio::time::timeout(patience, work));
    }
    while let Some(done) = tasks.join_next().await {
        if let Ok(seen) = done? {
            assert!(seen?, "a handler saw what is not its tenant's");
        }
    }
    let mut leaked = 0;
    for mut connection in [pool.acquire().await?, pool.acquire().await?] {
        let (n,): (i64,) = sqlx::query_as("SELECT count(*) FROM orders")
            .fetch_one(&mut *connection)
            .await?;
        leaked += n;
    }
    println!("seen=own leaked={leaked}");
    Ok(())
}

/// A program of PostgreSQL's, which runs as no root.
fn postgres(program: &str) -> Outcome<Command> {
    let versions = fs::read_dir("/usr/lib/postgresql")
        .map_err(|error| format!("PostgreSQL: {error}; apt-get install -y postgresql"))?;
    let newest: Option<PathBuf> = versions.flatten().map(|entry| entry.path()).max();
    let program = newest.ok_or("no PostgreSQL")?.join("bin").join(program);
    let is_root =
        fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0);
    let mut command = Command::new(if is_root {
        "setpriv".as_ref()
    } else {
        program.as_os_str()
    });
    if is_root {
        command
            .args(["--reuid=postgres", "--regid=postgres", "--clear-groups"])
            .arg(program);
    }
    command.stdout(Stdio::null()).stderr(Stdio::null());
    Ok(command)
}

/// A server of the example's own, on a socket in a folder.
fn start_server(folder: &Path) -> Outcome<Child> {
    fs::create_dir_all(folder)?;
    fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
    let data = folder.join("data");
    postgres("initdb")?
        .arg("-D")
        .arg(&data)
        .args(["-U", "owner", "-A", "trust", "-N"])
        .status()?;
    let socket = format!("unix_socket_directories={}", folder.display());
    let mut server = postgres("postgres")?;
    let server = server
        .arg("-D")
        .arg(&data)
        .args(["-c", &socket, "-c", "listen_addresses="])
        .spawn()?;
    while !postgres("pg_isready")?
        .args(["-q", "-h"])
        .arg(folder)
        .status()?
        .success()
    {
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(server)
}

#[tokio::main]
async fn main() -> Outcome<()> {
    if let Ok(url) = std::env::var("DATABASE_URL") {
        return share(&url).await;
    }
    let folder = std::env::temp_dir().join(format!("tollgate-rows-{}", std::process::id()));
    let mut server = start_server(&folder)?;
    let url = format!(
        "postgres://owner@localhost/postgres?host={}",
        folder.display()
    );
    let shared = share(&url).await;
    Command::new("kill")
        .args(["-QUIT", &server.id().to_string()])
        .status()?;
    server.wait()?;
    fs::remove_dir_all(folder)?;
    shared
}
