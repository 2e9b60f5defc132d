// cargo run --example row_level_security
//! Handlers that see their own tenant's rows only, over one pool of connections: PostgreSQL itself keeps them apart.
//!
//! It starts a PostgreSQL of its own; `DATABASE_URL=postgres://owner@host/database` names another, whose user must be
//! allowed to make a table and a role. Forty tasks of four tenants share two connections; some give up in the middle. The
//! last line is `seen=own leaked=0`.

#[allow(dead_code, reason = "shared with another example")]
#[path = "common/servers.rs"]
mod servers;

use std::time::Duration;

use servers::{Outcome, Server};
use sqlx::{PgPool, postgres::PgPoolOptions};
use tollgate::{id::TenantId, tenant::RowLevelSecurity};

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

#[tokio::main]
async fn main() -> Outcome<()> {
    if let Ok(url) = std::env::var("DATABASE_URL") {
        return share(&url).await;
    }
    let dir = tempfile::tempdir()?;
    let server = Server::postgres(dir.path())?;
    let (user, port) = ("tollgate", server.port);
    share(&format!("postgres://{user}@127.0.0.1:{port}/postgres")).await
}
