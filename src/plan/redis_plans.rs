//! The plans on sale, in Redis, the same in every process.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::sync::Notify;

use super::{PlanCatalog, PlanDocument, catalog::WeakCatalog};
use crate::{
    error::ConfigError,
    redis_support::{
        Account, ChangeListener, Redis, RedisConnectError, VersionedError, find_versioned,
        replace_versioned,
    },
};

/// How long a document is not asked for again after it could not be read.
const RETRY: Duration = Duration::from_secs(1);

/// The plans on sale as one document in Redis, which governs the catalogs of every process.
///
/// 1. [`publish`](Self::publish) checks a document and puts it in the place of the version that was read.
/// 2. [`govern`](Self::govern) loads it into a catalog, and again whenever another version is published: the next
///    call of every tenant is under the new plans, in every process.
/// 3. A document that a process cannot take, for example because another version of the service has published a rule
///    that this one has no hook for, is refused there: the log (target `tollgate::plan`) names the field, and the old
///    plans stay.
///
/// Changes are pushed, and looked for four times a second where they may have been missed. While Redis does not
/// answer, the plans stay as they are. A catalog is governed for as long as anybody has it, though nobody kept a handle
/// to these plans. Cloning gives another handle.
///
/// ```no_run
/// use tollgate::{Tollgate, plan::{Plan, PlanCatalog, RedisPlans}, redis_support::Redis};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let redis = Redis::connect("redis://127.0.0.1:6379").await?;
/// let catalog = PlanCatalog::new([Plan::new("free")])?;
/// let plans = RedisPlans::new(&redis);
/// plans.govern(&catalog).await?;
/// let gate = Tollgate::builder().catalog(catalog).build()?;
/// # let _ = gate;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RedisPlans {
    inner: Arc<Inner>,
}

struct Inner {
    redis: Redis,
    governed: Mutex<Governed>,
    /// Something may have changed.
    wake: Notify,
}

#[derive(Default)]
struct Governed {
    catalogs: Vec<WeakCatalog>,
    /// The version that the catalogs have, or have refused.
    version: Option<u64>,
    is_following: bool,
}

/// Plans as they were published.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PublishedPlans {
    /// The document.
    pub document: PlanDocument,
    /// Grows with each change; the first has 1.
    pub version: u64,
}

/// Plans were not read or not published.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RedisPlansError {
    /// The document has another version than the one that was to be replaced.
    #[error("the plans were changed in the meantime: read them again and repeat the change")]
    Conflict,
    /// The document holds plans that cannot be.
    #[error(transparent)]
    Invalid(#[from] ConfigError),
    /// Redis cannot be reached or does not serve now; what was published may be there.
    #[error("the plans in Redis are unavailable")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Redis holds something that is no document of plans.
    #[error("Redis holds plans that cannot be read")]
    Corrupt(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl From<VersionedError> for RedisPlansError {
    fn from(error: VersionedError) -> Self {
        match error {
            VersionedError::Conflict | VersionedError::Exists | VersionedError::Missing => {
                Self::Conflict
            }
            VersionedError::Corrupt(cause) => Self::Corrupt(cause),
            VersionedError::Fault(fault) => Self::Unavailable(fault.into()),
        }
    }
}

impl ChangeListener for Inner {
    fn changed(&self, what: &str) {
        if what == "p" {
            self.wake.notify_one();
        }
    }

    fn lost(&self) {
        self.wake.notify_one();
    }
}

impl RedisPlans {
    /// Plans over a handle that is connected already.
    #[must_use]
    pub fn new(redis: &Redis) -> Self {
        let inner = Arc::new(Inner {
            redis: redis.clone(),
            governed: Mutex::default(),
            wake: Notify::new(),
        });
        let listener: Weak<Inner> = Arc::downgrade(&inner);
        redis.listen(listener);
        Self { inner }
    }

    /// Connects to one server with all defaults; share a [`Redis`] where keys or tenants are kept there too.
    ///
    /// # Errors
    ///
    /// [`RedisConnectError`] when the URL cannot be read, or the server cannot be reached or used.
    pub async fn connect(url: impl AsRef<str>) -> Result<Self, RedisConnectError> {
        Ok(Self::new(&Redis::connect(url).await?))
    }

    /// The plans that were published last, `None` when none ever were.
    ///
    /// # Errors
    ///
    /// [`RedisPlansError::Invalid`] names the field that cannot be read, [`RedisPlansError::Corrupt`], or
    /// [`RedisPlansError::Unavailable`].
    pub async fn load(&self) -> Result<Option<PublishedPlans>, RedisPlansError> {
        self.inner.load().await
    }

    /// Puts plans in the place of the version that was read, `None` where there were none, and announces them; says
    /// which version they have.
    ///
    /// # Errors
    ///
    /// [`RedisPlansError::Invalid`] names the field that is wrong, by its place in the document: then nothing is
    /// published. [`RedisPlansError::Conflict`] when there is another version by now, or a failure of Redis.
    pub async fn publish(
        &self,
        document: &PlanDocument,
        read: Option<u64>,
    ) -> Result<u64, RedisPlansError> {
        PlanCatalog::from_document(document)?;
        for catalog in self.inner.governed().living() {
            catalog.prepare(document)?;
        }
        let text = serde_json::to_string(document)
            .map_err(|error| RedisPlansError::Corrupt(error.into()))?;
        let redis = &self.inner.redis;
        let key = redis.account(Account::Plans);
        let version = replace_versioned(redis, &key, read, &text, "p").await?;
        self.inner.wake.notify_one();
        Ok(version)
    }

    /// Loads what was published into a catalog, and whatever is published from here on. Says which version it has
    /// now; `None` where nothing was published yet: then the catalog keeps its own plans until something is.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load), and [`RedisPlansError::Invalid`] when the catalog cannot take the plans: then it is not
    /// governed.
    pub async fn govern(&self, catalog: &PlanCatalog) -> Result<Option<u64>, RedisPlansError> {
        let published = self.load().await?;
        if let Some(published) = &published {
            catalog.replace_from_document(&published.document)?;
        }
        let version = published.map(|published| published.version);
        let mut governed = self.inner.governed();
        governed.catalogs.push(catalog.downgrade());
        // Another version may have come meanwhile, and others may have another one.
        governed.version = None;
        self.inner.wake.notify_one();
        if !governed.is_following {
            governed.is_following = true;
            let inner = Arc::clone(&self.inner);
            drop(self.inner.redis.runtime().spawn(follow(inner)));
        }
        Ok(version)
    }
}

impl Governed {
    /// The catalogs that anybody has; the others are forgotten.
    fn living(&mut self) -> Vec<PlanCatalog> {
        self.catalogs.retain(|catalog| catalog.upgrade().is_some());
        let living = self.catalogs.iter();
        living.filter_map(WeakCatalog::upgrade).collect()
    }
}

impl Inner {
    fn governed(&self) -> MutexGuard<'_, Governed> {
        self.governed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn load(&self) -> Result<Option<PublishedPlans>, RedisPlansError> {
        let key = self.redis.account(Account::Plans);
        let Some((text, version)) = find_versioned(&self.redis, &key).await? else {
            return Ok(None);
        };
        let document = PlanDocument::from_json(&text)?;
        Ok(Some(PublishedPlans { document, version }))
    }

    /// Brings all catalogs to what was published.
    async fn refresh(&self) -> Result<(), RedisPlansError> {
        let Some(published) = self.load().await? else {
            return Ok(());
        };
        let mut governed = self.governed();
        if governed.version == Some(published.version) {
            return Ok(());
        }
        governed.version = Some(published.version);
        for catalog in governed.living() {
            if let Err(error) = catalog.replace_from_document(&published.document) {
                refused(&error, Some(published.version));
            }
        }
        Ok(())
    }
}

fn refused(error: &(dyn std::error::Error + 'static), version: Option<u64>) {
    tracing::error!(
        target: "tollgate::plan",
        error,
        version,
        "the plans in Redis cannot be taken: the ones of before stay"
    );
}

fn unread(error: &(dyn std::error::Error + 'static)) {
    tracing::warn!(target: "tollgate::plan", error, "changed plans cannot be read yet");
}

/// Runs until nobody has a catalog any more.
async fn follow(inner: Arc<Inner>) {
    loop {
        {
            let mut governed = inner.governed();
            if governed.living().is_empty() {
                governed.is_following = false;
                return;
            }
        }
        // A wake-up that came while the plans were read is kept.
        let woken = tokio::time::timeout(RETRY, inner.wake.notified()).await;
        if woken.is_err() {
            continue;
        }
        match inner.refresh().await {
            Ok(()) => {}
            Err(error @ (RedisPlansError::Invalid(_) | RedisPlansError::Corrupt(_))) => {
                refused(&error, None);
            }
            Err(error) => {
                unread(&error);
                inner.wake.notify_one();
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

impl fmt::Debug for RedisPlans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisPlans")
            .field("redis", &self.inner.redis)
            .finish_non_exhaustive()
    }
}
