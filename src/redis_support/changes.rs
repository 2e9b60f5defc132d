//! Changes of keys, tenants and plans, heard by every process.
//!
//! Each change counts the key of changes up by one and publishes its number with what was changed, in the script
//! that makes it. A process hears it on one subscription for all of its stores. A number that was skipped, or a count
//! that is ahead of what was heard, says that something was missed: then everything cached is forgotten. So a
//! connection that is half open, a node of a Cluster that is cut off and a server that has lost data are noticed
//! within two looks at the count, whether anything is published or not.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Weak},
    time::Duration,
};

use backon::ExponentialBackoff;
use futures_util::StreamExt as _;
use redis::{
    Msg, RedisError,
    aio::{PubSub, PubSubSink, PubSubStream},
};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::{
    Account, KeySpace, RedisFault,
    heard::Heard,
    shared_link::{SharedLink, next_pause, pauses},
};
use crate::listeners::Listeners;

/// How often the count of changes is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Every so many looks the subscription is asked for a sign of life.
const LOOKS_BETWEEN_PINGS: u32 = 4;
const PING_TIMEOUT: Duration = Duration::from_secs(1);

/// Hears of changes in the order in which they were made.
pub(crate) trait ChangeListener: Send + Sync {
    /// Something was changed, as the script that changed it has put it.
    fn changed(&self, what: &str);

    /// Changes may have been missed.
    fn lost(&self);
}

/// What a process knows of the changes.
pub(super) struct Changes {
    link: SharedLink,
    space: KeySpace,
    pub(super) listeners: Listeners<dyn ChangeListener>,
    metrics: ChangeMetrics,
}

struct ChangeMetrics {
    missed: metrics::Counter,
    subscriptions: metrics::Counter,
}

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The task that follows the changes.
struct Follower {
    changes: Weak<Changes>,
    heard: Heard,
    subscription: Option<(PubSubSink, PubSubStream)>,
    subscribing: Option<Boxed<Result<PubSub, RedisError>>>,
    looking: Option<Boxed<Result<u64, RedisFault>>>,
    pinging: Option<Boxed<bool>>,
    pauses: ExponentialBackoff,
    n_attempts: usize,
    n_looks: u32,
}

enum Event {
    Looked(Result<u64, RedisFault>),
    Message(Option<Msg>),
    Pinged(bool),
    Subscribed(Result<PubSub, RedisError>),
    Tick,
}

/// Never, where there is nothing to wait for.
async fn finish<T>(future: &mut Option<Boxed<T>>) -> T {
    match future {
        Some(running) => {
            let output = running.await;
            *future = None;
            output
        }
        None => std::future::pending().await,
    }
}

async fn next_message(subscription: &mut Option<(PubSubSink, PubSubStream)>) -> Option<Msg> {
    match subscription {
        Some((_, stream)) => stream.next().await,
        None => std::future::pending().await,
    }
}

impl Changes {
    pub(super) fn new(link: SharedLink, space: KeySpace) -> Self {
        Self {
            link,
            space,
            listeners: Listeners::default(),
            metrics: ChangeMetrics {
                missed: metrics::counter!("tollgate_redis_changes_missed_total"),
                subscriptions: metrics::counter!("tollgate_redis_subscriptions_total"),
            },
        }
    }

    /// Follows the changes until nobody holds them any more.
    pub(super) async fn follow(changes: Weak<Self>) {
        let mut follower = Follower {
            changes,
            heard: Heard::default(),
            subscription: None,
            subscribing: None,
            looking: None,
            pinging: None,
            pauses: pauses(),
            n_attempts: 0,
            n_looks: 0,
        };
        follower.subscribe(Duration::ZERO);
        let mut tick = interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let event = tokio::select! {
                biased;
                message = next_message(&mut follower.subscription) => Event::Message(message),
                made = finish(&mut follower.subscribing) => Event::Subscribed(made),
                count = finish(&mut follower.looking) => Event::Looked(count),
                is_alive = finish(&mut follower.pinging) => Event::Pinged(is_alive),
                _ = tick.tick() => Event::Tick,
            };
            let Some(changes) = follower.changes.upgrade() else {
                return;
            };
            follower.handle(event, &changes);
        }
    }

    async fn count(link: SharedLink, space: KeySpace) -> Result<u64, RedisFault> {
        let mut get = redis::cmd("GET");
        get.arg(&*space.shared_record(Account::Changes));
        let value = link.read(&get).await?;
        match redis::from_redis_value::<Option<u64>>(value) {
            Ok(count) => Ok(count.unwrap_or(0)),
            Err(error) => {
                link.distrust();
                Err(RedisFault::unknown(error))
            }
        }
    }
}

impl Follower {
    fn handle(&mut self, event: Event, changes: &Arc<Changes>) {
        match event {
            Event::Looked(Ok(count)) => self.looked(count, changes),
            Event::Looked(Err(error)) => {
                let error: &dyn std::error::Error = &error;
                tracing::debug!(target: "tollgate::redis", error, "the count of changes cannot be read");
            }
            Event::Message(Some(message)) => self.hear(&message, changes),
            Event::Pinged(true) => {}
            Event::Message(None) | Event::Pinged(false) => {
                self.subscription = None;
                self.pinging = None;
                self.subscribe(Duration::ZERO);
            }
            Event::Subscribed(Ok(made)) => {
                changes.metrics.subscriptions.increment(1);
                self.subscription = Some(made.split());
                self.pauses = pauses();
                self.heard.begin_anew();
                self.look(changes);
            }
            Event::Subscribed(Err(error)) => {
                tracing::debug!(target: "tollgate::redis", %error, "no subscription yet");
                let pause = next_pause(&mut self.pauses);
                self.subscribe(pause);
            }
            Event::Tick => {
                if self.looking.is_none() {
                    self.look(changes);
                }
                self.n_looks = (self.n_looks + 1) % LOOKS_BETWEEN_PINGS;
                if self.n_looks == 0 && self.pinging.is_none() {
                    self.ping();
                }
            }
        }
    }

    fn subscribe(&mut self, pause: Duration) {
        let Some(changes) = self.changes.upgrade() else {
            return;
        };
        if !changes.link.connector().can_subscribe() {
            return;
        }
        let (connector, channel) = (changes.link.connector().clone(), changes.space.changes());
        let attempt = self.n_attempts;
        self.n_attempts = attempt.wrapping_add(1);
        self.subscribing = Some(Box::pin(async move {
            sleep(pause).await;
            connector.subscribe(&channel, attempt).await
        }));
    }

    fn look(&mut self, changes: &Changes) {
        self.heard.ask();
        let (link, space) = (changes.link.clone(), changes.space.clone());
        self.looking = Some(Box::pin(Changes::count(link, space)));
    }

    fn ping(&mut self) {
        if let Some((sink, _)) = &self.subscription {
            let mut sink = sink.clone();
            self.pinging = Some(Box::pin(async move {
                let pong = timeout(PING_TIMEOUT, sink.ping::<redis::Value>()).await;
                pong.is_ok_and(|pong| pong.is_ok())
            }));
        }
    }

    /// A message is the change's number, a space, and what was changed.
    fn hear(&mut self, message: &Msg, changes: &Changes) {
        let payload = std::str::from_utf8(message.get_payload_bytes()).unwrap_or_default();
        let Some((number, what)) = payload
            .split_once(' ')
            .and_then(|(number, what)| Some((number.parse::<u64>().ok()?, what)))
        else {
            tracing::warn!(target: "tollgate::redis", "somebody else publishes on the channel of changes");
            return;
        };
        changes.listeners.tell(|listener| listener.changed(what));
        if self.heard.hear(number) {
            changes.metrics.missed.increment(1);
            self.tell_lost(changes);
        }
    }

    fn looked(&mut self, count: u64, changes: &Changes) {
        // What nobody has heard before this process asked for the first time was not missed.
        let has_begun = self.heard.has_begun();
        if self.heard.look(count, self.subscription.is_some()) {
            changes.metrics.missed.increment(u64::from(has_begun));
            self.tell_lost(changes);
        }
    }

    fn tell_lost(&self, changes: &Changes) {
        changes.listeners.tell(ChangeListener::lost);
    }
}
