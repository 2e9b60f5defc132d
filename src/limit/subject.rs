//! Which rules a call is decided under, and whose count it takes.

use std::{fmt, sync::Arc};

use quick_cache::sync::Cache;
use sha2::{Digest, Sha256};

use super::{
    hook::LimitKey,
    set::{LimitSet, Owner, RuleSet},
};
use crate::{
    head::RequestHead,
    id::TenantId,
    identity::{Identity, PublicPath},
    meter::Meter,
};

/// What is known of a call's rules.
#[derive(Debug)]
#[non_exhaustive]
pub enum Subject {
    /// The call is decided under these rules.
    Limited(Arc<LimitSet>),
    /// The call is not counted.
    NotLimited,
    /// No outer layer said who calls.
    Unidentified,
}

mod sealed {
    #[expect(unnameable_types, reason = "only this room implements the trait")]
    pub trait Sealed {}
}

/// Finds the rules of a call; made by the constructors of [`LimitLayer`](super::LimitLayer).
pub trait FindSubject: sealed::Sealed + Clone + fmt::Debug + Send + Sync + 'static {
    /// The rules of this call.
    fn subject(&self, head: &RequestHead<'_>) -> Subject;
}

/// One count for all calls.
#[derive(Clone, Debug)]
pub struct EveryCall {
    calls: Arc<LimitSet>,
    /// The same unless preflights have rules of their own.
    preflights: Arc<LimitSet>,
}

impl EveryCall {
    pub(super) fn new(rules: Arc<RuleSet>, name: TenantId) -> Self {
        let calls = Arc::new(LimitSet::new(Owner::tenant(name), rules));
        Self {
            preflights: Arc::clone(&calls),
            calls,
        }
    }

    pub(super) fn rules(&self) -> Arc<RuleSet> {
        Arc::clone(self.calls.rule_set())
    }

    pub(super) fn named(&self, name: TenantId) -> Self {
        let renamed = Self::new(self.rules(), name);
        if Arc::ptr_eq(&self.calls, &self.preflights) {
            return renamed;
        }
        renamed.preflights(Arc::clone(self.preflights.rule_set()))
    }

    pub(super) fn preflights(mut self, rules: Arc<RuleSet>) -> Self {
        let owner = self.calls.owner().clone();
        self.preflights = Arc::new(LimitSet::new(owner, rules));
        self
    }

    /// The rules of a call that passes publicly, or of one whose caller is known.
    pub(crate) fn set(&self, public: Option<PublicPath>) -> Option<&Arc<LimitSet>> {
        match public {
            // A health check must not be refused because others call too much.
            Some(PublicPath::Path) => None,
            Some(PublicPath::Preflight) => Some(&self.preflights),
            Some(PublicPath::Anonymous) | None => Some(&self.calls),
        }
    }
}

impl sealed::Sealed for EveryCall {}

impl FindSubject for EveryCall {
    fn subject(&self, head: &RequestHead<'_>) -> Subject {
        let public = head.extensions().get::<PublicPath>().copied();
        self.set(public)
            .map_or(Subject::NotLimited, |set| Subject::Limited(Arc::clone(set)))
    }
}

/// One count for each value of a [`LimitKey`] hook.
pub struct ByKey<K>(Arc<Keyed<K>>);

struct Keyed<K> {
    hook: K,
    rules: Arc<RuleSet>,
    /// Saves the look-up of counts; the counts themselves live in the store.
    sets: Cache<Arc<str>, Arc<LimitSet>>,
}

const REMEMBERED_KEYS: usize = 100_000;

impl<K> ByKey<K> {
    pub(super) fn new(rules: Arc<RuleSet>, hook: K) -> Self {
        Self(Arc::new(Keyed {
            hook,
            rules,
            sets: Cache::new(REMEMBERED_KEYS),
        }))
    }
}

impl<K> Clone for ByKey<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K> fmt::Debug for ByKey<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByKey")
            .field("rules", &self.0.rules)
            .finish_non_exhaustive()
    }
}

impl<K> sealed::Sealed for ByKey<K> {}

impl<K: LimitKey> FindSubject for ByKey<K> {
    fn subject(&self, head: &RequestHead<'_>) -> Subject {
        let Keyed { hook, rules, sets } = &*self.0;
        let Some(key) = hook.limit_key(head) else {
            return Subject::NotLimited;
        };
        if let Some(set) = sets.get(&*key) {
            return Subject::Limited(set);
        }
        let set = Arc::new(LimitSet::new(
            Owner::tenant(owner_name(&key)),
            Arc::clone(rules),
        ));
        sets.insert(key, Arc::clone(&set));
        Subject::Limited(set)
    }
}

/// A hook may return any text; what is no legal identifier counts under its SHA-256.
pub(super) fn owner_name(key: &str) -> TenantId {
    TenantId::new(key).unwrap_or_else(|_| {
        let digest = Sha256::digest(key.as_bytes());
        let hex: String = digest
            .iter()
            .flat_map(|byte| [byte >> 4, byte & 15])
            .filter_map(hex_digit)
            .collect();
        TenantId::from_checked(&format!("sha256-{hex}"))
    })
}

fn hex_digit(nibble: u8) -> Option<char> {
    char::from_digit(nibble.into(), 16)
}

/// The rules that the request's [`Identity`] carries.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ByIdentity;

impl sealed::Sealed for ByIdentity {}

impl FindSubject for ByIdentity {
    fn subject(&self, head: &RequestHead<'_>) -> Subject {
        match head.extensions().get::<Identity>() {
            Some(identity) => {
                if let Some(meter) = head.extensions().get::<Meter>() {
                    meter.identify_once(identity);
                }
                Subject::Limited(Arc::clone(identity.limits()))
            }
            None if head.extensions().get::<PublicPath>().is_some() => Subject::NotLimited,
            None => Subject::Unidentified,
        }
    }
}
