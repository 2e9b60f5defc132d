//! The bytes of a snapshot.
//!
//! All numbers are little-endian.
//!
//! | bytes | content |
//! | --- | --- |
//! | 7 | `TGQUOTA` |
//! | 1 | version, 1 |
//! | 8 | length of the content |
//! | 4 | CRC-32 of the sixteen bytes before and the content |
//! | ... | content: the time of writing (8), the number of counts (8), the counts |
//!
//! A count is its name (tenant, environment, rule, shape, scope) and what is used of its period (five words of 8
//! bytes and the marks of told thresholds). A text is its length in two bytes and UTF-8.

use std::{net::IpAddr, sync::Arc};

use super::super::memory::{CountName, QuotaUse, SavedQuota, ScopeValue};
use crate::{
    clock::Timestamp,
    id::{Environment, KeyId, TenantId},
};

const MAGIC: &[u8; 7] = b"TGQUOTA";
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 20;

/// The longest content that is written or read, 256 MiB: some two million counts.
const MAX_CONTENT_BYTES: usize = 256 << 20;
pub(super) const MAX_FILE_BYTES: u64 = (HEADER_BYTES + MAX_CONTENT_BYTES) as u64;

/// Why bytes are no snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Damage {
    /// The file ends before its content does, as after a write that was cut short.
    #[error("the file is cut short: {found} of {expected} bytes")]
    CutShort {
        /// Bytes that are there.
        found: u64,
        /// Bytes that there should be.
        expected: u64,
    },
    /// The file is longer than it says.
    #[error("bytes follow the end of the content")]
    TooLong,
    /// The file is not a snapshot of quotas.
    #[error("the file does not begin like a snapshot of quotas")]
    NotASnapshot,
    /// The file was written by another version of this crate.
    #[error("the file has version {0} of the format, not 1")]
    OtherVersion(u8),
    /// The content is not what was written.
    #[error("the content does not fit its checksum")]
    Checksum,
    /// The content fits its checksum and makes no sense.
    #[error("the content cannot be read as counts")]
    Content,
}

/// What a snapshot holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) written_at: Timestamp,
    pub(super) counts: Vec<SavedQuota>,
}

/// Puts counts into the form of a file, one by one.
pub(super) struct Encoder {
    bytes: Vec<u8>,
    n_counts: u64,
    n_left_out: u64,
}

impl Encoder {
    pub(super) fn new(written_at: Timestamp) -> Self {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes.extend(written_at.as_unix_micros().to_le_bytes());
        // The number of counts, once it is known.
        bytes.extend([0; 8]);
        Self {
            bytes,
            n_counts: 0,
            n_left_out: 0,
        }
    }

    /// Adds a count; one that would make the file too long is left out and counted.
    pub(super) fn push(&mut self, saved: &SavedQuota) {
        let before = self.bytes.len();
        let is_written = push_count(&mut self.bytes, saved).is_some();
        if is_written && self.bytes.len() - HEADER_BYTES <= MAX_CONTENT_BYTES {
            self.n_counts += 1;
        } else {
            self.bytes.truncate(before);
            self.n_left_out += 1;
        }
    }

    pub(super) const fn n_counts(&self) -> u64 {
        self.n_counts
    }

    pub(super) const fn n_left_out(&self) -> u64 {
        self.n_left_out
    }

    /// The whole file.
    pub(super) fn finish(self) -> Vec<u8> {
        let mut bytes = self.bytes;
        let length = (bytes.len() - HEADER_BYTES) as u64;
        let number = self.n_counts.to_le_bytes();
        overwrite(&mut bytes, HEADER_BYTES + 8, &number);
        overwrite(&mut bytes, 0, MAGIC);
        overwrite(&mut bytes, 7, &[VERSION]);
        overwrite(&mut bytes, 8, &length.to_le_bytes());
        let sum = checksum(&bytes).unwrap_or_default();
        overwrite(&mut bytes, 16, &sum.to_le_bytes());
        bytes
    }
}

fn overwrite(bytes: &mut [u8], at: usize, with: &[u8]) {
    let places = bytes.iter_mut().skip(at);
    places.zip(with).for_each(|(to, from)| *to = *from);
}

fn checksum(file: &[u8]) -> Option<u32> {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(file.get(..16)?);
    hasher.update(file.get(HEADER_BYTES..)?);
    Some(hasher.finalize())
}

fn push_count(bytes: &mut Vec<u8>, saved: &SavedQuota) -> Option<()> {
    let CountName {
        tenant,
        environment,
        rule,
        shape,
        scope,
    } = &saved.name;
    push_text(bytes, tenant.as_str())?;
    bytes.push(match environment {
        Environment::Live => 0,
        Environment::Test => 1,
    });
    push_text(bytes, rule)?;
    push_text(bytes, shape)?;
    match scope {
        ScopeValue::Tenant => bytes.push(0),
        ScopeValue::Key(None) => bytes.push(1),
        ScopeValue::Key(Some(key)) => {
            bytes.push(2);
            push_text(bytes, key.as_str())?;
        }
        ScopeValue::Route(None) => bytes.push(3),
        ScopeValue::Route(Some(route)) => {
            bytes.push(4);
            push_text(bytes, route)?;
        }
        ScopeValue::Address(None) => bytes.push(5),
        ScopeValue::Address(Some(IpAddr::V4(address))) => {
            bytes.push(6);
            bytes.extend(address.octets());
        }
        ScopeValue::Address(Some(IpAddr::V6(address))) => {
            bytes.push(7);
            bytes.extend(address.octets());
        }
        ScopeValue::Custom(name, value) => {
            bytes.push(8);
            push_text(bytes, name)?;
            push_text(bytes, value)?;
        }
    }
    let QuotaUse {
        units,
        start,
        end,
        earliest,
        told: [low, high],
    } = saved.used;
    for word in [units, start, end, earliest, low, high] {
        bytes.extend(word.to_le_bytes());
    }
    Some(())
}

/// `None` for a text longer than any name that this crate makes.
fn push_text(bytes: &mut Vec<u8>, text: &str) -> Option<()> {
    let length = u16::try_from(text.len()).ok()?;
    bytes.extend(length.to_le_bytes());
    bytes.extend(text.as_bytes());
    Some(())
}

/// Reads a file.
pub(super) fn decode(file: &[u8]) -> Result<Content, Damage> {
    let found = file.len() as u64;
    let mut header = Reader(file);
    let short = |expected| Damage::CutShort { found, expected };
    let no_header = || short(HEADER_BYTES as u64);
    let magic: [u8; 7] = header.take().ok_or_else(no_header)?;
    if magic != *MAGIC {
        return Err(Damage::NotASnapshot);
    }
    let [version] = header.take().ok_or_else(no_header)?;
    if version != VERSION {
        return Err(Damage::OtherVersion(version));
    }
    let length = header.word().ok_or_else(no_header)?;
    let sum = header.take().map(u32::from_le_bytes);
    let sum = sum.ok_or_else(no_header)?;
    let expected = length.saturating_add(HEADER_BYTES as u64);
    if found < expected {
        return Err(short(expected));
    }
    if found > expected {
        return Err(Damage::TooLong);
    }
    if checksum(file) != Some(sum) {
        return Err(Damage::Checksum);
    }
    header.content().ok_or(Damage::Content)
}

/// The rest of the bytes.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    fn word(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = self.take().map(u16::from_le_bytes)?;
        std::str::from_utf8(self.bytes(length.into())?).ok()
    }

    fn shared(&mut self) -> Option<Arc<str>> {
        self.text().map(Arc::from)
    }

    fn content(&mut self) -> Option<Content> {
        let written_at = Timestamp::from_unix_micros(self.word()?);
        let n_counts = self.word()?;
        let mut counts = Vec::new();
        for _ in 0..n_counts {
            counts.push(self.count()?);
        }
        self.0.is_empty().then_some(Content { written_at, counts })
    }

    fn count(&mut self) -> Option<SavedQuota> {
        let name = CountName {
            tenant: TenantId::new(self.text()?).ok()?,
            environment: match self.take()? {
                [0] => Environment::Live,
                [1] => Environment::Test,
                _ => return None,
            },
            rule: self.shared()?,
            shape: self.shared()?,
            scope: self.scope()?,
        };
        let used = QuotaUse {
            units: self.word()?,
            start: self.word()?,
            end: self.word()?,
            earliest: self.word()?,
            told: [self.word()?, self.word()?],
        };
        let is_period = used.earliest <= used.start && used.start <= used.end;
        is_period.then_some(SavedQuota { name, used })
    }

    fn scope(&mut self) -> Option<ScopeValue> {
        let [kind] = self.take()?;
        Some(match kind {
            0 => ScopeValue::Tenant,
            1 => ScopeValue::Key(None),
            2 => ScopeValue::Key(Some(KeyId::new(self.text()?).ok()?)),
            3 => ScopeValue::Route(None),
            4 => ScopeValue::Route(Some(self.shared()?)),
            5 => ScopeValue::Address(None),
            6 => ScopeValue::Address(Some(self.take::<4>()?.into())),
            7 => ScopeValue::Address(Some(self.take::<16>()?.into())),
            8 => ScopeValue::Custom(self.shared()?, self.shared()?),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(content: &Content) -> Vec<u8> {
        let mut encoder = Encoder::new(content.written_at);
        content.counts.iter().for_each(|count| encoder.push(count));
        assert_eq!(encoder.n_left_out(), 0);
        encoder.finish()
    }

    fn text() -> impl Strategy<Value = Arc<str>> {
        "[a-z/{}äß0-9]{1,40}".prop_map(Arc::from)
    }

    fn scope() -> impl Strategy<Value = ScopeValue> {
        prop_oneof![
            Just(ScopeValue::Tenant),
            proptest::option::of(text())
                .prop_map(|key| ScopeValue::Key(key.map(|key| KeyId::new(key).unwrap()))),
            proptest::option::of(text()).prop_map(ScopeValue::Route),
            proptest::option::of(any::<IpAddr>()).prop_map(ScopeValue::Address),
            (text(), text()).prop_map(|(name, value)| ScopeValue::Custom(name, value)),
        ]
    }

    fn count() -> impl Strategy<Value = SavedQuota> {
        let name = (text(), any::<bool>(), text(), text(), scope());
        let used = (any::<[u64; 3]>(), any::<u64>(), any::<[u64; 2]>());
        (name, used).prop_map(
            |((tenant, test, rule, shape, scope), (mut times, units, told))| {
                times.sort_unstable();
                let [earliest, start, end] = times;
                SavedQuota {
                    name: CountName {
                        tenant: TenantId::new(tenant).unwrap(),
                        environment: if test {
                            Environment::Test
                        } else {
                            Environment::Live
                        },
                        rule,
                        shape,
                        scope,
                    },
                    used: QuotaUse {
                        units,
                        start,
                        end,
                        earliest,
                        told,
                    },
                }
            },
        )
    }

    fn content() -> impl Strategy<Value = Content> {
        let written_at = (0..u64::MAX).prop_map(Timestamp::from_unix_micros);
        (written_at, proptest::collection::vec(count(), 0..8))
            .prop_map(|(written_at, counts)| Content { written_at, counts })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(content in content()) {
            prop_assert_eq!(decode(&encode(&content)), Ok(content));
        }

        #[test]
        fn every_cut_and_every_flipped_bit_is_found(content in content(), at in any::<prop::sample::Index>(), bit in 0..8_u32) {
            let file = encode(&content);
            for length in 0..file.len() {
                prop_assert!(decode(&file[..length]).is_err(), "cut at {}", length);
            }
            let mut flipped = file.clone();
            flipped[at.index(file.len())] ^= 1_u8 << bit;
            prop_assert!(decode(&flipped).is_err());
            let mut longer = file;
            longer.push(0);
            prop_assert_eq!(decode(&longer), Err(Damage::TooLong));
        }

        #[test]
        fn bytes_of_any_kind_are_refused_and_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(decode(&bytes).is_err());
            // Behind a header that fits, so that the content is looked at.
            let mut file = vec![0; HEADER_BYTES];
            file.extend(&bytes);
            overwrite(&mut file, 0, MAGIC);
            overwrite(&mut file, 7, &[VERSION]);
            overwrite(&mut file, 8, &(bytes.len() as u64).to_le_bytes());
            let sum = checksum(&file).unwrap();
            overwrite(&mut file, 16, &sum.to_le_bytes());
            if let Err(damage) = decode(&file) {
                prop_assert_eq!(damage, Damage::Content);
            }
        }
    }

    #[test]
    fn a_number_of_counts_that_no_file_could_hold_takes_no_memory() {
        let mut file = encode(&Content {
            written_at: Timestamp::UNIX_EPOCH,
            counts: Vec::new(),
        });
        overwrite(&mut file, HEADER_BYTES + 8, &u64::MAX.to_le_bytes());
        let sum = checksum(&file).unwrap();
        overwrite(&mut file, 16, &sum.to_le_bytes());
        assert_eq!(decode(&file), Err(Damage::Content));
    }

    #[test]
    fn a_version_to_come_is_told_by_its_number() {
        let mut file = encode(&Content {
            written_at: Timestamp::UNIX_EPOCH,
            counts: Vec::new(),
        });
        overwrite(&mut file, 7, &[2]);
        assert_eq!(decode(&file), Err(Damage::OtherVersion(2)));
    }
}
