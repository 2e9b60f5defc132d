//! The stores in Redis beside the ones in memory, step by step over random histories.

use std::{
    fmt::Debug,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use proptest::prelude::*;
use tollgate::{
    auth::{KeyDigest, KeyRecord, KeyStore, KeyUse, MemoryKeyStore, RedisKeyStore},
    clock::Timestamp,
    id::{Environment, KeyId},
    limit::Quota,
    redis_support::{Redis, RedisConnector},
    tenant::{AccessState, MemoryTenantStore, RedisTenantStore, TenantRecord, TenantStore},
};

use super::{digest, id, noon, owner, patient, tenant};
use crate::common::redis::RedisServer;

#[derive(Clone, Debug)]
enum Step {
    Create {
        key: u8,
        record: Box<KeyRecord>,
    },
    Rotate {
        old: u8,
        end: u64,
        key: u8,
        record: Box<KeyRecord>,
        now: u64,
    },
    Revoke {
        key: u8,
        at: u64,
    },
    Touch {
        uses: Vec<(u8, u64)>,
    },
}

/// Few names, so that most steps meet what is there.
const N_KEYS: u8 = 6;

fn key_id(key: u8) -> KeyId {
    id(&format!("k {key}:{{é}}"))
}

fn at(seconds: u64) -> Timestamp {
    noon().saturating_add(Duration::from_secs(seconds))
}

fn times() -> impl Strategy<Value = u64> {
    prop_oneof![0..100_u64, Just(u64::MAX / 2_000_000)]
}

fn records() -> impl Strategy<Value = Box<KeyRecord>> {
    let expiry = proptest::option::of(times());
    (0..N_KEYS, 0..3_u8, times(), expiry, any::<bool>()).prop_map(
        |(key, owner, created, expiry, is_rich)| {
            let owner = tenant(["acme", "{acme}", "a b"][usize::from(owner)]);
            let mut record = KeyRecord::new(key_id(key), owner, "tg_live_…".into(), at(created));
            record.expires_at = expiry.map(at);
            if is_rich {
                record.environment = Environment::Test;
                record.scopes.insert("chat:write".into());
                record.allowed_networks.push("10.0.0.0/8".parse().unwrap());
                record
                    .limits
                    .push(Quota::monthly(u64::from(key)).named("own"));
                record.counts_as = Some(key_id(0));
            }
            Box::new(record)
        },
    )
}

fn steps() -> impl Strategy<Value = Step> {
    let uses = proptest::collection::vec((0..N_KEYS, times()), 0..4);
    prop_oneof![
        4 => (0..N_KEYS, records()).prop_map(|(key, record)| Step::Create { key, record }),
        3 => (0..N_KEYS, times(), 0..N_KEYS, records(), 0..100_u64).prop_map(
            |(old, end, key, record, now)| Step::Rotate { old, end, key, record, now },
        ),
        2 => (0..N_KEYS, times()).prop_map(|(key, at)| Step::Revoke { key, at }),
        1 => uses.prop_map(|uses| Step::Touch { uses }),
    ]
}

async fn apply(store: &dyn KeyStore, step: Step) -> String {
    let said = match step {
        Step::Create { key, record } => said(&store.create(digest(key.into()), *record).await),
        Step::Rotate {
            old,
            end,
            key,
            record,
            now,
        } => {
            let (old, digest) = (key_id(old), digest(key.into()));
            let rotated = store.rotate(&old, at(end), digest, *record, at(now));
            said(&rotated.await)
        }
        Step::Revoke { key, at: time } => said(&store.revoke(&key_id(key), at(time)).await),
        Step::Touch { uses } => {
            let uses: Vec<KeyUse> = uses
                .into_iter()
                .map(|(key, time)| KeyUse::new(digest(key.into()), key_id(key), at(time)))
                .collect();
            said(&store.touch(&uses).await)
        }
    };
    format!("{said}; {:?}", whole(store).await)
}

fn said<T: Debug, E: Debug>(result: &Result<T, E>) -> String {
    format!("{result:?}")
}

/// Everything that can be asked of a store.
async fn whole(store: &dyn KeyStore) -> impl Debug + use<> {
    let mut found: Vec<Option<Arc<KeyRecord>>> = Vec::new();
    for key in 0..N_KEYS {
        let digest: KeyDigest = digest(key.into());
        found.push(store.find(&digest).await.unwrap());
        found.push(store.find_by_id(&key_id(key)).await.unwrap());
    }
    for name in ["acme", "{acme}", "a b"] {
        let listed = store.list(&tenant(name)).await.unwrap();
        found.extend(listed.into_iter().map(Some));
        found.push(None);
    }
    found
}

async fn uses(store: &dyn KeyStore) -> Vec<Vec<(KeyId, Timestamp)>> {
    let mut all = Vec::new();
    for name in ["acme", "{acme}", "a b"] {
        let used = store.last_used(&tenant(name)).await.unwrap();
        let mut used: Vec<_> = used.into_iter().collect();
        used.sort();
        all.push(used);
    }
    all
}

#[derive(Clone, Debug)]
enum Change {
    Create(u8),
    /// A replacement of the version that is there, or of another one.
    Replace(u8, AccessState, u64),
}

fn changes() -> impl Strategy<Value = Change> {
    let access = prop_oneof![
        Just(AccessState::Active),
        Just(AccessState::Suspended),
        times().prop_map(|end| AccessState::Grace {
            until: at(end),
            suspend_at: None
        }),
    ];
    prop_oneof![
        1 => (0..3_u8).prop_map(Change::Create),
        3 => (0..3_u8, access, 0..6_u64).prop_map(|(n, access, version)| Change::Replace(n, access, version)),
    ]
}

async fn change(store: &dyn TenantStore, change: Change) -> String {
    let name = |n: u8| ["acme", "{acme}", "a b"][usize::from(n)];
    let said = match change {
        Change::Create(n) => said(&store.create(owner(name(n))).await),
        Change::Replace(n, access, version) => {
            let mut record: TenantRecord = owner(name(n));
            (record.access, record.version) = (access, version);
            record.pay_url = Some("https://pay.example".into());
            said(&store.replace(record).await)
        }
    };
    let mut found = Vec::new();
    for n in 0..3 {
        found.push(store.find(&tenant(name(n))).await.unwrap());
    }
    format!("{said}; {found:?}")
}

/// A server for all histories, each under a namespace of its own.
struct Stand {
    server: RedisServer,
    runtime: tokio::runtime::Runtime,
    n_histories: AtomicUsize,
}

impl Stand {
    fn new() -> Self {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        Self {
            server: RedisServer::start(),
            runtime: runtime.enable_all().build().unwrap(),
            n_histories: AtomicUsize::new(0),
        }
    }

    async fn fresh(&self) -> Redis {
        let number = self.n_histories.fetch_add(1, Ordering::SeqCst);
        let connector = patient(RedisConnector::single(self.server.url()).unwrap());
        let builder = Redis::builder(connector).namespace(format!("h{number}"));
        builder.unwrap().connect().await.unwrap()
    }
}

fn histories<S: Debug>(
    strategy: impl Strategy<Value = S>,
    run: impl Fn(&Stand, S) -> Result<(), TestCaseError>,
) {
    let stand = Stand::new();
    let config = ProptestConfig::with_cases(40);
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let result = runner.run(&strategy, |history| run(&stand, history));
    result.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn keys_in_redis_answer_as_keys_in_memory_do() {
    let history = proptest::collection::vec(steps(), 1..25);
    histories(history, |stand, history| {
        stand.runtime.block_on(async {
            let (ours, model) = (
                RedisKeyStore::new(&stand.fresh().await),
                MemoryKeyStore::new(),
            );
            for step in history {
                let what = format!("{step:?}");
                let expected = apply(&model, step.clone()).await;
                prop_assert_eq!(apply(&ours, step).await, expected, "{}", what);
                prop_assert_eq!(uses(&ours).await, uses(&model).await, "{}", what);
            }
            Ok(())
        })
    });
}

#[test]
fn tenants_in_redis_answer_as_tenants_in_memory_do() {
    let history = proptest::collection::vec(changes(), 1..25);
    histories(history, |stand, history| {
        stand.runtime.block_on(async {
            let ours = RedisTenantStore::new(&stand.fresh().await);
            let model = MemoryTenantStore::new();
            for each in history {
                let what = format!("{each:?}");
                let expected = change(&model, each.clone()).await;
                prop_assert_eq!(change(&ours, each).await, expected, "{}", what);
            }
            Ok(())
        })
    });
}
