//! A connection that is kept until it breaks, and then made anew by the next command.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use redis::Value;

use super::{
    connector::{Failed, Link, RedisConnector},
    fault::RedisFault,
    script::Script,
};

pub(crate) struct HeldLink {
    connector: RedisConnector,
    link: Mutex<Option<Link>>,
    /// How long an answer may take.
    patience: Duration,
}

impl fmt::Debug for HeldLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.connector, f)
    }
}

impl HeldLink {
    pub(crate) const fn new(
        connector: RedisConnector,
        link: Option<Link>,
        patience: Duration,
    ) -> Self {
        Self {
            connector,
            link: Mutex::new(link),
            patience,
        }
    }

    async fn link(&self) -> Result<Link, RedisFault> {
        let held = self.hold().clone();
        if let Some(link) = held {
            return Ok(link);
        }
        let link = self
            .connector
            .connect()
            .await
            .map_err(RedisFault::not_run)?;
        *self.hold() = Some(link.clone());
        Ok(link)
    }

    fn hold(&self) -> std::sync::MutexGuard<'_, Option<Link>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What went wrong with the connection; the next command makes another where it may be the connection's fault.
    fn failed(&self, failed: Failed) -> RedisFault {
        if failed.is_broken || failed.is_timeout {
            *self.hold() = None;
        }
        failed.fault
    }

    /// Sends a command once. The answer may take so much longer as the command itself waits.
    #[cfg(all(feature = "postgres", feature = "usage"))]
    pub(crate) async fn call(
        &self,
        command: redis::Cmd,
        waits: Duration,
    ) -> Result<Value, RedisFault> {
        let mut link = self.link().await?;
        link.call(command, self.patience.saturating_add(waits))
            .await
            .map_err(|failed| self.failed(failed))
    }

    /// Runs a script once, with all its arguments.
    pub(crate) async fn run(
        &self,
        script: &Script,
        keys: &[impl AsRef<[u8]>],
        arguments: &[Vec<u8>],
    ) -> Result<Value, RedisFault> {
        let mut link = self.link().await?;
        let answer = match link
            .call(script.with(false, keys, arguments), self.patience)
            .await
        {
            Err(failed) if failed.is_no_script => {
                let in_full = script.with(true, keys, arguments);
                link.call(in_full, self.patience).await
            }
            answer => answer,
        };
        answer.map_err(|failed| self.failed(failed))
    }
}
