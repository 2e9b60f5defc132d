//! Events and their totals in PostgreSQL, on a real server.

use std::{sync::Arc, time::Duration};

use sqlx::Executor;
use tollgate::{
    clock::Timestamp,
    id::TenantId,
    meter::{CallOutcome, EventId, UsageEvent},
    postgres_support::{Postgres, PostgresStartError},
    sink::{PostgresSink, UsageSink, Verdict},
    usage::UsagePeriods,
};

use crate::{
    common::{
        fault_proxy::{Fault, FaultProxy},
        postgres::PostgresServer,
    },
    support::{Random, assert_exact, deliver, each, event, events, expected, now, stored},
};

async fn sink(postgres: &Postgres) -> PostgresSink {
    PostgresSink::connect(postgres).await.expect("a sink")
}

async fn number(postgres: &Postgres, question: &str) -> i64 {
    let (number,): (i64,) = sqlx::query_as(question)
        .fetch_one(postgres.pool())
        .await
        .expect("a number");
    number
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_comes_again_in_whatever_batch_and_order_is_counted_once() {
    let server = PostgresServer::start();
    let postgres = server.migrated("usage").await;
    let all = events(1_500, 11);
    let mut random = Random(12);
    // Four processes, each with all events, in another order and in other batches.
    let mut writers = Vec::new();
    for size in [70, 150, 333, 900] {
        let sink = sink(&postgres).await;
        let mut own = all.clone();
        random.shuffle(&mut own);
        writers.push(tokio::spawn(async move {
            for batch in own.chunks(size) {
                let mut batch = batch.to_vec();
                // Twice in one batch, too.
                batch.push(batch[0].clone());
                deliver(&sink, batch).await;
            }
        }));
    }
    for writer in writers {
        writer.await.expect("all delivered");
    }
    assert_exact(postgres.pool(), &all).await;
    let again = each(
        sink(&postgres).await.write(&all).await.expect("verdicts"),
        all.len(),
    );
    assert!(again.iter().all(|verdict| *verdict == Verdict::Duplicate));
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = 'usage'";
    assert_eq!(number(&postgres, deadlocks).await, 0);
    // What is stored of an event is the event.
    let (json,): (String,) =
        sqlx::query_as("SELECT event::text FROM tollgate.usage_events WHERE id = $1::uuid")
            .bind(all[0].id.to_string())
            .fetch_one(postgres.pool())
            .await
            .expect("the event");
    assert_eq!(
        serde_json::from_str::<UsageEvent>(&json).expect("an event"),
        all[0]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn futures_that_are_dropped_and_answers_that_are_cut_off_lose_and_double_nothing() {
    let server = PostgresServer::start();
    let postgres = server.migrated("usage").await;
    let proxy = FaultProxy::before(server.port).await;
    let url = format!("postgres://tollgate@{}/usage", proxy.addr);
    let sink = sink(&Postgres::connect(&url).await.expect("a connection")).await;
    let all = events(2_000, 21);
    let mut random = Random(22);
    let mut n_dropped = 0;
    for (round, batch) in all.chunks(50).enumerate() {
        match round % 4 {
            // Given up at any point, as a recorder's deadline does.
            0 | 1 => {
                let patience = Duration::from_micros(random.below(20_000));
                let write = tokio::time::timeout(patience, sink.write(batch)).await;
                n_dropped += u32::from(write.is_err());
            }
            // Every answer is cut, from one in the middle on: that of a commit may be the first.
            2 => {
                let broken = tokio::spawn({
                    let (sink, batch) = (sink.clone(), batch.to_vec());
                    async move { sink.write(&batch).await.is_err() }
                });
                tokio::time::sleep(Duration::from_micros(random.below(15_000))).await;
                proxy.set(Fault::CutAfter(3));
                let _ = broken.await.expect("no panic");
                proxy.set(Fault::None);
            }
            _ => {}
        }
        deliver(&sink, batch.to_vec()).await;
    }
    assert!(n_dropped > 0);
    assert_exact(postgres.pool(), &all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_crashes_in_the_middle_of_batches_loses_and_doubles_nothing() {
    // The server is told not to wait for its log: the sink does.
    let mut server = PostgresServer::start();
    let postgres = server.migrated("usage").await;
    let sink = sink(&postgres).await;
    let all = events(4_000, 31);
    let (done, mut left) = tokio::sync::mpsc::unbounded_channel();
    let writers: Vec<_> = (0..2)
        .map(|half| {
            let (sink, done) = (sink.clone(), done.clone());
            let batches: Vec<_> = all
                .chunks(100)
                .skip(half)
                .step_by(2)
                .map(<[_]>::to_vec)
                .collect();
            tokio::spawn(async move {
                for batch in batches {
                    deliver(&sink, batch).await;
                    let _ = done.send(());
                }
            })
        })
        .collect();
    for _ in 0..3 {
        for _ in 0..6 {
            left.recv().await.expect("a batch");
        }
        server = tokio::task::spawn_blocking(move || {
            server.crash();
            server.start_again();
            server
        })
        .await
        .expect("a restart");
    }
    for writer in writers {
        writer.await.expect("all delivered");
    }
    assert_exact(postgres.pool(), &all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_event_is_rejected_and_the_others_are_written() {
    let server = PostgresServer::start();
    let postgres = server.migrated("usage").await;
    let sink = sink(&postgres).await;
    let now = now();
    let seconds = now.as_unix_seconds();
    let at = |seconds| Timestamp::from_unix_seconds(seconds);
    let mut batch: Vec<_> = (0..16).map(|n| event(n, now)).collect();
    batch[1].route = "/v1/\0".into();
    batch[2].quantities.insert("n".repeat(256).into(), 1);
    batch[3].time = at(seconds + 2 * 86_400);
    batch[4].time = Timestamp::MAX;
    let rejected = [1, 2, 3, 4];
    // All of these are odd, and money.
    batch[5].route = "/\r\n\u{1b}[31m\u{2028}'; DROP TABLE tollgate.usage_events; --".into();
    batch[6].route = "r".repeat(65_536).into();
    batch[7].api = "a".repeat(65_536).into();
    batch[8].request_id = Some("i".repeat(65_536).into());
    batch[9].time = at(seconds - 40 * 86_400);
    batch[10].time = at(seconds + 3_600);
    for n in [11, 12] {
        batch[n].quantities.insert("tokens".into(), u64::MAX);
        batch[n].request_bytes = u64::MAX;
        batch[n].latency_micros = u64::MAX;
    }
    batch[13].method = "BREW".into();
    batch[13].status = 65_535;
    batch[14].outcome = CallOutcome::Panicked;
    batch[15].time = Timestamp::UNIX_EPOCH;

    let verdicts = each(sink.write(&batch).await.expect("verdicts"), batch.len());
    for (n, verdict) in verdicts.iter().enumerate() {
        let is_rejected = matches!(verdict, Verdict::Rejected { .. });
        assert_eq!(is_rejected, rejected.contains(&n), "{n}: {verdict:?}");
        assert!(
            is_rejected || *verdict == Verdict::Accepted,
            "{n}: {verdict:?}"
        );
    }
    let kept = batch
        .iter()
        .enumerate()
        .filter(|(n, _)| !rejected.contains(n));
    let kept: Vec<_> = kept.map(|(_, event)| event.clone()).collect();
    assert_exact(postgres.pool(), &kept).await;
    let tokens = "SELECT (sum(amount) = 36893488147419103230)::int::bigint FROM tollgate.usage_minute_quantities";
    assert_eq!(number(&postgres, tokens).await, 1, "twice u64::MAX");

    // What only the server finds wrong is found too, and nothing but that is refused.
    postgres
        .pool()
        .execute(
            "CREATE FUNCTION picky() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN
                 IF NEW.tenant LIKE 'bad%' THEN RAISE SQLSTATE '22003'; END IF;
                 RETURN NEW;
             END $$",
        )
        .await
        .expect("a function");
    postgres
        .pool()
        .execute(
            "CREATE TRIGGER picky BEFORE INSERT ON tollgate.usage_events FOR EACH ROW EXECUTE FUNCTION picky()",
        )
        .await
        .expect("a trigger");
    let mut batch: Vec<_> = (100..150).map(|n| event(n, now)).collect();
    for n in [0, 17, 18, 49] {
        batch[n].tenant = TenantId::new(format!("bad{n}")).expect("an id");
    }
    let verdicts = each(sink.write(&batch).await.expect("verdicts"), 50);
    for (n, verdict) in verdicts.iter().enumerate() {
        let is_rejected = matches!(verdict, Verdict::Rejected { .. });
        assert_eq!(
            is_rejected,
            [0, 17, 18, 49].contains(&n),
            "{n}: {verdict:?}"
        );
    }
    let kept = kept.into_iter().chain(
        batch
            .into_iter()
            .filter(|event| event.tenant.as_str() == "acme"),
    );
    assert_exact(postgres.pool(), &kept.collect::<Vec<_>>()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_for_a_closed_period_is_counted_and_noted_as_a_correction() {
    let server = PostgresServer::start();
    let postgres = server.migrated("usage").await;
    let sink = sink(&postgres).await;
    let periods = UsagePeriods::new(&postgres);
    let (acme, other) = (
        TenantId::new("acme").expect("an id"),
        TenantId::new("other").expect("an id"),
    );
    let now = now();
    let before = Timestamp::from_unix_seconds(now.as_unix_seconds() - 7_200);
    let close = Timestamp::from_unix_seconds(now.as_unix_seconds() - 3_600);
    let mut all = vec![
        event(1, before),
        event(2, before),
        event(3, before),
        event(4, now),
        event(5, before),
    ];
    all[4].tenant = other.clone();
    for event in &mut all {
        event.quantities.insert(Arc::from("tokens"), u64::MAX);
    }
    deliver(&sink, all[..1].to_vec()).await;
    periods.close(&acme, close).await.expect("closed");
    // An earlier end opens nothing again.
    periods.close(&acme, before).await.expect("closed");
    assert!(
        periods
            .corrections(&acme, 0, 10)
            .await
            .expect("lines")
            .is_empty()
    );

    // The event that was in time comes again with two that are late, twice.
    deliver(&sink, all[..3].to_vec()).await;
    deliver(&sink, all.clone()).await;
    let lines = periods.corrections(&acme, 0, 10).await.expect("lines");
    let [line] = lines.as_slice() else {
        panic!("{lines:?}")
    };
    assert_eq!((line.calls, line.billable_calls), (2, 2));
    assert_eq!(line.quantities["tokens"].amount, 2 * u128::from(u64::MAX));
    assert_eq!(line.plan, "pro");
    assert!(
        periods
            .corrections(&acme, line.id, 10)
            .await
            .expect("lines")
            .is_empty()
    );
    assert!(
        periods
            .corrections(&other, 0, 10)
            .await
            .expect("lines")
            .is_empty()
    );
    assert_exact(postgres.pool(), &all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_period_is_closed_between_batches_and_never_within_one() {
    let server = PostgresServer::start();
    let postgres = server.migrated("usage").await;
    let sink = sink(&postgres).await;
    let periods = UsagePeriods::new(&postgres);
    let acme = TenantId::new("acme").expect("an id");
    let all: Vec<_> = (0..600).map(|n| event(n, now())).collect();
    let writing = {
        let (sink, all) = (sink.clone(), all.clone());
        tokio::spawn(async move {
            for batch in all.chunks(20) {
                deliver(&sink, batch.to_vec()).await;
            }
        })
    };
    while number(&postgres, "SELECT count(*) FROM tollgate.usage_events").await < 100 {
        tokio::task::yield_now().await;
    }
    let end = Timestamp::from_unix_seconds(now().as_unix_seconds() + 3_600);
    periods.close(&acme, end).await.expect("closed");
    let calls = "SELECT sum(calls)::bigint FROM tollgate.usage_minutes";
    // Whatever is counted from here on is a correction: what is read first may hold some already.
    let noted = "SELECT coalesce(sum(calls), 0)::bigint FROM tollgate.usage_corrections";
    let in_period = "SELECT ((SELECT sum(calls) FROM tollgate.usage_minutes)
        - (SELECT coalesce(sum(calls), 0) FROM tollgate.usage_corrections))::bigint";
    let invoiced = number(&postgres, in_period).await;
    writing.await.expect("all delivered");
    assert_eq!(number(&postgres, calls).await, 600);
    assert_eq!(invoiced + number(&postgres, noted).await, 600);
    assert!(invoiced < 600, "the period was closed while events came");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_events_the_totals_are_the_same_and_days_can_be_forgotten() {
    let server = PostgresServer::start();
    let postgres = server.migrated("usage").await;
    let totals_only = PostgresSink::builder(&postgres).totals_only();
    let totals_only = totals_only.connect().await.expect("a sink");
    let all = events(300, 41);
    deliver(&totals_only, all.clone()).await;
    // Another process may keep events: each is still counted once.
    deliver(&sink(&postgres).await, all.clone()).await;
    assert_exact(postgres.pool(), &all).await;
    let kept = "SELECT count(*) FROM tollgate.usage_events WHERE event IS NOT NULL";
    assert_eq!(number(&postgres, kept).await, 0);

    let now = now();
    let days_ago = |days: u64| Timestamp::from_unix_seconds(now.as_unix_seconds() - days * 86_400);
    deliver(
        &totals_only,
        vec![event(1_000, days_ago(9)), event(1_001, days_ago(5))],
    )
    .await;
    let before = stored(postgres.pool(), "minute").await;
    assert_eq!(
        totals_only
            .forget_days_before(days_ago(7))
            .await
            .expect("dropped"),
        1
    );
    assert_eq!(
        totals_only
            .forget_days_before(days_ago(8))
            .await
            .expect("nothing"),
        0
    );
    let other = sink(&postgres).await;
    for sink in [&totals_only, &other] {
        let batch = [event(1_000, days_ago(9)), event(1_001, days_ago(5))];
        let verdicts = each(sink.write(&batch).await.expect("verdicts"), 2);
        assert!(
            matches!(verdicts[0], Verdict::Rejected { .. }),
            "{verdicts:?}"
        );
        assert_eq!(verdicts[1], Verdict::Duplicate);
    }
    assert!(stored(postgres.pool(), "minute").await == before);
    // The days to come are there before they are needed.
    let ahead = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'tollgate.usage_events'::regclass
        AND inhrelid::regclass::text LIKE '%' || to_char((now() AT TIME ZONE 'UTC')::date + 1, 'YYYYMMDD')";
    assert_eq!(number(&postgres, ahead).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_only_read_and_write_rows_suffices() {
    let server = PostgresServer::start();
    let postgres = server.migrated("usage").await;
    postgres
        .pool()
        .execute(
            "CREATE ROLE writer LOGIN; GRANT USAGE ON SCHEMA tollgate TO writer;
             GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA tollgate TO writer",
        )
        .await
        .expect("a role");
    let url = format!("postgres://writer@127.0.0.1:{}/usage", server.port);
    let writer = Postgres::connect(&url).await.expect("a connection");
    let writer = sink(&writer).await;
    let mut all = events(50, 51);
    all[0].time = Timestamp::from_unix_seconds(now().as_unix_seconds() - 9 * 86_400);
    deliver(&writer, all.clone()).await;
    assert_exact(postgres.pool(), &all).await;
    writer
        .forget_days_before(now())
        .await
        .expect_err("no owner");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_and_a_newer_schema_are_told() {
    let server = PostgresServer::start();
    let url = server.create("usage").await;
    let postgres = Postgres::connect(&url).await.expect("a connection");
    let error = PostgresSink::connect(&postgres)
        .await
        .expect_err("no schema");
    assert!(error.to_string().contains("Postgres::migrate"), "{error}");
    assert!(matches!(
        error,
        PostgresStartError::SchemaTooOld {
            found: 0,
            needed: 3,
            ..
        }
    ));

    postgres.migrate().await.expect("a schema");
    let sink = sink(&postgres).await;
    let pool = postgres.pool();
    let set = async |last: i64| {
        sqlx::query("UPDATE tollgate._sqlx_migrations SET version = $1 WHERE version = (SELECT max(version) FROM tollgate._sqlx_migrations)")
            .bind(last)
            .execute(pool)
            .await
            .expect("noted")
    };
    set(9_999).await;
    let error = PostgresSink::connect(&postgres)
        .await
        .expect_err("a newer schema");
    assert!(
        matches!(error, PostgresStartError::SchemaTooNew { found: 9_999, .. }),
        "{error}"
    );

    // A schema that is gone while the sink runs: the batch waits, and the log tells what to do.
    pool.execute("ALTER SCHEMA tollgate RENAME TO elsewhere")
        .await
        .expect("renamed");
    let batch = vec![event(1, now())];
    let error = sink.write(&batch).await.expect_err("no schema");
    let cause = std::error::Error::source(&error)
        .expect("a cause")
        .to_string();
    assert!(cause.contains("Postgres::migrate"), "{cause}");
    pool.execute("ALTER SCHEMA elsewhere RENAME TO tollgate")
        .await
        .expect("renamed");
    deliver(&sink, batch.clone()).await;
    assert_exact(pool, &batch).await;

    // Series that this process remembers and a restored database does not have.
    for table in [
        "usage_minutes",
        "usage_hours",
        "usage_events",
        "usage_series",
    ] {
        pool.execute(sqlx::query(&format!("DELETE FROM tollgate.{table}")))
            .await
            .expect("deleted");
    }
    deliver(&sink, batch.clone()).await;
    assert_exact(pool, &batch).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_of_calls_that_go_on_count_what_was_used_and_no_call() {
    let server = PostgresServer::start();
    let postgres = server.migrated("usage").await;
    let sink = sink(&postgres).await;
    let now = now();
    let mut all: Vec<_> = (0..5).map(|n| event(n, now)).collect();
    for event in &mut all[..4] {
        event.part_of = Some(EventId::new(7, 4));
        event.response_bytes = 100;
    }
    deliver(&sink, all.clone()).await;
    assert_exact(postgres.pool(), &all).await;
    let minutes = expected(&all, 60);
    let totals = minutes.values().next().expect("a minute");
    assert_eq!((totals.calls, totals.response_bytes), (1, 400));
}
