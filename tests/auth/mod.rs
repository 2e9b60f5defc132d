//! From a request to a key.

mod address;
mod challenge;
mod document;
mod extract;
mod failures;
mod format;
mod hasher;
mod secrecy;
mod store;
