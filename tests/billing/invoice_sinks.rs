//! Drafts are taken once, by every sink.

use std::sync::Arc;

use tollgate::{
    invoicing::{InvoiceSink, InvoiceSinkError, Issued, MemoryInvoices, PostgresInvoices},
    pricing::{InvoiceDraft, Money},
};

use crate::{
    common::postgres::PostgresServer,
    invoice::{acme, builder},
    pricing::{calls, month},
};

fn draft(units: u64) -> InvoiceDraft {
    builder(calls(units, 0)).draft().expect("a draft")
}

/// What every sink does.
async fn takes_each_draft_once(sink: Arc<dyn InvoiceSink>) -> InvoiceDraft {
    let first = draft(900);
    assert_eq!(sink.issue(&first).await.expect("issued"), Issued::Now);
    for _ in 0..3 {
        assert_eq!(sink.issue(&first).await.expect("issued"), Issued::Already);
    }
    let other = sink.issue(&draft(901)).await;
    assert!(
        matches!(other, Err(InvoiceSinkError::Conflict)),
        "{other:?}"
    );
    let corrected = builder(calls(901, 0)).correct(&first).expect("priced");
    let second = corrected.expect("a difference");
    // Many processes may issue the same draft at once.
    let issues = (0..8).map(|_| {
        let (sink, second) = (Arc::clone(&sink), second.clone());
        tokio::spawn(async move { sink.issue(&second).await.expect("issued") })
    });
    let mut now = 0;
    for issue in issues.collect::<Vec<_>>() {
        now += u32::from(issue.await.expect("no panic") == Issued::Now);
    }
    assert_eq!(now, 1);
    second
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_takes_each_draft_once() {
    let invoices = MemoryInvoices::new();
    let last = takes_each_draft_once(Arc::new(invoices.clone())).await;
    assert_eq!(invoices.latest(&acme(), month()), Some(last));
    assert_eq!(invoices.drafts().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_takes_each_draft_once() {
    let server = PostgresServer::start();
    let postgres = server.migrated("api").await;
    let invoices = PostgresInvoices::new(&postgres);
    assert_eq!(
        invoices.latest(&acme(), month()).await.expect("an answer"),
        None
    );
    let last = takes_each_draft_once(Arc::new(invoices.clone())).await;
    assert_eq!(
        invoices.latest(&acme(), month()).await.expect("an answer"),
        Some(last)
    );

    let rows: Vec<(i64, String, String, String)> = sqlx::query_as(
        "SELECT version, total_minor::text, document::text, currency FROM tollgate.invoices
         WHERE tenant = 'acme' AND period_start = '1970-01-01Z' AND period_end = '1970-01-31Z' ORDER BY version",
    )
    .fetch_all(postgres.pool())
    .await
    .expect("rows");
    assert_eq!(rows.len(), 2);
    assert_eq!((rows[0].0, &*rows[0].1, &*rows[0].3), (1, "3800", "USD"));
    // To the byte.
    assert_eq!(rows[0].2, draft(900).to_json().expect("JSON"));
    assert_eq!((rows[1].0, &*rows[1].1), (2, "1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_amounts_have_room_in_postgres() {
    let server = PostgresServer::start();
    let invoices = PostgresInvoices::new(&server.migrated("api").await);
    let usd = "USD".parse().expect("a currency");
    let mut most = draft(1);
    most.total = Money::from_minor(i128::MIN, usd);
    assert_eq!(invoices.issue(&most).await.expect("issued"), Issued::Now);
    assert_eq!(
        invoices.latest(&acme(), month()).await.expect("an answer"),
        Some(most)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_away_is_said_and_a_draft_is_issued_again() {
    // The schema must survive the crash.
    let mut server = PostgresServer::with(&["synchronous_commit=on"]);
    let postgres = server.migrated("api").await;
    let invoices = PostgresInvoices::new(&postgres);
    server.crash();
    let first = invoices.issue(&draft(5)).await;
    assert!(
        matches!(first, Err(InvoiceSinkError::Unavailable(_))),
        "{first:?}"
    );
    server.start_again();
    let mut issued = invoices.issue(&draft(5)).await;
    // A connection of before the crash may still be in the pool.
    for _ in 0..20 {
        if issued.is_ok() {
            break;
        }
        issued = invoices.issue(&draft(5)).await;
    }
    assert_eq!(issued.expect("issued"), Issued::Now);
}
