//! Tokens of an identity provider, from their text to an identity.

mod cache;
mod claims;
mod compose;
mod http_source;
mod mutation;
mod refresh;
mod refusals;
mod settings;
pub(crate) mod signer;
pub(crate) mod stand;
