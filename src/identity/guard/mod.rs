//! Route layers: what one route asks of its caller.

mod deprecation;
mod ip_allow;
mod require_feature;
mod require_scope;
mod service;

pub(super) use self::ip_allow::parse_network;
pub use self::{
    deprecation::{Deprecated, DeprecationFuture, DeprecationLayer},
    ip_allow::IpAllowLayer,
    require_feature::RequireFeature,
    require_scope::RequireScope,
    service::{Guard, Guarded},
};
