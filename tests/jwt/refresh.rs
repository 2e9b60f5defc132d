//! Keys that change, and providers that do not answer.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use serde_json::json;
use tokio::sync::Semaphore;
use tollgate::{
    auth::{
        AuthRefusal,
        jwt::{Jwks, JwksError, JwksRefresh, JwksSource},
    },
    identity::Attempt,
};

use super::{
    signer::{P256, Signer, document},
    stand::{Stand, stand_of},
};

/// A provider that does as it is told.
#[derive(Debug)]
struct Provider {
    /// The document that it answers with; `None` fails.
    document: Mutex<Option<String>>,
    hangs: Mutex<bool>,
    n_asked: AtomicUsize,
    permits: Semaphore,
    waits: Mutex<bool>,
}

impl Provider {
    fn with(keys: &[&Signer]) -> Arc<Self> {
        let provider = Arc::new(Self {
            document: Mutex::new(None),
            hangs: Mutex::new(false),
            n_asked: AtomicUsize::new(0),
            permits: Semaphore::new(0),
            waits: Mutex::new(false),
        });
        provider.publishes(keys);
        provider
    }

    fn publishes(&self, keys: &[&Signer]) {
        let keys = keys.iter().map(|signer| signer.jwk());
        *self.document.lock().unwrap() = Some(document(keys));
    }

    fn says(&self, document: &str) {
        *self.document.lock().unwrap() = Some(document.to_owned());
    }

    fn fails(&self) {
        *self.document.lock().unwrap() = None;
    }

    fn hangs(&self, on: bool) {
        *self.hangs.lock().unwrap() = on;
    }

    fn waits(&self, on: bool) {
        *self.waits.lock().unwrap() = on;
    }

    fn n_asked(&self) -> usize {
        self.n_asked.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl JwksSource for Provider {
    async fn fetch(&self) -> Result<Jwks, JwksError> {
        self.n_asked.fetch_add(1, Ordering::SeqCst);
        let (hangs, waits) = (*self.hangs.lock().unwrap(), *self.waits.lock().unwrap());
        if hangs {
            std::future::pending::<()>().await;
        }
        if waits {
            self.permits.acquire().await.unwrap().forget();
        }
        let document = self.document.lock().unwrap().clone();
        match document.as_deref() {
            Some("panic") => panic!("the provider was told to panic"),
            Some(document) => Jwks::from_json(document),
            None => Err(JwksError::Unavailable("told to fail".into())),
        }
    }
}

fn stand(provider: &Arc<Provider>) -> Stand {
    stand_of(Arc::clone(provider), |builder| builder)
}

/// Lets a fetch that was started beside the traffic end.
async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn nothing_is_fetched_before_a_token_comes_and_once_for_all_that_wait() {
    let provider = Provider::with(&[&P256]);
    let stand = stand(&provider);
    assert_eq!(provider.n_asked(), 0);
    let tokens: Vec<_> = (0..50)
        .map(|n| P256.token(&super::stand::with(stand.claims(), "jti", json!(n))))
        .collect();
    let waiting: Vec<_> = tokens.iter().map(|token| stand.ask_far(token)).collect();
    for waiting in waiting {
        assert!(waiting.await.is_ok());
    }
    assert_eq!(provider.n_asked(), 1);
    assert!(stand.ask(&tokens[0]).is_ok(), "in memory from then on");
}

#[tokio::test]
async fn a_request_that_gives_up_ends_nobody_elses_wait() {
    let provider = Provider::with(&[&P256]);
    provider.waits(true);
    let stand = stand(&provider);
    let token = P256.token(&stand.claims());
    let Attempt::Lookup(mut given_up) = stand.attempt(&token) else {
        panic!("a trip is needed");
    };
    let poll = std::future::poll_fn(|cx| std::task::Poll::Ready(given_up.as_mut().poll(cx))).await;
    assert!(poll.is_pending());
    let other = stand.ask_far(&token);
    drop(given_up);
    provider.permits.add_permits(1);
    assert!(other.await.is_ok());
    assert_eq!(provider.n_asked(), 1);
}

#[tokio::test]
async fn a_new_key_works_and_a_withdrawn_one_does_not() {
    let (old, new) = (Signer::p256("old"), Signer::ed25519("new"));
    let provider = Provider::with(&[&old]);
    let stand = stand(&provider);
    let with_old = old.token(&stand.claims());
    assert!(stand.ask_far(&with_old).await.is_ok());
    // The provider announces the new key beside the old one, and then withdraws that.
    provider.publishes(&[&old, &new]);
    stand.advance(10);
    let with_new = new.token(&stand.claims());
    assert!(stand.ask_far(&with_new).await.is_ok());
    assert!(stand.ask(&with_old).is_ok());
    assert_eq!(provider.n_asked(), 2);
    provider.publishes(&[&new]);
    stand.advance(10);
    let unknown = Signer::p256("unknown").token(&stand.claims());
    assert_eq!(
        stand.ask_far(&unknown).await.unwrap_err(),
        AuthRefusal::Unknown
    );
    assert_eq!(
        stand.refusal(&with_old),
        AuthRefusal::Unknown,
        "its key is gone, though the token was verified before"
    );
    assert!(stand.ask(&with_new).is_ok());
    assert_eq!(provider.n_asked(), 3);
}

#[tokio::test]
async fn another_key_under_the_same_id_ends_the_tokens_of_the_first() {
    let (first, second) = (Signer::p256("same"), Signer::p256("same"));
    let provider = Provider::with(&[&first]);
    let stand = stand(&provider);
    let token = first.token(&stand.claims());
    assert!(stand.ask_far(&token).await.is_ok());
    provider.publishes(&[&second]);
    // Half of the age after which keys are fetched whatever happens: beside the traffic.
    stand.advance(299);
    assert!(stand.ask(&token).is_ok());
    stand.advance(1);
    assert!(stand.ask(&token).is_ok(), "nobody waits");
    settle().await;
    assert_eq!(provider.n_asked(), 2);
    assert_eq!(stand.refusal(&token), AuthRefusal::BadSignature);
    assert!(stand.ask(&second.token(&stand.claims())).is_ok());
}

#[tokio::test]
async fn invented_key_ids_have_the_provider_asked_once_per_interval() {
    let provider = Provider::with(&[&P256]);
    let stand = stand(&provider);
    let good = P256.token(&stand.claims());
    assert!(stand.ask_far(&good).await.is_ok());
    let invented = |n: usize| {
        let header = json!({"alg": "ES256", "kid": format!("invented-{n}")});
        P256.token_with(&header, &stand.claims())
    };
    for second in 0..60 {
        for n in 0..20 {
            let refusal = stand.ask_far(&invented(second * 100 + n)).await;
            assert_eq!(refusal.unwrap_err(), AuthRefusal::Unknown);
        }
        stand.advance(1);
    }
    // Once for the first token, and from second 10 on every ten seconds.
    assert_eq!(provider.n_asked(), 6);
    assert!(stand.ask(&good).is_ok());
}

#[tokio::test]
async fn before_there_are_keys_the_answer_is_that_nobody_can_tell() {
    let provider = Provider::with(&[&P256]);
    provider.fails();
    let stand = stand(&provider);
    let token = P256.token(&stand.claims());
    let unavailable = AuthRefusal::StoreUnavailable;
    assert_eq!(stand.ask_far(&token).await.unwrap_err(), unavailable);
    provider.publishes(&[&P256]);
    for _ in 0..100 {
        assert_eq!(stand.refusal(&token), unavailable, "asked just now");
    }
    assert_eq!(provider.n_asked(), 1);
    stand.advance(10);
    assert!(stand.ask_far(&token).await.is_ok());
    // What is no token of the issuer needs no keys to be refused.
    let provider = Provider::with(&[&P256]);
    let stand = super::refresh::stand(&provider);
    let claims = super::stand::with(stand.claims(), "iss", json!("https://evil.example/"));
    assert_eq!(
        stand.refusal(&P256.token(&claims)),
        AuthRefusal::WrongIssuer
    );
    assert_eq!(provider.n_asked(), 0);
}

#[tokio::test]
async fn while_the_provider_fails_the_last_good_keys_stay_for_a_time() {
    let provider = Provider::with(&[&P256]);
    let stand = stand_of(Arc::clone(&provider), |builder| {
        builder.refresh(JwksRefresh::new().stale_if_error(Duration::from_secs(3_600)))
    });
    let ask = async || {
        let token = P256.token(&stand.claims());
        stand.ask_far(&token).await.map(drop)
    };
    assert_eq!(ask().await, Ok(()));
    for lie in [
        "",
        "<html>",
        "[]",
        "{}",
        r#"{"keys":[]}"#,
        r#"{"keys":{}}"#,
        r#"{"keys":[{"kty":"oct","k":"AA"}]}"#,
        "panic",
    ] {
        provider.says(lie);
        stand.advance(400);
        assert_eq!(ask().await, Ok(()), "{lie}");
        settle().await;
    }
    // 8 times 400 seconds have passed since the keys were fetched.
    provider.fails();
    stand.advance(600 + 3_600 - 3_200 - 1);
    assert_eq!(ask().await, Ok(()));
    settle().await;
    stand.advance(11);
    assert_eq!(ask().await, Err(AuthRefusal::StoreUnavailable));
    provider.publishes(&[&P256]);
    stand.advance(10);
    assert_eq!(ask().await, Ok(()));
}

#[tokio::test]
async fn a_token_of_a_new_key_is_not_called_invalid_while_the_provider_fails() {
    let provider = Provider::with(&[&P256]);
    let stand = stand(&provider);
    assert!(stand.ask_far(&P256.token(&stand.claims())).await.is_ok());
    provider.fails();
    stand.advance(10);
    let newer = Signer::p256("newer");
    let token = newer.token(&stand.claims());
    for _ in 0..10 {
        let refusal = stand.ask_far(&token).await.unwrap_err();
        assert_eq!(refusal, AuthRefusal::StoreUnavailable);
    }
    assert_eq!(provider.n_asked(), 2);
    provider.publishes(&[&P256, &newer]);
    stand.advance(10);
    assert!(stand.ask_far(&token).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_hangs_is_given_up_and_holds_nobody_twice() {
    let provider = Provider::with(&[&P256]);
    provider.hangs(true);
    let stand = stand(&provider);
    let token = P256.token(&stand.claims());
    let started = tokio::time::Instant::now();
    assert_eq!(
        stand.ask_far(&token).await.unwrap_err(),
        AuthRefusal::StoreUnavailable
    );
    assert_eq!(started.elapsed().as_secs(), 5);
    provider.hangs(false);
    stand.advance(10);
    assert!(stand.ask_far(&token).await.is_ok());
    // With keys in memory a provider that hangs is waited for once at the most, when they have aged.
    provider.hangs(true);
    stand.advance(600);
    let aged = P256.token(&stand.claims());
    assert!(stand.ask_far(&aged).await.is_ok());
    let started = tokio::time::Instant::now();
    for _ in 0..10 {
        stand.advance(10);
        let token = P256.token(&stand.claims());
        assert!(stand.ask(&token).is_ok());
    }
    assert_eq!(started.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn requests_that_wait_for_keys_are_bounded() {
    let provider = Provider::with(&[&P256]);
    provider.waits(true);
    let stand = stand_of(Arc::clone(&provider), |builder| {
        builder.cache(tollgate::identity::CacheSettings::new().max_waiting(2))
    });
    let token = P256.token(&stand.claims());
    let mut waiting: Vec<_> = (0..2)
        .map(|_| match stand.attempt(&token) {
            Attempt::Lookup(lookup) => lookup,
            other => panic!("{other:?}"),
        })
        .collect();
    for lookup in &mut waiting {
        let poll = std::future::poll_fn(|cx| std::task::Poll::Ready(lookup.as_mut().poll(cx)));
        assert!(poll.await.is_pending());
    }
    let third = stand.ask_far(&token).await;
    assert_eq!(third.unwrap_err(), AuthRefusal::StoreUnavailable);
    provider.permits.add_permits(1);
    for lookup in waiting {
        assert!(lookup.await.is_ok());
    }
}

#[test]
fn without_a_runtime_keys_that_must_be_fetched_are_not_there() {
    let provider = Provider::with(&[&P256]);
    let stand = stand(&provider);
    let token = P256.token(&stand.claims());
    assert_eq!(stand.refusal(&token), AuthRefusal::StoreUnavailable);
    assert_eq!(provider.n_asked(), 0);
}
