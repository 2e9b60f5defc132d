//! What every store on Redis shares: connections, the names of keys, scripts.
//!
//! 1. [`RedisConnector`] says how Redis is reached: one server, a Cluster, the master that Sentinels name, or a
//!    connection or pool that a service has already.
//! 2. A store made from it connects once and checks the server: [`RedisStartError`] says why one cannot be used,
//!    and the log (target `tollgate::redis`) warns of one that evicts any key or keeps nothing over a restart.
//! 3. A connection that breaks is made anew in the background, later and later up to a second apart; until then
//!    calls fail at once, and the failure policy of their rules decides.
//! 4. [`Redis`] is one such connection for the stores of keys, tenants and plans and the counters of usage, and a
//!    second one that hears what other processes change.
//! 5. A command that changes something is sent once. [`RedisFault`] says whether it may have been run.
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
//! *Deployment*: Redis 6.2 or newer, or Valkey. A user of limits needs `+eval +evalsha +hmget +hset +hdel +del +pexpire
//! +time +set +get +info +config|get` on the keys `tg:1:*`; without the last two the check at the start is left out.
//! Keys, tenants, plans and counters need `+exists +hget +hgetall +hincrby +incr +incrby +llen +lrange +ping +publish
//! +rpush +subscribe` too, and the channels `tg:1:*`. The stream of usage needs `+exists +xadd +xlen +xtrim +xinfo
//! +xpending`, and whoever reads it `+xgroup +xreadgroup +xautoclaim +xack` besides.

mod changes;
mod check;
mod connector;
mod fault;
mod handle;
mod heard;
mod held;
mod keys;
mod script;
mod shared_link;
mod versioned;

pub(crate) use self::{
    changes::ChangeListener,
    connector::{Failed, Link},
    held::HeldLink,
    keys::{Account, DayUsage, Key, KeyScope, KeySpace, N_SLOTS, slot},
    script::Script,
    versioned::{Foreign, VersionedError, find_versioned, replace_versioned, status},
};
pub use self::{
    check::RedisStartError,
    connector::RedisConnector,
    fault::RedisFault,
    handle::{Redis, RedisBuilder, RedisConnectError},
};
