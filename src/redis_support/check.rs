//! What a server must be and should be, asked once at the start.

use std::time::Duration;

use redis::{ErrorKind, RedisError, ServerErrorKind, Value};

use super::connector::{Link, RedisConnector};

const LEAST_VERSION: (u64, u64) = (6, 2);
/// A start may take longer than a call.
const PATIENCE: Duration = Duration::from_secs(2);

/// Redis cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RedisStartError {
    /// No connection could be made, or the server refused the user.
    #[error("Redis cannot be reached")]
    Connect(#[source] RedisError),
    /// The server lacks commands that are needed.
    #[error("Redis {version} is too old: 6.2 is the oldest version that works")]
    TooOld {
        /// The server's version.
        version: String,
    },
    /// The server is a node of a Cluster, and it was named as a single one.
    #[error("this server is a node of a Cluster: name it with `cluster`")]
    IsClusterNode,
    /// The server is a replica, which takes no writes.
    #[error("this server is a read-only replica: name its master, or the Sentinels that know it")]
    IsReplica,
}

impl RedisConnector {
    /// Connects, and checks the server: refuses one that cannot work, and warns in the log of one that forgets
    /// counts. A user who may not ask is believed.
    pub(crate) async fn start(&self) -> Result<Link, RedisStartError> {
        let link = self.connect().await.map_err(RedisStartError::Connect)?;
        let mut asking = link.clone();
        let info = ask(&mut asking, "INFO", &[]).await?.unwrap_or_default();
        self.check_info(&info)?;
        let save = ask(&mut asking, "CONFIG", &["GET", "save"])
            .await?
            .unwrap_or_default();
        // The answer is the name and its value, which is empty where no snapshot is ever made.
        if save.trim_end() == "save" && field(&info, "aof_enabled") == Some("0") {
            tracing::warn!(
                target: "tollgate::redis",
                "this server keeps nothing over a restart: quotas begin anew, and keys, tenants and plans that are kept here are gone; set `save` or `appendonly yes`"
            );
        }
        Ok(link)
    }

    fn check_info(&self, info: &str) -> Result<(), RedisStartError> {
        let Some(version) = field(info, "redis_version") else {
            return Ok(());
        };
        let mut numbers = version.split('.').map(|number| number.parse().unwrap_or(0));
        let version_number = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        if version_number < LEAST_VERSION {
            return Err(RedisStartError::TooOld {
                version: version.to_owned(),
            });
        }
        if field(info, "cluster_enabled") == Some("1") && !self.is_cluster() {
            return Err(RedisStartError::IsClusterNode);
        }
        if field(info, "role") == Some("slave") && !self.is_cluster() {
            return Err(RedisStartError::IsReplica);
        }
        if let Some(policy) = field(info, "maxmemory_policy")
            && policy.starts_with("allkeys-")
        {
            tracing::warn!(
                target: "tollgate::redis",
                policy,
                "this server evicts any key when its memory is full, which resets limits: set maxmemory-policy to noeviction or volatile-ttl"
            );
        }
        Ok(())
    }
}

fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
}

/// The answer as lines of text; `None` when the user may not ask.
async fn ask(
    link: &mut Link,
    command: &str,
    arguments: &[&str],
) -> Result<Option<String>, RedisStartError> {
    let mut question = redis::cmd(command);
    question.arg(arguments);
    match link.query(question, PATIENCE).await {
        Ok(value) => Ok(Some(lines(&value))),
        Err(error) if may_not_ask(&error) => Ok(None),
        Err(error) => Err(RedisStartError::Connect(error)),
    }
}

/// Managed servers forbid CONFIG, or do not know it.
fn may_not_ask(error: &RedisError) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Server(ServerErrorKind::NoPerm | ServerErrorKind::ResponseError)
    )
}

fn lines(value: &Value) -> String {
    match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => text.clone(),
        Value::Array(values) => values.iter().map(lines).collect::<Vec<_>>().join("\n"),
        Value::Map(entries) => {
            let entry =
                |(name, value): &(Value, Value)| format!("{}\n{}", lines(name), lines(value));
            entries.iter().map(entry).collect::<Vec<_>>().join("\n")
        }
        _ => String::new(),
    }
}
