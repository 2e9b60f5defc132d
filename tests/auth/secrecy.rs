use std::sync::{Arc, Mutex};

use http::Request;
use tollgate::{
    auth::{
        ApiKey, AuthEvent, AuthEventSink, AuthRefusal, Challenge, Extractor, FailureLimit,
        KeyDocument, KeyFormat, KeyHasher, KeyRecord, KeySource, KeyStore, LogAuthEvents,
        MemoryKeyStore, PeerAddr, Pepper, ShownKey, TrustedProxies,
    },
    clock::{Clock, ManualClock},
    head::RequestHead,
    id::{KeyId, TenantId},
};
use tracing_subscriber::fmt::MakeWriter;

const KEY: &str = "tg_live_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ3d9ffH";
const PEPPER: &str = "pepper-canary-0123456789";

/// Fails when a text holds a part of the canaries that must not be shown.
fn assert_quiet(text: &str) {
    for secret in ["0123456789", "UVWXYZ", "pepper-canary"] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
}

#[tokio::test]
async fn no_debug_output_shows_a_key() {
    let clock = ManualClock::default();
    let key = ApiKey::new(KEY);
    let pepper = Pepper::new(PEPPER).unwrap();
    let hasher = KeyHasher::hmac(pepper.clone()).accept_old(pepper.clone());
    let sources = [
        KeySource::header("x-api-key").unwrap(),
        KeySource::query("api_key"),
    ];
    let extractor = Extractor::new(sources).unwrap();
    let request = Request::get(format!("/?api_key={KEY}"))
        .header("x-api-key", KEY)
        .body(())
        .unwrap();
    let head = RequestHead::from(&request);
    let credential = extractor.extract(&head).unwrap().unwrap();
    let store = MemoryKeyStore::new();
    let tenant = TenantId::new("acme").unwrap();
    let record = KeyRecord::new(
        KeyId::new("k").unwrap(),
        tenant,
        key.shown(),
        clock.now().wall(),
    );
    let record = store.create(hasher.digest(KEY), record).await.unwrap();
    let event = AuthEvent::new(AuthRefusal::Revoked, clock.now())
        .credential(KEY)
        .record(&record);
    let challenge = Challenge::default();
    let problem = challenge.problem(&AuthRefusal::Unknown);
    let outputs = [
        format!("{key:?} {key:#?} {:?}", key.clone()),
        key.shown().to_string(),
        format!("{pepper:?} {hasher:?} {hasher:#?} {:?}", hasher.digest(KEY)),
        format!("{:?} {:?}", KeyFormat::default(), KeyFormat::opaque()),
        format!("{:?}", KeyFormat::default().check(KEY)),
        format!("{:?}", KeyFormat::default().check(&KEY[1..])),
        format!(
            "{extractor:?} {credential:?} {:?} {head:?}",
            credential.source
        ),
        format!("{event:?} {event:#?} {:?}", ShownKey::of(KEY)),
        format!("{store:?} {:?} {record:?}", store.to_document()),
        serde_json::to_string(&store.to_document()).unwrap(),
        format!("{challenge:?} {problem:?}"),
        format!(
            "{:?} {:?}",
            FailureLimit::default(),
            LogAuthEvents::default()
        ),
        format!(
            "{PeerAddr:?} {:?}",
            TrustedProxies::new(["10.0.0.0/8"]).unwrap()
        ),
        format!("{:?}", KeyDocument::from_compact(KEY).unwrap_err()),
        format!("{:?}", Pepper::new(&PEPPER[..13]).unwrap_err()),
    ];
    for output in outputs {
        // A digest is hexadecimal and may hold any digits by chance; this one does not.
        assert_quiet(&output);
    }
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn lines(&self) -> Vec<serde_json::Value> {
        let bytes = self.0.lock().unwrap();
        let text = std::str::from_utf8(&bytes).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// The lines that `write` logs at any level.
fn logged(write: impl FnOnce()) -> Vec<serde_json::Value> {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(log.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, write);
    log.lines()
}

#[test]
fn the_log_tells_who_failed_and_why() {
    let clock = ManualClock::default();
    let tenant = TenantId::new("acme").unwrap();
    let record = KeyRecord::new(
        KeyId::new("k1").unwrap(),
        tenant,
        Arc::from("…"),
        clock.now().wall(),
    );
    let sink = LogAuthEvents::default();
    let lines = logged(|| {
        AuthEvent::new(AuthRefusal::Revoked, clock.now())
            .credential(KEY)
            .address(Some([203, 0, 113, 5].into()))
            .record(&record)
            .emit(&sink);
        AuthEvent::new(AuthRefusal::Missing, clock.now()).emit(&sink);
    });
    assert_eq!(lines[0]["target"], "tollgate::auth");
    let fields = &lines[0]["fields"];
    assert_eq!(fields["reason"], "revoked");
    assert_eq!(fields["credential"], "tg_live_…9ffH");
    assert_eq!(fields["address"], "203.0.113.5");
    assert_eq!(fields["key"], "k1");
    assert_eq!(fields["tenant"], "acme");
    assert_eq!(fields["suppressed"], 0);
    assert_eq!(lines[0]["level"], "WARN");
    assert_eq!(lines[1]["fields"]["reason"], "missing");
    assert_eq!(lines[1]["level"], "INFO");
    assert!(lines[1]["fields"].get("credential").is_none());
    assert_quiet(&serde_json::to_string(&lines).unwrap());
}

#[test]
fn no_credential_can_forge_a_line_of_the_log() {
    for forged in [
        "0123456789abcdef\nlevel=ERROR msg=\"x\"",
        "tg_live_\u{1b}[31mred\u{1b}[0m__________________________",
        "x\r\n\r\nHTTP/1.1 200 OK",
        "0123456789abcdef\u{2028}",
    ] {
        let shown = ShownKey::of(forged);
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '…');
        assert!(shown.as_str().chars().all(plain), "{shown}");
    }
}

#[test]
fn a_flood_is_sampled_and_the_rest_counted() {
    let clock = ManualClock::default();
    let sink = LogAuthEvents::new(20, 100);
    let fail =
        || sink.auth_event(&AuthEvent::new(AuthRefusal::Unknown, clock.now()).credential(KEY));
    let lines = logged(|| {
        (0..10_000).for_each(|_| fail());
        clock.advance(std::time::Duration::from_secs(1));
        (0..10_000).for_each(|_| fail());
    });
    assert_eq!(lines.len(), 120);
    assert!(
        lines[..100]
            .iter()
            .all(|line| line["fields"]["suppressed"] == 0)
    );
    assert_eq!(lines[100]["fields"]["suppressed"], 9_900);
    assert!(
        lines[101..]
            .iter()
            .all(|line| line["fields"]["suppressed"] == 0)
    );
}

#[derive(Debug, Default)]
struct Collected(Mutex<Vec<AuthEvent>>);

impl AuthEventSink for Collected {
    fn auth_event(&self, event: &AuthEvent) {
        self.0.lock().unwrap().push(event.clone());
    }
}

#[test]
fn every_refusal_is_counted_by_reason_and_told_to_the_sink() {
    let recorder = metrics_util::debugging::DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let (clock, sink) = (ManualClock::default(), Collected::default());
    metrics::with_local_recorder(&recorder, || {
        for refusal in [
            AuthRefusal::Unknown,
            AuthRefusal::Unknown,
            AuthRefusal::Expired,
        ] {
            AuthEvent::new(refusal, clock.now())
                .credential(KEY)
                .emit(&sink);
        }
    });
    assert_eq!(sink.0.lock().unwrap().len(), 3);
    let mut counted: Vec<_> = snapshotter
        .snapshot()
        .into_vec()
        .into_iter()
        .map(|(key, _, _, value)| {
            assert_eq!(key.key().name(), "tollgate_auth_failures_total");
            let labels: Vec<_> = key
                .key()
                .labels()
                .map(|label| (label.key().to_owned(), label.value().to_owned()))
                .collect();
            (format!("{labels:?}"), format!("{value:?}"))
        })
        .collect();
    counted.sort();
    assert_eq!(counted.len(), 2);
    assert!(counted[0].0.contains("expired") && counted[0].1.contains('1'));
    assert!(counted[1].0.contains("unknown") && counted[1].1.contains('2'));
    assert_quiet(&format!("{counted:?}"));
}
