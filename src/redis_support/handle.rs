//! What everything that keeps accounts and usage in Redis shares.

use std::{
    fmt,
    sync::{Arc, Once, Weak},
    time::Duration,
};

use redis::{Cmd, Value};
use tokio::runtime::Handle;

use super::{
    Account, ChangeListener, DayUsage, Key, KeySpace, RedisConnector, RedisFault, RedisStartError,
    Script, changes::Changes, shared_link::SharedLink,
};
use crate::{error::ConfigError, id::Environment};

/// A listener that panics each time must not keep a processor busy.
const PAUSE_AFTER_PANIC: Duration = Duration::from_millis(100);

/// A connection for keys, tenants, plans and counters of usage, made anew when it breaks, and a second one that hears
/// of changes.
///
/// Cloning gives another handle to the same connections. Share one among all stores of a process: they hear of
/// changes together. Limits have a connection of their own, see [`RedisLimits`](crate::limit::RedisLimits). While a
/// connection is made anew, who needs it waits for as long as making one may take
/// ([`connect_timeout`](RedisConnector::connect_timeout)).
///
/// ```no_run
/// use tollgate::{auth::RedisKeyStore, redis_support::Redis, tenant::RedisTenantStore};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let redis = Redis::connect("redis://127.0.0.1:6379").await?;
/// let (keys, tenants) = (RedisKeyStore::new(&redis), RedisTenantStore::new(&redis));
/// # let _ = (keys, tenants);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Redis(Arc<Inner>);

struct Inner {
    link: SharedLink,
    space: KeySpace,
    changes: Arc<Changes>,
    is_following: Once,
    runtime: Handle,
}

/// Sets up a [`Redis`]; made by [`Redis::builder`].
#[derive(Clone, Debug)]
#[must_use]
pub struct RedisBuilder {
    connector: RedisConnector,
    space: KeySpace,
}

/// Redis cannot be used as it was named.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RedisConnectError {
    /// A setting cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The server cannot be used.
    #[error(transparent)]
    Start(#[from] RedisStartError),
}

impl RedisBuilder {
    /// Puts a name into every key, `tg:1:<name>:..`, for deployments that share a server. None unless set.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when the name is not 1 to 16 characters of `a-z`, `0-9` and `-`.
    pub fn namespace(mut self, name: impl AsRef<str>) -> Result<Self, ConfigError> {
        self.space = KeySpace::named(name.as_ref())?;
        Ok(self)
    }

    /// Connects, and checks the server.
    ///
    /// # Errors
    ///
    /// [`RedisStartError`] when the server cannot be reached, is older than 6.2, is a replica, or is a node of a
    /// Cluster that was named as a single server.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub async fn connect(self) -> Result<Redis, RedisStartError> {
        let link = self.connector.start().await?;
        let link = SharedLink::new(self.connector, link);
        let changes = Changes::new(link.clone(), self.space.clone());
        Ok(Redis(Arc::new(Inner {
            link,
            space: self.space,
            changes: Arc::new(changes),
            is_following: Once::new(),
            runtime: Handle::current(),
        })))
    }
}

impl Redis {
    /// Connects to one server with all defaults.
    ///
    /// # Errors
    ///
    /// [`RedisConnectError`] when the URL cannot be read, or the server cannot be reached or used.
    pub async fn connect(url: impl AsRef<str>) -> Result<Self, RedisConnectError> {
        let connector = RedisConnector::single(url)?;
        Ok(Self::builder(connector).connect().await?)
    }

    /// Sets a handle up that is reached in any other way.
    ///
    /// Over a [`pool`](RedisConnector::pool) or a [`manager`](RedisConnector::manager) nothing can be heard: four
    /// times a second the process asks whether anything was changed, and then forgets all that it has cached.
    pub fn builder(connector: RedisConnector) -> RedisBuilder {
        RedisBuilder {
            connector,
            space: KeySpace::default(),
        }
    }

    /// Tells of all changes from here on, in the runtime that the handle was made in.
    pub(crate) fn listen(&self, listener: Weak<dyn ChangeListener>) {
        let inner = &*self.0;
        inner.changes.listeners.add(listener);
        inner.is_following.call_once(|| {
            let changes = Arc::downgrade(&inner.changes);
            drop(inner.runtime.spawn(keep_following(changes)));
        });
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.0.runtime
    }

    pub(crate) fn account(&self, account: Account<'_>) -> Key {
        self.0.space.shared_record(account)
    }

    pub(crate) fn changes(&self) -> Key {
        self.0.space.changes()
    }

    pub(crate) fn usage(
        &self,
        tenant: &str,
        environment: Environment,
        day: &str,
        usage: DayUsage<'_>,
    ) -> Key {
        self.0.space.usage(tenant, environment.as_str(), day, usage)
    }

    /// Runs a script, at most once.
    pub(crate) async fn run(
        &self,
        script: &Script,
        keys: &[impl AsRef<[u8]>],
        arguments: &[impl AsRef<[u8]>],
    ) -> Result<Value, RedisFault> {
        self.0.link.run(script, keys, arguments).await
    }

    /// An answer was not of the form that its question has: the connection may be out of step.
    pub(crate) fn distrust(&self) {
        self.0.link.distrust();
    }

    /// Sends a command that changes nothing.
    pub(crate) async fn read(&self, command: &Cmd) -> Result<Value, RedisFault> {
        self.0.link.read(command).await
    }
}

/// Follows the changes until nobody holds them any more, also past a listener that panics.
async fn keep_following(changes: Weak<Changes>) {
    while changes.strong_count() > 0 {
        let following = tokio::spawn(Changes::follow(Weak::clone(&changes)));
        if let Err(error) = following.await {
            tracing::error!(target: "tollgate::redis", %error, "somebody who hears of changes has panicked");
            tokio::time::sleep(PAUSE_AFTER_PANIC).await;
        }
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis")
            .field("connector", self.0.link.connector())
            .finish_non_exhaustive()
    }
}
