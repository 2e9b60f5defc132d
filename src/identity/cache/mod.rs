//! What is known of keys and tenants, and until when it may be used.

mod digest_map;
mod entry;
mod keys;
mod settings;
mod tenants;

#[cfg(feature = "jwt")]
pub(super) use self::keys::{DigestCache, digest_cache};
pub use self::settings::CacheSettings;
pub(super) use self::{
    digest_map::DigestState,
    entry::{Entry, Resolved},
    keys::{Fill, KeyCache, Landed, Ticket},
    tenants::{TenantSlot, TenantSlots},
};

/// The `due` of what was announced to have changed: fetched at the next use, and never served stale.
const KNOWN_CHANGED: u64 = 0;
