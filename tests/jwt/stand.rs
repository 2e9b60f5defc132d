//! An authenticator of tokens, with everything that it needs.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tollgate::{
    auth::{
        AuthRefusal,
        jwt::{JwksSource, StaticJwks},
    },
    clock::{Clock, ManualClock, Now},
    id::PlanName,
    identity::{Attempt, Identity, JwtAuthenticator, JwtAuthenticatorBuilder, Tenants},
    plan::PlanCatalog,
    tenant::{MemoryTenantStore, TenantRecord, TenantStore},
};

use super::signer::{ED25519, P256, P384, RSA, document};
use crate::identity::fake::{answer, attempt, catalog, tenant};

pub(crate) const ISSUER: &str = "https://idp.example/";
pub(crate) const AUDIENCE: &str = "https://api.example/";

pub(crate) struct Stand {
    pub(crate) auth: JwtAuthenticator,
    pub(crate) catalog: PlanCatalog,
    pub(crate) clock: ManualClock,
    pub(crate) tenants: Arc<MemoryTenantStore>,
}

/// Trusts the four keys of the tests.
pub(crate) fn stand() -> Stand {
    stand_with(|builder| builder)
}

pub(crate) fn all_keys() -> StaticJwks {
    let keys = [&RSA, &P256, &P384, &ED25519].map(|signer| signer.jwk());
    StaticJwks::from_json(document(keys)).unwrap()
}

pub(crate) fn stand_with(
    change: impl FnOnce(JwtAuthenticatorBuilder) -> JwtAuthenticatorBuilder,
) -> Stand {
    stand_of(all_keys(), change)
}

pub(crate) fn stand_of(
    keys: impl JwksSource,
    change: impl FnOnce(JwtAuthenticatorBuilder) -> JwtAuthenticatorBuilder,
) -> Stand {
    let builder = JwtAuthenticator::builder()
        .issuer(ISSUER, keys)
        .audience(AUDIENCE);
    made(change(builder))
}

pub(crate) fn made(builder: JwtAuthenticatorBuilder) -> Stand {
    let plan = |name: &str| PlanName::new(name).unwrap();
    let records = [("acme", "free"), ("globex", "pro")]
        .map(|(name, bought)| TenantRecord::new(tenant(name), plan(bought)));
    let tenants = Arc::new(MemoryTenantStore::from_records(records).unwrap());
    let catalog = catalog();
    let store = Arc::clone(&tenants) as Arc<dyn TenantStore>;
    Stand {
        auth: builder.build(store, catalog.clone()).unwrap(),
        catalog,
        clock: ManualClock::default(),
        tenants,
    }
}

impl Stand {
    pub(crate) fn now(&self) -> Now {
        self.clock.now()
    }

    pub(crate) fn advance(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    pub(crate) fn tenants(&self) -> Tenants {
        let store = Arc::clone(&self.tenants) as Arc<dyn TenantStore>;
        Tenants::new(store, self.catalog.clone())
    }

    /// Good claims of `acme`, for five minutes.
    pub(crate) fn claims(&self) -> Value {
        claims(self.now())
    }

    /// The answer, which must need no trip.
    pub(crate) fn ask(&self, token: &str) -> Result<Identity, AuthRefusal> {
        match attempt(&self.auth, token, self.now()) {
            Attempt::Done(result) => result,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn refusal(&self, token: &str) -> AuthRefusal {
        self.ask(token).expect_err("a refusal")
    }

    /// The answer, by a trip where one is needed.
    pub(crate) async fn ask_far(&self, token: &str) -> Result<Identity, AuthRefusal> {
        answer(&self.auth, token, self.now()).await
    }

    pub(crate) fn attempt(&self, token: &str) -> Attempt {
        attempt(&self.auth, token, self.now())
    }
}

pub(crate) fn claims(now: Now) -> Value {
    let seconds = now.wall().as_unix_seconds();
    json!({
        "iss": ISSUER, "aud": AUDIENCE, "sub": "user-1", "client_id": "app-1", "tenant": "acme",
        "scope": "read write", "iat": seconds, "exp": seconds + 300,
    })
}

/// Claims with one replaced; `null` takes it away.
pub(crate) fn with(mut claims: Value, name: &str, value: Value) -> Value {
    if value.is_null() {
        claims.as_object_mut().unwrap().remove(name);
    } else {
        claims[name] = value;
    }
    claims
}
