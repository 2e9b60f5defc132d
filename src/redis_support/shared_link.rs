//! One connection for everybody who needs one, made anew when it breaks.

use std::{sync::Arc, time::Duration};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use redis::{Cmd, Value};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use super::{
    RedisConnector, RedisFault, Script,
    connector::{Failed, Link},
};

const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// A record that is damaged must not cost a connection each time that it is read.
const DISTRUST_AFTER: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub(super) struct SharedLink(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    connector: RedisConnector,
    current: watch::Sender<Current>,
}

/// The connection, and the how many-th it is; none while a task makes it.
#[derive(Clone, Debug)]
struct Current {
    number: u64,
    link: Option<Link>,
    made_at: Instant,
}

/// How long to wait before the next attempt to connect.
pub(super) fn pauses() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(20))
        .with_max_delay(LONGEST_PAUSE)
        .with_jitter()
        .without_max_times()
        .build()
}

pub(super) fn next_pause(pauses: &mut ExponentialBackoff) -> Duration {
    pauses.next().unwrap_or(LONGEST_PAUSE)
}

#[derive(Debug, thiserror::Error)]
#[error("the connection to Redis is down and being made anew")]
struct Down;

impl SharedLink {
    pub(super) fn new(connector: RedisConnector, link: Link) -> Self {
        let link = Some(link);
        let (current, _) = watch::channel(Current {
            number: 0,
            link,
            made_at: Instant::now(),
        });
        Self(Arc::new(Shared { connector, current }))
    }

    pub(super) fn connector(&self) -> &RedisConnector {
        &self.0.connector
    }

    /// Runs a script; once more in full on a server that does not know it, and has done nothing.
    pub(super) async fn run(
        &self,
        script: &Script,
        keys: &[impl AsRef<[u8]>],
        arguments: &[impl AsRef<[u8]>],
    ) -> Result<Value, RedisFault> {
        match self.call(script.with(false, keys, arguments)).await {
            Err(failed) if failed.is_no_script => {
                self.call(script.with(true, keys, arguments)).await
            }
            answer => answer,
        }
        .map_err(|failed| failed.fault)
    }

    /// Sends a command that changes nothing: once more over a new connection where the old one broke.
    pub(super) async fn read(&self, command: &Cmd) -> Result<Value, RedisFault> {
        match self.call(command.clone()).await {
            Err(failed) if failed.is_broken => self.call(command.clone()).await,
            answer => answer,
        }
        .map_err(|failed| failed.fault)
    }

    async fn call(&self, command: Cmd) -> Result<Value, Failed> {
        let (number, mut link) = self.current().await?;
        let answer = link.call(command, self.0.connector.response_timeout).await;
        // An answer that is late may never come, and where it was swallowed on the way the next one would pass for it.
        if let Err(failed) = &answer
            && (failed.is_broken || failed.is_timeout)
        {
            self.renew(number);
        }
        answer
    }

    /// The connection; one that is being made is waited for as long as making one may take.
    async fn current(&self) -> Result<(u64, Link), Failed> {
        let mut current = self.0.current.subscribe();
        let up = current.wait_for(|current| current.link.is_some());
        match timeout(self.0.connector.connect_timeout, up).await {
            Ok(Ok(current)) => match &current.link {
                Some(link) => Ok((current.number, link.clone())),
                None => Err(Failed::before_sending(Down)),
            },
            Ok(Err(_)) | Err(_) => Err(Failed::before_sending(Down)),
        }
    }

    /// An answer was of another form than its question has: where one was swallowed on the way, each one since then
    /// answers the question before. Another connection begins anew, unless this one is new itself.
    pub(super) fn distrust(&self) {
        let (number, made_at) = {
            let current = self.0.current.borrow();
            (current.number, current.made_at)
        };
        if made_at.elapsed() >= DISTRUST_AFTER {
            self.renew(number);
        }
    }

    /// Has a new connection made in place of this one, unless that is done already.
    fn renew(&self, number: u64) {
        let is_first = self.0.current.send_if_modified(|current| {
            let is_current = current.number == number && current.link.is_some();
            if is_current {
                current.link = None;
            }
            is_current
        });
        if !is_first {
            return;
        }
        let shared = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            let mut pauses = pauses();
            // Until it is made or nobody needs it any more.
            while let Some(shared) = shared.upgrade() {
                match shared.connector.connect().await {
                    Ok(link) => {
                        shared.current.send_modify(|current| {
                            current.number += 1;
                            current.link = Some(link);
                            current.made_at = Instant::now();
                        });
                        return;
                    }
                    Err(error) => {
                        tracing::debug!(target: "tollgate::redis", %error, "no connection yet");
                        drop(shared);
                        tokio::time::sleep(next_pause(&mut pauses)).await;
                    }
                }
            }
        });
    }
}
