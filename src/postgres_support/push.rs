//! Changes that other processes make, heard by LISTEN.

use std::{
    sync::{Mutex, PoisonError, Weak},
    time::Duration,
};

use backon::{BackoffBuilder, ExponentialBuilder};
use sqlx::{PgPool, postgres::PgListener};
use tokio::{runtime::Handle, task::JoinHandle, time::timeout};

use super::Postgres;

/// How long a connection may be silent before it is asked whether it still lives: nobody tells of a cable that was cut.
const SILENCE: Duration = Duration::from_secs(10);
/// How long it may take to answer then.
const ANSWER: Duration = Duration::from_secs(5);
const FIRST_DELAY: Duration = Duration::from_millis(50);
const LAST_DELAY: Duration = Duration::from_secs(5);

/// Hears what is told on a channel.
pub(crate) trait Hears: Send + Sync + 'static {
    /// Somebody told this.
    fn heard(&self, text: &str);

    /// The channel is heard from now on; what was told before may have been missed.
    fn lost(&self);
}

/// The one task that listens to a channel, from the first time it is asked for until this is dropped.
#[derive(Debug, Default)]
pub(crate) struct Push(Mutex<Option<JoinHandle<()>>>);

impl Push {
    /// Begins to listen, unless it is done already.
    pub(crate) fn start(
        &self,
        postgres: &Postgres,
        channel: &'static str,
        hears: Weak<impl Hears>,
    ) {
        let mut task = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if task.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        match Handle::try_current() {
            Ok(runtime) => {
                let pool = postgres.pool().clone();
                *task = Some(runtime.spawn(listen(pool, channel, hears)));
            }
            Err(error) => tracing::error!(
                %error,
                channel,
                "changes of other processes are heard by a task, which needs a tokio runtime"
            ),
        }
    }
}

impl Drop for Push {
    fn drop(&mut self) {
        let task = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(task) = task.take() {
            task.abort();
        }
    }
}

async fn listen(pool: PgPool, channel: &'static str, hears: Weak<impl Hears>) {
    let delays = ExponentialBuilder::new()
        .with_jitter()
        .with_min_delay(FIRST_DELAY)
        .with_max_delay(LAST_DELAY)
        .without_max_times();
    let mut delay = delays.build();
    while hears.strong_count() > 0 && !pool.is_closed() {
        match hear(&pool, channel, &hears).await {
            // It was connected.
            Ok(()) => delay = delays.build(),
            Err(error) => tracing::warn!(
                %error,
                channel,
                "changes of other processes cannot be heard; records are cached until their lifetime ends"
            ),
        }
        tokio::time::sleep(delay.next().unwrap_or(LAST_DELAY)).await;
    }
}

/// Listens until the connection is lost. An error is one before anything could be heard.
async fn hear(
    pool: &PgPool,
    channel: &'static str,
    hears: &Weak<impl Hears>,
) -> Result<(), sqlx::Error> {
    let connect = async {
        let mut listener = PgListener::connect_with(pool).await?;
        // Another connection is another run of this function, which says that changes may have been missed.
        listener.eager_reconnect(false);
        listener.listen(channel).await?;
        Ok::<_, sqlx::Error>(listener)
    };
    let mut listener = timeout(ANSWER, connect)
        .await
        .map_err(|_| sqlx::Error::PoolTimedOut)??;
    if let Some(hears) = hears.upgrade() {
        hears.lost();
    }
    loop {
        match timeout(SILENCE, listener.try_recv()).await {
            Ok(Ok(Some(told))) => {
                let Some(hears) = hears.upgrade() else {
                    return Ok(());
                };
                hears.heard(told.payload());
            }
            Ok(Ok(None)) => break,
            Ok(Err(error)) => {
                tracing::debug!(%error, channel, "the connection that hears of changes failed");
                break;
            }
            Err(_) => {
                let alive = sqlx::query("SELECT 1").execute(&mut listener);
                if !matches!(timeout(ANSWER, alive).await, Ok(Ok(_))) {
                    break;
                }
            }
        }
    }
    tracing::info!(channel, "the connection that hears of changes was lost");
    Ok(())
}
