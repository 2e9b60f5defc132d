//! Instructions for each call, counted by valgrind: repeatable where a time on a busy machine is not.
//!
//! `cargo bench --bench instructions` runs every case under `valgrind --tool=callgrind` and prints what one call
//! of it takes; `-- CASE..` only the cases that are named. To see where the instructions go:
//!
//! ```text
//! valgrind --tool=callgrind --toggle-collect='*measured*' target/release/deps/instructions-.. CASE 10000
//! callgrind_annotate callgrind.out.*
//! ```
//!
//! Valgrind's processor has no SHA instructions, so the digest of a key costs several thousand instructions
//! here that it does not cost elsewhere. Take `digest` off where a key is identified, and `bare` where a
//! request is served.

mod common;

use std::{convert::Infallible, env, error::Error, hint::black_box, process::Command};

use common::{Guarded, Limits};
use http::Request;
use tollgate::{
    auth::{Extractor, KeyHasher},
    clock::{Clock, SystemClock},
    head::RequestHead,
    identity::{Attempt, Authenticate},
    limit::{Cost, HeaderStyle, LimitCall, LimitStore, MemoryLimits, ScopeValues},
};
use tower::{Service, ServiceBuilder, layer::layer_fn};

const CALLS: u64 = 10_000;
const WARM_UP: u64 = 1_000;

/// What a case measures, by name.
type Case = (&'static str, fn(u64));

const CASES: [Case; 16] = [
    ("clock", clock),
    ("digest", digest),
    ("governor", governor),
    ("limiter", |n| limiter(n, 1)),
    ("limiter-no-clock", limiter_no_clock),
    ("limiter-2-rules", |n| limiter(n, 2)),
    ("bare", bare),
    ("layers", |n| guarded(n, common::three_layers)),
    ("parts", parts),
    ("gate-tells-nobody", |n| {
        guarded(n, || common::gate(HeaderStyle::Off, false))
    }),
    ("gate-headers-off", |n| {
        guarded(n, || common::gate(HeaderStyle::Off, true))
    }),
    ("gate", |n| {
        guarded(n, || common::gate(HeaderStyle::Draft11, true))
    }),
    ("axum-bare", |n| axum(n, || Axum::ungated(false))),
    ("axum-empty-layer", |n| axum(n, || Axum::ungated(true))),
    ("axum-gate-tells-nobody", |n| {
        axum(n, || Axum::gated(HeaderStyle::Off, false))
    }),
    ("axum-gate", |n| {
        axum(n, || Axum::gated(HeaderStyle::Draft11, true))
    }),
];

/// The function whose instructions are counted.
#[inline(never)]
fn measured(n: u64, call: &mut dyn FnMut(u64)) {
    (0..n).for_each(call);
}

/// Measures what is left when everything is in the caches.
fn warm(n: u64, mut call: impl FnMut(u64)) {
    (0..WARM_UP).for_each(&mut call);
    measured(n, &mut call);
}

fn clock(n: u64) {
    let clock = SystemClock::new();
    warm(n, |_| {
        black_box(clock.now());
    });
}

fn digest(n: u64) {
    let hasher = KeyHasher::sha256();
    let key = "tg_live_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ3d9ffH";
    warm(n, |_| {
        black_box(hasher.digest(black_box(key)));
    });
}

fn governor(n: u64) {
    let (names, limiter) = (common::names(1), common::governor_limiter());
    warm(n, |_| {
        assert!(black_box(limiter.check_key(&names[0])).is_ok())
    });
}

fn limiter(n: u64, n_rules: usize) {
    let rules = [common::rate(), common::quota()].into_iter().take(n_rules);
    let limits = Limits::new(&common::names(1), rules);
    warm(n, |_| limits.check(0));
}

fn limiter_no_clock(n: u64) {
    let limits = Limits::new(&common::names(1), [common::rate()]);
    let now = SystemClock::new().now();
    warm(n, |_| limits.check_at(0, now));
}

/// What is left of a call without a request, an answer and an event: digest, cached identity, two rules.
fn parts(n: u64) {
    let common::Parts {
        authenticator,
        keys,
        ..
    } = common::parts();
    let request = |key: &String| Request::get("/").header("x-api-key", key).body(());
    let requests: Vec<_> = keys.iter().flat_map(request).collect();
    let extractor = Extractor::default();
    let heads = requests.iter().map(RequestHead::from);
    let credentials: Vec<_> = heads
        .map(|head| (head, extractor.extract(&head).expect("one key")))
        .collect();
    let (clock, limits) = (SystemClock::new(), MemoryLimits::new());
    let (scopes, cost) = (ScopeValues::default(), Cost::default());
    warm(n, |i| {
        let now = clock.now();
        let (head, credential) = &credentials[i as usize % credentials.len()];
        let attempt = authenticator.authenticate(credential.as_ref(), head, now);
        let Attempt::Done(Ok(identity)) = attempt else {
            panic!("a key that is known: {attempt:?}");
        };
        let call = LimitCall::new(identity.limits(), &scopes, &cost, now);
        let decision = limits.try_decide(&call);
        assert!(matches!(black_box(&decision), Some(Ok(it)) if it.is_admitted()));
    });
}

fn bare(n: u64) {
    let (mut service, key) = (common::bare(), common::names(1).remove(0));
    warm(n, |_| common::call(&mut service, &key));
}

/// The calls wait in the recorder's queue: its task does not run.
fn guarded<S>(n: u64, make: impl FnOnce() -> Guarded<S>)
where
    S: Service<Request<String>, Error = Infallible>,
{
    let runtime = common::runtime();
    let _inside = runtime.enter();
    let mut guarded = make();
    warm(n, |i| guarded.call(i));
    assert_eq!(guarded.recorder.counters().queued, WARM_UP + n);
}

fn axum(n: u64, make: impl FnOnce() -> Axum) {
    let runtime = common::runtime();
    let _inside = runtime.enter();
    let mut app = make();
    warm(n, |_| app.call());
}

/// An axum application with one route behind a layer, and the recorder that hears of its calls.
struct Axum {
    app: axum::routing::RouterIntoService<axum::body::Body>,
    key: String,
}

impl Axum {
    /// Without any layer, or behind a layer that does nothing.
    fn ungated(is_layered: bool) -> Self {
        let mut app = hello();
        if is_layered {
            app = app.layer(layer_fn(|service| ServiceBuilder::new().service(service)));
        }
        Self {
            app: app.into_service(),
            key: common::names(1).remove(0),
        }
    }

    fn gated(headers: HeaderStyle, extensions: bool) -> Self {
        let gate = common::whole_gate(headers, extensions);
        Self {
            app: hello().layer(gate.layer()).into_service(),
            key: common::issue(gate.keys()).remove(0),
        }
    }

    /// One call, to the end of its answer.
    fn call(&mut self) {
        let request = Request::get("/").header("x-api-key", &self.key);
        let request = request.body(axum::body::Body::empty());
        let response = common::finish(self.app.call(request.expect("a legal request")));
        assert!(black_box(response).is_ok_and(|it| it.status().is_success()));
    }
}

fn hello() -> axum::Router {
    axum::Router::new().route("/", axum::routing::get(|| async { "hello" }))
}

/// Instructions for each call of a case.
fn count(case: &str) -> Result<u64, Box<dyn Error>> {
    let run = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg("--toggle-collect=*measured*")
        .arg(env::current_exe()?)
        .args([case, &CALLS.to_string()])
        .output()?;
    let text = String::from_utf8_lossy(&run.stderr);
    let collected = text.lines().find_map(|line| line.split_once("Collected :"));
    match collected {
        Some((_, count)) if run.status.success() => Ok(count.trim().parse::<u64>()? / CALLS),
        _ => Err(format!("valgrind failed: {text}").into()),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    // Cargo adds `--bench`.
    let arguments: Vec<String> = env::args().skip(1).filter(|it| it != "--bench").collect();
    if let [case, n] = &*arguments
        && let Ok(n) = n.parse()
    {
        let (_, run) = CASES
            .iter()
            .find(|(name, _)| name == case)
            .ok_or("no such case")?;
        run(n);
        return Ok(());
    }
    println!("| case | instructions for each call |\n|---|---|");
    for (case, _) in CASES {
        if arguments.is_empty() || arguments.iter().any(|it| it == case) {
            println!("| {case} | {} |", count(case)?);
        }
    }
    Ok(())
}
