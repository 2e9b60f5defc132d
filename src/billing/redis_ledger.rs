use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use redis::{Cmd, FromRedisValue, Value};

use super::{
    Account, AccountStore, Claim, Claimed, DeadLetter, EventKey, EventLedger, LedgerError,
    MIN_RETENTION, Try,
    ledger::{check_retention, token},
};
use crate::{
    clock::Timestamp,
    error::ConfigError,
    redis_support::{Key, KeySpace, Link, RedisConnector, RedisStartError, Script},
};

/// Events and accounts in Redis, under `tg:1:{b…}` and `tg:1:{c…}`.
///
/// Leases run by the server's clock. What Redis loses in a failover or a restart is forgotten, and an event that comes again
/// is new then: keep billing in PostgreSQL where that must not be, or set `appendonly yes` and `noeviction`. A user needs
/// `+hget +hvals +zadd +zrangebylex` beside what limits need.
#[derive(Clone)]
pub struct RedisLedger {
    shared: Arc<Shared>,
    retention: Duration,
    space: KeySpace,
}

struct Shared {
    connector: RedisConnector,
    /// The connection, made anew where it broke.
    link: Mutex<Option<Link>>,
    claim: Script,
    settle: Script,
    save: Script,
}

/// Redis answered something else than was asked for.
#[derive(Debug, thiserror::Error)]
#[error("an answer of Redis has an unexpected form")]
struct Unexpected;

impl RedisLedger {
    /// Connects and checks the server. The ledger remembers events for 30 days.
    ///
    /// # Errors
    ///
    /// [`RedisStartError`] when the server cannot be reached or used.
    pub async fn connect(connector: RedisConnector) -> Result<Self, RedisStartError> {
        let link = connector.start().await?;
        let shared = Shared {
            connector,
            link: Mutex::new(Some(link)),
            claim: Script::new(include_str!("claim.lua")),
            settle: Script::new(include_str!("settle.lua")),
            save: Script::new(include_str!("save_account.lua")),
        };
        Ok(Self {
            shared: Arc::new(shared),
            retention: MIN_RETENTION,
            space: KeySpace::default(),
        })
    }

    /// How long events are remembered.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when it is less than 30 days.
    pub fn retention(mut self, retention: Duration) -> Result<Self, ConfigError> {
        self.retention = check_retention(retention)?;
        Ok(self)
    }

    /// A name in every key, for deployments that share a server: 1 to 16 characters of a-z, 0-9 and `-`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when the name has another form.
    pub fn namespace(mut self, name: impl AsRef<str>) -> Result<Self, ConfigError> {
        self.space = KeySpace::named(name.as_ref())?;
        Ok(self)
    }

    fn event(&self, key: &EventKey) -> Key {
        self.space.billing_event(&key.endpoint, &key.id)
    }

    async fn settle(
        &self,
        key: &EventKey,
        token: &str,
        state: &str,
        off: &str,
    ) -> Result<bool, LedgerError> {
        let arguments = [token.as_bytes(), state.as_bytes(), off.as_bytes()];
        let shared = &self.shared;
        let n: i64 = shared
            .run(&shared.settle, self.event(key), &arguments)
            .await?;
        Ok(n == 1)
    }

    async fn holds(&self, claim: &Claim) -> Result<bool, LedgerError> {
        let mut command = redis::cmd("HMGET");
        command
            .arg(&*self.event(&claim.key))
            .arg("state")
            .arg("token");
        let (state, token): (Option<String>, Option<String>) = self.shared.ask(command).await?;
        Ok(state.as_deref() == Some("claimed") && token == Some(claim.token.to_string()))
    }

    async fn letter(&self, key: &EventKey) -> Result<DeadLetter, LedgerError> {
        let mut command = redis::cmd("HGET");
        command
            .arg(&*self.space.dead_letters(&key.endpoint))
            .arg(&*key.id);
        let text: Option<Vec<u8>> = self.shared.ask(command).await?;
        let text = text.ok_or(LedgerError::NotFound)?;
        serde_json::from_slice(&text).map_err(|error| LedgerError::Corrupt(error.into()))
    }
}

impl Shared {
    async fn link(&self) -> Result<Link, LedgerError> {
        let known = self
            .link
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(link) = known {
            return Ok(link);
        }
        let link = self.connector.connect().await;
        let link = link.map_err(|error| LedgerError::Unavailable(error.into()))?;
        *self.link.lock().unwrap_or_else(PoisonError::into_inner) = Some(link.clone());
        Ok(link)
    }

    /// Sends one command, once. A failure may have been run: the event comes again, and finds what it did.
    async fn send(&self, command: Cmd) -> Result<Result<Value, bool>, LedgerError> {
        let mut link = self.link().await?;
        match link.call(command, self.connector.response_timeout).await {
            Ok(value) => Ok(Ok(value)),
            Err(failed) if failed.is_no_script => Ok(Err(true)),
            Err(failed) => {
                // A timeout may be the sign of a connection that nobody answers on any more.
                if failed.is_broken || failed.is_timeout {
                    *self.link.lock().unwrap_or_else(PoisonError::into_inner) = None;
                }
                Err(LedgerError::Unavailable(failed.fault.into()))
            }
        }
    }

    async fn ask<T: FromRedisValue>(&self, command: Cmd) -> Result<T, LedgerError> {
        match self.send(command).await? {
            Ok(value) => read(value),
            Err(_) => Err(LedgerError::Corrupt(Unexpected.into())),
        }
    }

    async fn run<T: FromRedisValue>(
        &self,
        script: &Script,
        key: Key,
        arguments: &[&[u8]],
    ) -> Result<T, LedgerError> {
        let [first, rest @ ..] = arguments else {
            return Err(LedgerError::Corrupt(Unexpected.into()));
        };
        let with = |mut command: Cmd| {
            for argument in rest {
                command.arg(*argument);
            }
            command
        };
        let keys = [key];
        match self.send(with(script.by_digest(&keys, first))).await? {
            Ok(value) => read(value),
            // The server has lost the script and has done nothing.
            Err(_) => self.ask(with(script.in_full(&keys, first))).await,
        }
    }
}

fn read<T: FromRedisValue>(value: Value) -> Result<T, LedgerError> {
    T::from_redis_value(value).map_err(|error| LedgerError::Corrupt(error.into()))
}

fn millis(duration: Duration) -> String {
    duration
        .as_millis()
        .min(u128::from(u32::MAX) * 1_000)
        .to_string()
}

#[async_trait]
impl EventLedger for RedisLedger {
    async fn claim(
        &self,
        key: &EventKey,
        fingerprint: &[u8; 32],
        lease: Duration,
    ) -> Result<Claimed, LedgerError> {
        let token = token()?;
        let (token_text, lease) = (token.to_string(), millis(lease));
        let retention = millis(self.retention);
        let arguments = [
            fingerprint.as_slice(),
            token_text.as_bytes(),
            lease.as_bytes(),
            retention.as_bytes(),
        ];
        let shared = &self.shared;
        let (verdict, number): (String, u64) = shared
            .run(&shared.claim, self.event(key), &arguments)
            .await?;
        Ok(match verdict.as_str() {
            "new" => {
                let attempt = u32::try_from(number).unwrap_or(u32::MAX);
                Claimed::New(Claim::new(key.clone(), token, attempt))
            }
            "busy" => Claimed::InProgress {
                until: Timestamp::from_unix_micros(number.saturating_mul(1_000)),
            },
            "done" => Claimed::Done,
            "other" => Claimed::OtherContent,
            _ => return Err(LedgerError::Corrupt(Unexpected.into())),
        })
    }

    async fn complete(&self, claim: &Claim) -> Result<(), LedgerError> {
        let token = claim.token.to_string();
        if self.settle(&claim.key, &token, "done", "0").await? {
            return Ok(());
        }
        Err(LedgerError::ClaimLost)
    }

    async fn release(&self, claim: &Claim, outcome: Try) -> Result<(), LedgerError> {
        let off = match outcome {
            Try::Counts => "0",
            Try::Forgiven => "1",
        };
        let token = claim.token.to_string();
        self.settle(&claim.key, &token, "free", off).await?;
        Ok(())
    }

    async fn bury(&self, claim: &Claim, letter: DeadLetter) -> Result<(), LedgerError> {
        let text =
            serde_json::to_vec(&letter).map_err(|error| LedgerError::Corrupt(error.into()))?;
        if !self.holds(claim).await? {
            return Err(LedgerError::ClaimLost);
        }
        // The letter first: an event that is done and stands in no list would be lost.
        let mut command = redis::cmd("HSET");
        command
            .arg(&*self.space.dead_letters(&claim.key.endpoint))
            .arg(&*claim.key.id)
            .arg(text);
        self.shared.ask::<i64>(command).await?;
        let token = claim.token.to_string();
        if self.settle(&claim.key, &token, "done", "0").await? {
            return Ok(());
        }
        // Somebody else has taken the event this moment, and may have put it aside too: the letter stays, as one too many
        // is looked at in vain and one too few is an event that is lost.
        Err(LedgerError::ClaimLost)
    }

    async fn dead_letters(
        &self,
        endpoint: &str,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, LedgerError> {
        let mut command = redis::cmd("HVALS");
        command.arg(&*self.space.dead_letters(endpoint));
        let texts: Vec<Vec<u8>> = self.shared.ask(command).await?;
        let letters: Result<Vec<DeadLetter>, _> = texts
            .iter()
            .map(|text| serde_json::from_slice(text))
            .collect();
        let mut letters = letters.map_err(|error| LedgerError::Corrupt(error.into()))?;
        letters.sort_by(|a, b| (a.buried_at, &a.key).cmp(&(b.buried_at, &b.key)));
        letters.truncate(limit);
        Ok(letters)
    }

    async fn reopen(&self, key: &EventKey) -> Result<DeadLetter, LedgerError> {
        let letter = self.letter(key).await?;
        self.settle(key, "", "free", "all").await?;
        Ok(letter)
    }

    async fn discard(&self, key: &EventKey) -> Result<(), LedgerError> {
        let mut command = redis::cmd("HDEL");
        command
            .arg(&*self.space.dead_letters(&key.endpoint))
            .arg(&*key.id);
        match self.shared.ask::<i64>(command).await? {
            0 => Err(LedgerError::NotFound),
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl AccountStore for RedisLedger {
    async fn load(&self, customer: &str) -> Result<Option<Account>, LedgerError> {
        let mut command = redis::cmd("HMGET");
        command
            .arg(&*self.space.account(customer))
            .arg("version")
            .arg("account");
        let (version, text): (Option<u64>, Option<Vec<u8>>) = self.shared.ask(command).await?;
        let (Some(version), Some(text)) = (version, text) else {
            return Ok(None);
        };
        let account: Account =
            serde_json::from_slice(&text).map_err(|error| LedgerError::Corrupt(error.into()))?;
        Ok(Some(account.at_version(version)))
    }

    async fn save(&self, account: &Account) -> Result<(), LedgerError> {
        let text =
            serde_json::to_vec(account).map_err(|error| LedgerError::Corrupt(error.into()))?;
        if account.version() == 0 {
            // The list first: a name in it that has no account is skipped.
            let mut command = redis::cmd("ZADD");
            command
                .arg(&*self.space.accounts())
                .arg(0)
                .arg(account.customer());
            self.shared.ask::<i64>(command).await?;
        }
        let (old, new) = (
            account.version().to_string(),
            account.version().saturating_add(1).to_string(),
        );
        let arguments = [old.as_bytes(), new.as_bytes(), &text];
        let key = self.space.account(account.customer());
        let shared = &self.shared;
        match shared.run::<i64>(&shared.save, key, &arguments).await? {
            1 => Ok(()),
            _ => Err(LedgerError::Conflict),
        }
    }

    async fn list(&self, after: Option<&str>, limit: usize) -> Result<Vec<Account>, LedgerError> {
        let mut accounts = Vec::new();
        let mut start = after.map_or_else(|| "-".to_owned(), |after| format!("({after}"));
        // A name that has no account yet must not make a page seem the last.
        while accounts.len() < limit {
            let missing = limit - accounts.len();
            let mut command = redis::cmd("ZRANGEBYLEX");
            command.arg(&*self.space.accounts()).arg(&start).arg("+");
            command.arg("LIMIT").arg(0).arg(missing);
            let customers: Vec<String> = self.shared.ask(command).await?;
            let Some(last) = customers.last() else { break };
            start = format!("({last}");
            for customer in &customers {
                accounts.extend(self.load(customer).await?);
            }
        }
        Ok(accounts)
    }
}

impl fmt::Debug for RedisLedger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisLedger")
            .field("connector", &self.shared.connector)
            .field("retention", &self.retention)
            .finish_non_exhaustive()
    }
}
