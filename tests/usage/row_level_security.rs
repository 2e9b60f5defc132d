//! Transactions that see one tenant's rows.

use std::{panic::AssertUnwindSafe, time::Duration};

use futures_util::FutureExt;
use sqlx::{PgPool, Postgres, Transaction, postgres::PgPoolOptions};
use tollgate::{id::TenantId, tenant::RowLevelSecurity};

use crate::common::postgres::PostgresServer;

const N_TENANTS: usize = 8;

fn tenant(n: usize) -> TenantId {
    TenantId::new(format!("t{n}'; --")).expect("an id")
}

/// A table with rows of all tenants, and a pool of few connections of a role that its policy holds for.
async fn orders(server: &PostgresServer, setting: &str) -> PgPool {
    server.create("shop").await;
    let owner = server.pool("shop").await;
    for sql in [
        "CREATE TABLE orders (tenant text NOT NULL, n int NOT NULL)",
        "ALTER TABLE orders ENABLE ROW LEVEL SECURITY",
        &format!("CREATE POLICY own ON orders USING (tenant = current_setting('{setting}', true))"),
        "CREATE ROLE shop LOGIN",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON orders TO shop",
    ] {
        sqlx::query(sql).execute(&owner).await.expect(sql);
    }
    for n in 0..N_TENANTS {
        let insert = sqlx::query("INSERT INTO orders SELECT $1, generate_series(1, 10)");
        let tenant = tenant(n);
        insert
            .bind(tenant.as_ref())
            .execute(&owner)
            .await
            .expect("rows");
    }
    let url = server.url("shop").replace("tollgate@", "shop@");
    let pool = PgPoolOptions::new().max_connections(2);
    pool.connect(&url).await.expect("a pool")
}

/// Whose rows are seen, and how many.
async fn seen(transaction: &mut Transaction<'_, Postgres>) -> Vec<(String, i64)> {
    sqlx::query_as("SELECT tenant, count(*) FROM orders GROUP BY tenant ORDER BY tenant")
        .fetch_all(&mut **transaction)
        .await
        .expect("an answer")
}

/// What each connection of the pool sees outside of a transaction of a tenant's.
async fn outside(pool: &PgPool) -> i64 {
    let mut n = 0;
    let mut held = Vec::new();
    for _ in 0..pool.options().get_max_connections() {
        let mut connection = pool.acquire().await.expect("a connection");
        let (seen,): (i64,) = sqlx::query_as("SELECT count(*) FROM orders")
            .fetch_one(&mut *connection)
            .await
            .expect("an answer");
        n += seen;
        held.push(connection);
    }
    n
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooled_connection_leaks_no_tenant_however_its_transaction_ends() {
    let server = PostgresServer::start();
    let pool = orders(&server, "app.current_tenant").await;
    let rows = RowLevelSecurity::new();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..N_TENANTS {
        let (pool, rows) = (pool.clone(), rows.clone());
        tasks.spawn(async move {
            let own = vec![(tenant(n).to_string(), 10)];
            for round in 0..12 {
                let work = async {
                    let mut transaction = rows.begin(&pool, &tenant(n)).await.expect("begun");
                    assert_eq!(seen(&mut transaction).await, own, "round {round}");
                    let foreign = sqlx::query("INSERT INTO orders VALUES ('somebody else', 1)");
                    match round % 6 {
                        0 => transaction.commit().await.expect("committed"),
                        1 => transaction.rollback().await.expect("rolled back"),
                        2 => drop(transaction),
                        3 => panic!("a handler's"),
                        // The statement fails, and the transaction with it.
                        4 => assert!(foreign.execute(&mut *transaction).await.is_err()),
                        // Given up below, while it waits.
                        _ => {
                            let sleep = sqlx::query("SELECT pg_sleep(0.05)");
                            let _ = sleep.execute(&mut *transaction).await;
                            std::future::pending::<()>().await;
                        }
                    }
                };
                let work = AssertUnwindSafe(work).catch_unwind();
                if round % 6 == 5 {
                    let short = Duration::from_millis(5 + 10 * (round as u64 / 6));
                    let ended = tokio::time::timeout(short, work).await;
                    assert!(ended.is_err(), "given up");
                } else {
                    assert_eq!(work.await.is_err(), round % 6 == 3);
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("each saw its own rows only");
    }
    assert_eq!(outside(&pool).await, 0, "no connection has kept a tenant");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_that_outlives_its_transaction_is_what_the_helper_avoids() {
    let server = PostgresServer::start();
    let pool = orders(&server, "app.current_tenant").await;
    let set = "SELECT set_config('app.current_tenant', $1, false)";
    let tenant = tenant(0);
    sqlx::query(set)
        .bind(tenant.as_ref())
        .execute(&pool)
        .await
        .unwrap();
    assert_eq!(outside(&pool).await, 10, "the test would see a leak");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_name_of_the_setting_can_be_chosen_and_a_transaction_be_ones_own() {
    let server = PostgresServer::start();
    let pool = orders(&server, "my_shop.tenant_1").await;
    let rows = RowLevelSecurity::new().setting("my_shop.tenant_1").unwrap();
    let mut transaction = pool.begin().await.unwrap();
    let isolation = sqlx::query("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE");
    isolation.execute(&mut *transaction).await.unwrap();
    for n in [3, 5] {
        rows.apply(&mut transaction, &tenant(n)).await.unwrap();
        assert_eq!(seen(&mut transaction).await, [(tenant(n).to_string(), 10)]);
    }
    transaction.commit().await.unwrap();
    assert_eq!(outside(&pool).await, 0);
    for name in [
        "",
        "tenant",
        "role",
        "app.",
        ".tenant",
        "app.a.b",
        "App.tenant",
        "app.te nant",
        "1a.b",
        "app.\u{e9}",
    ] {
        let error = RowLevelSecurity::new().setting(name).expect_err(name);
        assert!(error.to_string().starts_with("setting: "), "{error}");
    }
}
