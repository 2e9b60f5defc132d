//! The names of Redis keys, all of them made here.
//!
//! `tg:1:{l.acme}:t` is the hash of the counts of the tenant `acme` in the live environment. The part in braces
//! is the hash tag: all keys of a tenant's environment lie in one slot of a Cluster, and no name that a client
//! chooses can move it, because braces, colons and whatever else is not plain never reach a key as they are.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::error::ConfigError;

/// The longest part of a key that stands in it as it is; a longer one stands as a digest.
const MAX_PART_BYTES: usize = 36;
const MAX_NAMESPACE_BYTES: usize = 16;
/// A hash of short fields is stored as one compact list, by the server's default up to 64 bytes each.
const MAX_FIELD_BYTES: usize = 64;

/// A Redis key.
pub(crate) type Key = Arc<[u8]>;

/// What a count is kept for, within a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyScope<'a> {
    Tenant,
    Key(Option<&'a str>),
    Route(Option<&'a str>),
    Address(Option<&'a str>),
    Custom(&'a str, &'a str),
}

/// What is known of keys, tenants and plans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Account<'a> {
    /// How many changes there were.
    Changes,
    /// A key's record, by its digest in hexadecimal.
    Key(&'a str),
    /// The digest of a key, by its id.
    KeyId(&'a str),
    /// The digests of a tenant's keys.
    KeysOf(&'a str),
    /// The plans on sale.
    Plans,
    /// A tenant's record.
    Tenant(&'a str),
}

/// What is counted of a tenant's usage, by day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DayUsage<'a> {
    /// The counters of an API.
    Api(&'a str),
    /// Which batches of usage were counted.
    Written,
}

/// The beginning of all keys of one deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeySpace {
    prefix: Arc<str>,
}

impl Default for KeySpace {
    fn default() -> Self {
        Self {
            prefix: "tg:1:".into(),
        }
    }
}

impl KeySpace {
    /// Keys that begin with `tg:1:` and a name, for deployments that share a server.
    pub(crate) fn named(name: &str) -> Result<Self, ConfigError> {
        let is_plain =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if name.is_empty() || name.len() > MAX_NAMESPACE_BYTES || !name.bytes().all(is_plain) {
            return Err(ConfigError::new(
                "namespace",
                "a namespace stands in every key: write 1 to 16 characters of a-z, 0-9 and -",
            ));
        }
        Ok(Self {
            prefix: format!("tg:1:{name}:").into(),
        })
    }

    /// The key that says since when the server has held its counts.
    pub(crate) fn epoch(&self) -> Key {
        format!("{}epoch", self.prefix).into_bytes().into()
    }

    /// The hash of the counts of one limit key.
    pub(crate) fn counts(&self, tenant: &str, environment: &str, scope: KeyScope<'_>) -> Key {
        let mut key = self.tagged(tenant, environment);
        let mut scoped = |kind: u8, value: Option<&str>| {
            key.push(kind);
            if let Some(value) = value {
                key.push(b':');
                push_part(&mut key, value.as_bytes());
            }
        };
        match scope {
            KeyScope::Tenant => scoped(b't', None),
            KeyScope::Key(id) => scoped(b'k', id),
            KeyScope::Route(route) => scoped(b'r', route),
            KeyScope::Address(address) => scoped(b'a', address),
            KeyScope::Custom(name, value) => {
                scoped(b'c', Some(name));
                key.push(b':');
                push_part(&mut key, value.as_bytes());
            }
        }
        key.into()
    }

    /// A key of what is known of keys, tenants and plans: all in one slot, so that one script changes what belongs
    /// together, in a Cluster too.
    pub(crate) fn shared_record(&self, account: Account<'_>) -> Key {
        let mut key = Vec::with_capacity(96);
        key.extend_from_slice(self.prefix.as_bytes());
        key.extend_from_slice(b"{accounts}:");
        let (kind, name): (&[u8], _) = match account {
            Account::Changes => (b"n", None),
            Account::Key(digest) => {
                // A digest is whole: no other key may ever be taken for this one.
                key.extend_from_slice(b"k:");
                key.extend_from_slice(digest.as_bytes());
                return key.into();
            }
            Account::KeyId(id) => (b"i:", Some(id)),
            Account::KeysOf(tenant) => (b"o:", Some(tenant)),
            Account::Plans => (b"p", None),
            Account::Tenant(tenant) => (b"t:", Some(tenant)),
        };
        key.extend_from_slice(kind);
        if let Some(name) = name {
            push_part(&mut key, name.as_bytes());
        }
        key.into()
    }

    /// One of the streams of usage events. Its tag is that of no tenant: theirs begin with an environment's letter.
    pub(crate) fn usage_stream(&self, shard: u16) -> Key {
        format!("{}{{u.{shard}}}:s", self.prefix)
            .into_bytes()
            .into()
    }

    /// What says that a batch stands in such a stream, in the same slot. The batch is named by the ids of its events.
    pub(crate) fn usage_batch(&self, shard: u16, ids: impl IntoIterator<Item = u128>) -> Key {
        let mut digest = Sha256::new();
        for id in ids {
            digest.update(id.to_be_bytes());
        }
        let mut key = format!("{}{{u.{shard}}}:b:", self.prefix).into_bytes();
        for byte in digest.finalize().iter().take(16) {
            push_hex(&mut key, *byte);
        }
        key.into()
    }

    /// The channel on which changes of them are announced.
    pub(crate) fn changes(&self) -> Key {
        format!("{}changes", self.prefix).into_bytes().into()
    }

    /// The hash of what a tenant's environment used on a day, `20260115`.
    pub(crate) fn usage(
        &self,
        tenant: &str,
        environment: &str,
        day: &str,
        usage: DayUsage<'_>,
    ) -> Key {
        let mut key = self.tagged(tenant, environment);
        match usage {
            DayUsage::Api(api) => {
                key.extend_from_slice(b"u:");
                key.extend_from_slice(day.as_bytes());
                key.push(b':');
                push_part(&mut key, api.as_bytes());
            }
            DayUsage::Written => {
                key.extend_from_slice(b"w:");
                key.extend_from_slice(day.as_bytes());
            }
        }
        key.into()
    }

    /// The beginning of the keys of a tenant's environment.
    fn tagged(&self, tenant: &str, environment: &str) -> Vec<u8> {
        let mut key = Vec::with_capacity(96);
        key.extend_from_slice(self.prefix.as_bytes());
        key.push(b'{');
        // One letter tells the environments apart: they are `live` and `test`.
        key.extend_from_slice(environment.as_bytes().get(..1).unwrap_or_default());
        key.push(b'.');
        push_part(&mut key, tenant.as_bytes());
        key.extend_from_slice(b"}:");
        key
    }

    /// The hash of one event of a payment provider's. No environment begins with its tag's letter.
    #[cfg(feature = "billing")]
    pub(crate) fn billing_event(&self, endpoint: &str, event: &str) -> Key {
        let mut key = self.prefix.as_bytes().to_vec();
        key.extend_from_slice(b"{b.");
        push_part(&mut key, endpoint.as_bytes());
        // No part holds a slash as it is.
        key.push(b'/');
        push_part(&mut key, event.as_bytes());
        key.extend_from_slice(b"}:event");
        key.into()
    }

    /// The hash of the dead letters of one endpoint.
    #[cfg(feature = "billing")]
    pub(crate) fn dead_letters(&self, endpoint: &str) -> Key {
        let mut key = self.prefix.as_bytes().to_vec();
        key.extend_from_slice(b"{b.");
        push_part(&mut key, endpoint.as_bytes());
        key.extend_from_slice(b"}:dead");
        key.into()
    }

    /// The hash of one customer of a payment provider.
    #[cfg(feature = "billing")]
    pub(crate) fn account(&self, customer: &str) -> Key {
        let mut key = self.prefix.as_bytes().to_vec();
        key.extend_from_slice(b"{c.");
        push_part(&mut key, customer.as_bytes());
        key.extend_from_slice(b"}:account");
        key.into()
    }

    /// The sorted set of the ids of all customers.
    #[cfg(feature = "billing")]
    pub(crate) fn accounts(&self) -> Key {
        format!("{}accounts", self.prefix).into_bytes().into()
    }

    /// The field of one rule in such a hash. A shape has no space and a name no control character, so two rules
    /// never share a field; a long one stands as its digest.
    pub(crate) fn field(shape: &str, name: &str) -> Key {
        let field = format!("{shape} {name}");
        if field.len() <= MAX_FIELD_BYTES {
            return field.into_bytes().into();
        }
        let mut short = b"#".to_vec();
        push_digest(&mut short, field.as_bytes());
        short.into()
    }
}

/// Appends text so that different texts never look the same: letters, digits, `-`, `.` and `_` as they are, any
/// other byte as `%` and two digits, and what would be longer than 36 bytes as `%%` and a digest.
fn push_part(key: &mut Vec<u8>, text: &[u8]) {
    let start = key.len();
    for &byte in text {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_') {
            key.push(byte);
        } else {
            key.push(b'%');
            push_hex(key, byte);
        }
        if key.len() - start > MAX_PART_BYTES {
            key.truncate(start);
            key.extend_from_slice(b"%%");
            push_digest(key, text);
            return;
        }
    }
}

fn push_hex(key: &mut Vec<u8>, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for nibble in [byte >> 4, byte & 15] {
        key.extend(DIGITS.get(usize::from(nibble)));
    }
}

/// 16 bytes of a SHA-256 in hexadecimal: 32 characters.
fn push_digest(key: &mut Vec<u8>, text: &[u8]) {
    for byte in Sha256::digest(text).iter().take(16) {
        push_hex(key, *byte);
    }
}

/// The slot of a key in a Cluster: CRC16 (XMODEM) of its hash tag, modulo 16384.
pub(crate) fn slot(key: &[u8]) -> u16 {
    let tag = key
        .iter()
        .position(|byte| *byte == b'{')
        .and_then(|open| key.get(open + 1..))
        .and_then(|rest| {
            rest.split(|byte| *byte == b'}')
                .next()
                .filter(|tag| tag.len() < rest.len())
        })
        .filter(|tag| !tag.is_empty())
        .unwrap_or(key);
    let crc = tag.iter().fold(0_u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 {
                crc << 1
            } else {
                (crc << 1) ^ 0x1021
            }
        })
    });
    crc % N_SLOTS
}

/// The slots of a Cluster.
pub(crate) const N_SLOTS: u16 = 16_384;

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn tag(key: &[u8]) -> &[u8] {
        let open = key.iter().position(|byte| *byte == b'{').unwrap();
        let close = key.iter().position(|byte| *byte == b'}').unwrap();
        &key[open + 1..close]
    }

    fn scope() -> impl Strategy<Value = (u8, Option<String>, String)> {
        let text = || {
            prop_oneof![
                any::<String>(),
                "[{}:%.a\\x00\\n]{0,6}",
                "[a-c%]{30,40}",
                "x{4096}",
            ]
        };
        (0..5_u8, proptest::option::of(text()), text())
    }

    fn key(tenant: &str, (kind, value, other): &(u8, Option<String>, String)) -> Key {
        let value = value.as_deref();
        let scope = match kind {
            0 => KeyScope::Tenant,
            1 => KeyScope::Key(value),
            2 => KeyScope::Route(value),
            3 => KeyScope::Address(value),
            _ => KeyScope::Custom(value.unwrap_or("name"), other),
        };
        KeySpace::default().counts(tenant, "live", scope)
    }

    #[test]
    fn plain_names_stand_as_they_are() {
        let keys = KeySpace::default();
        let key = keys.counts("acme", "live", KeyScope::Tenant);
        assert_eq!(&*key, b"tg:1:{l.acme}:t");
        let key = keys.counts("a:b{c}", "test", KeyScope::Key(Some("k\n1")));
        assert_eq!(&*key, b"tg:1:{t.a%3ab%7bc%7d}:k:k%0a1");
        let keys = KeySpace::named("shop-1").unwrap();
        assert_eq!(&*keys.epoch(), b"tg:1:shop-1:epoch");
        assert!(KeySpace::named("a{b}").is_err());
    }

    #[cfg(feature = "billing")]
    #[test]
    fn the_keys_of_billing_are_their_own() {
        let keys = KeySpace::default();
        let event = keys.billing_event("stripe", "evt_1");
        assert_eq!(&*event, b"tg:1:{b.stripe/evt_1}:event");
        assert_ne!(
            keys.billing_event("a/b", "c"),
            keys.billing_event("a", "b/c")
        );
        assert_eq!(&*keys.dead_letters("str:ipe"), b"tg:1:{b.str%3aipe}:dead");
        assert_eq!(&*keys.account("cus_1"), b"tg:1:{c.cus_1}:account");
        assert_eq!(&*keys.accounts(), b"tg:1:accounts");
    }

    #[test]
    fn accounts_lie_in_one_slot_whatever_they_are_called() {
        let keys = KeySpace::default();
        let long = "{".repeat(4_096);
        let digest = "0".repeat(64);
        let accounts = [
            Account::Changes,
            Account::Key(&digest),
            Account::KeyId("acme"),
            Account::KeysOf("acme"),
            Account::Plans,
            Account::Tenant("acme"),
            Account::Tenant("}{:\n"),
            Account::Tenant(&long),
        ];
        let mut named: Vec<_> = accounts.map(|account| keys.shared_record(account)).into();
        let home = slot(b"accounts");
        assert!(named.iter().all(|key| slot(key) == home && key.len() <= 96));
        named.sort();
        named.dedup();
        assert_eq!(named.len(), accounts.len());
        assert_eq!(
            &*keys.shared_record(Account::Tenant("}{:\n")),
            b"tg:1:{accounts}:t:%7d%7b%3a%0a"
        );
        assert_eq!(&*keys.changes(), b"tg:1:changes");
        let usage = |usage| keys.usage("acme", "live", "20260115", usage);
        assert_eq!(
            &*usage(DayUsage::Api("my api")),
            b"tg:1:{l.acme}:u:20260115:my%20api"
        );
        assert_eq!(
            slot(&usage(DayUsage::Written)),
            slot(&usage(DayUsage::Api(&long)))
        );
        assert!(usage(DayUsage::Api(&long)).len() <= 128);
    }

    #[test]
    fn a_slot_is_that_of_the_cluster_specification() {
        // CLUSTER KEYSLOT says the same.
        assert_eq!(slot(b"123456789"), 12_739);
        assert_eq!(slot(b"foo{bar}zap"), slot(b"bar"));
        // An empty tag is none.
        assert_eq!(slot(b"foo{}bar"), 14_292);
        assert_eq!(slot(b"{user1000}.following"), 3_443);
    }

    #[test]
    fn a_stream_of_usage_and_the_tokens_of_its_batches_lie_in_one_slot() {
        let keys = KeySpace::default();
        let stream = keys.usage_stream(3);
        assert_eq!(&*stream, b"tg:1:{u.3}:s");
        let batch = keys.usage_batch(3, [1, 2]);
        assert_eq!(slot(&batch), slot(&stream));
        assert_ne!(batch, keys.usage_batch(3, [2, 1]));
        assert_ne!(slot(&stream), slot(&keys.usage_stream(4)));
    }

    #[test]
    fn an_absent_value_is_not_an_empty_one() {
        let keys = KeySpace::default();
        let absent = keys.counts("acme", "live", KeyScope::Route(None));
        let empty = keys.counts("acme", "live", KeyScope::Route(Some("")));
        assert_ne!(absent, empty);
    }

    #[test]
    fn a_field_is_short_and_its_own() {
        let name = "n".repeat(64);
        let long = KeySpace::field("window/60000000/10", &name);
        assert_eq!(long.len(), 33);
        assert_ne!(long, KeySpace::field("window/60000000/11", &name));
        assert_eq!(&*KeySpace::field("bucket", "my rate"), b"bucket my rate");
    }

    proptest! {
        #[test]
        fn different_names_have_different_keys_of_bounded_length_in_one_slot(
            tenants in proptest::collection::vec(prop_oneof![any::<String>(), "[{}:%]{1,4}", "y{4096}"], 1..4),
            scopes in proptest::collection::vec(scope(), 1..20),
        ) {
            let mut seen = HashMap::new();
            for tenant in &tenants {
                let mut slots = Vec::new();
                for scope in &scopes {
                    let key = key(tenant, scope);
                    prop_assert!(key.len() <= 128, "{} bytes", key.len());
                    prop_assert_eq!(key.iter().filter(|byte| matches!(byte, b'{' | b'}')).count(), 2);
                    prop_assert!(key.iter().all(u8::is_ascii_graphic));
                    slots.push(slot(&key));
                    prop_assert_eq!(slot(&key), slot(tag(&key)));
                    let (kind, value, other) = scope;
                    let meant = match kind {
                        0 => (tenant, *kind, None, None),
                        4 => (tenant, *kind, Some(value.as_deref().unwrap_or("name")), Some(other)),
                        _ => (tenant, *kind, value.as_deref(), None),
                    };
                    let first = seen.entry(key).or_insert(meant);
                    prop_assert_eq!(*first, meant);
                }
                slots.dedup();
                prop_assert_eq!(slots.len(), 1);
            }
        }
    }
}
