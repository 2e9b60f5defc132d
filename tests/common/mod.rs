//! What the tests of every room share: a real server on a free port and real clients.

pub(crate) mod far_stores;
mod http_server;

pub(crate) use self::http_server::{Answer, Server, eventually, request, serve};
