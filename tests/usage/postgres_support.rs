//! The schema in PostgreSQL.

use sqlx::Executor;
use tollgate::postgres_support::{Postgres, PostgresStartError};

use crate::common::postgres::PostgresServer;

#[tokio::test(flavor = "multi_thread")]
async fn many_processes_may_migrate_at_once_and_again() {
    let server = PostgresServer::start();
    let url = server.create("api").await;
    let migrations = (0..4).map(|_| {
        let url = url.clone();
        tokio::spawn(async move { Postgres::connect(url).await?.migrate().await })
    });
    for migration in migrations.collect::<Vec<_>>() {
        migration.await.expect("no panic").expect("migrated");
    }
    let postgres = Postgres::connect(&url).await.expect("connected");
    postgres.migrate().await.expect("nothing to do");
    let (schema,): (bool,) = sqlx::query_as(
        "SELECT EXISTS (SELECT FROM information_schema.tables
         WHERE table_schema = 'tollgate' AND table_name = '_sqlx_migrations')",
    )
    .fetch_one(postgres.pool())
    .await
    .expect("an answer");
    assert!(
        schema,
        "the note of what was applied is in the crate's own schema"
    );
    // The pool's connections have the search path that they had.
    let (path,): (String,) = sqlx::query_as("SHOW search_path")
        .fetch_one(postgres.pool())
        .await
        .expect("an answer");
    assert!(!path.contains("tollgate"), "{path}");
}

#[tokio::test]
async fn a_wrong_url_is_told_without_its_password() {
    for url in [
        "postgres//api:hunter2@db/api",
        "postgres://api:hunter2@127.0.0.1:1/api",
        "mysql://api:hunter2@db/api?sslmode=nonsense",
    ] {
        let error = Postgres::connect(url).await.expect_err("no server");
        let mut text = format!("{error:?} {error}");
        let mut cause = std::error::Error::source(&error);
        while let Some(source) = cause {
            text.push_str(&format!(" {source}"));
            cause = source.source();
        }
        assert!(!text.contains("hunter2"), "{text}");
        assert!(matches!(
            error,
            PostgresStartError::Config(_) | PostgresStartError::Connect(_)
        ));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_statements_can_be_applied_by_other_means() {
    let server = PostgresServer::start();
    server.create("api").await;
    server
        .pool("api")
        .await
        .execute(&*Postgres::ddl())
        .await
        .expect("the statements are whole");
}
