//! What every store on Redis shares: connections, the names of keys, scripts.
//!
//! 1. [`RedisConnector`] says how Redis is reached: one server, a Cluster, the master that Sentinels name, or a
//!    connection or pool that a service has already.
//! 2. A store made from it connects once and checks the server: [`RedisStartError`] says why one cannot be used,
//!    and the log (target `tollgate::redis`) warns of one that evicts any key or keeps nothing over a restart.
//! 3. A connection that breaks is made anew in the background, later and later up to a second apart; until then
//!    calls fail at once, and the failure policy of their rules decides.
//! 4. A command that changes something is sent once. [`RedisFault`] says whether it may have been run.
//!
//! ```
//! use std::time::Duration;
//! use tollgate::redis_support::RedisConnector;
//!
//! let connector = RedisConnector::single("rediss://limiter:s3cret@redis.internal")?
//!     .connect_timeout(Duration::from_millis(500))
//!     .response_timeout(Duration::from_millis(20));
//! assert!(format!("{connector:?}").contains("redis.internal:6379"));
//! # Ok::<(), tollgate::error::ConfigError>(())
//! ```
//!
//! *Deployment*: Redis 6.2 or newer, or Valkey. For limits a user needs `+eval +evalsha +hmget +hset +hdel +del +pexpire +time
//! +set +get +info +config|get` on the keys `tg:1:*`; without the last two the check at the start is left out. The
//! stream of usage needs `+eval +evalsha +exists +set +xadd +xlen +xtrim +xinfo +xpending`, and whoever reads it
//! `+xgroup +xreadgroup +xautoclaim +xack` besides.

mod check;
mod connector;
mod fault;
mod held;
mod keys;
mod script;

pub use self::{check::RedisStartError, connector::RedisConnector, fault::RedisFault};
pub(crate) use self::{
    connector::{Failed, Link},
    held::HeldLink,
    keys::{Key, KeyScope, KeySpace, N_SLOTS, slot},
    script::Script,
};
