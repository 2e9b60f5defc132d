//! What a count is found by.

use std::{
    hash::{BuildHasher, Hash, Hasher},
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use papaya::Equivalent;

use super::super::{
    compile::CompiledRule,
    rule::Scope,
    set::{Owner, ScopeValues},
};
use crate::id::{Environment, KeyId, TenantId};

/// The key of a count, borrowed from a call, so that finding a count allocates nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct CellRef<'a> {
    hash: u64,
    parts: Parts<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Parts<'a> {
    tenant: &'a TenantId,
    environment: Environment,
    rule: &'a Arc<str>,
    shape: &'a Arc<str>,
    scope: ScopeRef<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum ScopeRef<'a> {
    Tenant,
    Key(Option<&'a KeyId>),
    Route(Option<&'a Arc<str>>),
    Address(Option<IpAddr>),
    Custom(&'a Arc<str>, &'a Arc<str>),
}

/// The key of a count, owned by the map.
#[derive(Clone, Debug)]
pub(super) struct CellKey {
    hash: u64,
    tenant: TenantId,
    environment: Environment,
    rule: Arc<str>,
    shape: Arc<str>,
    scope: ScopeValue,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::limit) enum ScopeValue {
    Tenant,
    Key(Option<KeyId>),
    Route(Option<Arc<str>>),
    Address(Option<IpAddr>),
    Custom(Arc<str>, Arc<str>),
}

/// What a count is known by outside of the map: the same in each process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::limit) struct CountName {
    pub(in crate::limit) tenant: TenantId,
    pub(in crate::limit) environment: Environment,
    pub(in crate::limit) rule: Arc<str>,
    pub(in crate::limit) shape: Arc<str>,
    pub(in crate::limit) scope: ScopeValue,
}

impl<'a> CellRef<'a> {
    /// The key of the count of this name.
    pub(super) fn named(hasher: &impl BuildHasher, name: &'a CountName) -> Self {
        let parts = Parts {
            tenant: &name.tenant,
            environment: name.environment,
            rule: &name.rule,
            shape: &name.shape,
            scope: name.scope.borrowed(),
        };
        Self {
            hash: hasher.hash_one(parts),
            parts,
        }
    }

    /// The key of a rule's count for one call; `None` when the rule does not apply to the call.
    pub(super) fn new(
        hasher: &impl BuildHasher,
        rule: &'a CompiledRule,
        owner: &'a Owner,
        values: &'a ScopeValues,
    ) -> Option<Self> {
        if rule.route().is_some() && !rule.applies_to(values) {
            return None;
        }
        let scope = match rule.scope() {
            Scope::Tenant => ScopeRef::Tenant,
            Scope::Key => ScopeRef::Key(owner.key.as_ref()),
            Scope::Route => ScopeRef::Route(values.route.as_ref()),
            Scope::Address => ScopeRef::Address(values.address.map(network)),
            Scope::Custom(name) => {
                let (_, value) = values.custom.iter().find(|(known, _)| known == name)?;
                ScopeRef::Custom(name, value)
            }
        };
        let parts = Parts {
            tenant: &owner.tenant,
            environment: owner.environment,
            rule: &rule.rule().name,
            shape: rule.shape(),
            scope,
        };
        Some(Self {
            hash: hasher.hash_one(parts),
            parts,
        })
    }

    pub(super) const fn hash(&self) -> u64 {
        self.hash
    }

    pub(super) fn to_key(self) -> CellKey {
        let Parts {
            tenant,
            environment,
            rule,
            shape,
            scope,
        } = self.parts;
        CellKey {
            hash: self.hash,
            tenant: tenant.clone(),
            environment,
            rule: Arc::clone(rule),
            shape: Arc::clone(shape),
            scope: match scope {
                ScopeRef::Tenant => ScopeValue::Tenant,
                ScopeRef::Key(key) => ScopeValue::Key(key.cloned()),
                ScopeRef::Route(route) => ScopeValue::Route(route.cloned()),
                ScopeRef::Address(address) => ScopeValue::Address(address),
                ScopeRef::Custom(name, value) => {
                    ScopeValue::Custom(Arc::clone(name), Arc::clone(value))
                }
            },
        }
    }
}

impl ScopeValue {
    const fn borrowed(&self) -> ScopeRef<'_> {
        match self {
            Self::Tenant => ScopeRef::Tenant,
            Self::Key(key) => ScopeRef::Key(key.as_ref()),
            Self::Route(route) => ScopeRef::Route(route.as_ref()),
            Self::Address(address) => ScopeRef::Address(*address),
            Self::Custom(name, value) => ScopeRef::Custom(name, value),
        }
    }
}

impl CellKey {
    const fn parts(&self) -> Parts<'_> {
        Parts {
            tenant: &self.tenant,
            environment: self.environment,
            rule: &self.rule,
            shape: &self.shape,
            scope: self.scope.borrowed(),
        }
    }

    pub(super) fn name(&self) -> CountName {
        CountName {
            tenant: self.tenant.clone(),
            environment: self.environment,
            rule: Arc::clone(&self.rule),
            shape: Arc::clone(&self.shape),
            scope: self.scope.clone(),
        }
    }
}

impl PartialEq for CellKey {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.parts() == other.parts()
    }
}

impl Eq for CellKey {}

impl Hash for CellKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl Hash for CellRef<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl Equivalent<CellKey> for CellRef<'_> {
    fn equivalent(&self, key: &CellKey) -> bool {
        self.hash == key.hash && self.parts == key.parts()
    }
}

/// The network that an address is counted by: IPv4 as it is, also when mapped into IPv6, and IPv6 by its /64,
/// the least that one customer of a network operator holds (RFC 6177).
pub(in crate::limit) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 => v4,
    }
}

/// Passes a hash on that was computed with a random key before: the values come from clients.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Only whole words are written, by the two keys above; anything else would still be a hash.
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}
