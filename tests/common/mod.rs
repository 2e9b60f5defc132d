//! What the tests of every room share: a real server on a free port and real clients.

pub(crate) mod child;
pub(crate) mod clickhouse;
pub(crate) mod far_stores;
pub(crate) mod fault_proxy;
mod http_server;
pub(crate) mod postgres;
pub(crate) mod redis;
pub(crate) mod redis_cluster;
pub(crate) mod stripe;
pub(crate) mod temp;

pub(crate) use self::http_server::{Answer, Server, eventually, request, serve};
