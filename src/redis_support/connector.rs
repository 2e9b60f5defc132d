//! How Redis is reached.

use std::{fmt, future::Future, io, sync::Arc, time::Duration};

use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, IntoConnectionInfo,
    RedisError, TlsCertificates, Value,
    aio::{ConnectionManager, MultiplexedConnection, PubSub},
    cluster::ClusterClient,
    cluster_async::ClusterConnection,
    cluster_routing::{RoutingInfo, SingleNodeRoutingInfo},
    io::tcp::TcpSettings,
    sentinel::{SentinelClient, SentinelNodeConnectionInfo, SentinelServerType},
};
use tokio::{sync::Mutex, time::timeout};

use super::fault::{RedisFault, wants_another_connection};
use crate::error::ConfigError;

const CONNECT_TIMEOUT: Duration = Duration::from_millis(200);
const RESPONSE_TIMEOUT: Duration = Duration::from_millis(50);
/// How often a command follows a slot that has moved, before it is given up.
const MAX_REDIRECTS: usize = 5;

/// Reaches one Redis server, a Cluster, the master that Sentinels name, or a connection that a service has
/// already.
///
/// `TCP_NODELAY` is on. A URL is `redis://[user[:password]@]host[:port][/database]`, `rediss://` over TLS (by
/// rustls), or `unix:///path[?db=1&user=u&pass=p]`. Passwords show neither in `Debug` nor in errors.
///
/// ```
/// use tollgate::redis_support::RedisConnector;
///
/// let connector = RedisConnector::single("redis://limiter:s3cret@redis.internal:6379")?;
/// assert!(!format!("{connector:?}").contains("s3cret"));
/// assert!(RedisConnector::single("http://redis.internal").is_err());
/// # Ok::<(), tollgate::error::ConfigError>(())
/// ```
#[derive(Clone)]
#[must_use]
pub struct RedisConnector {
    target: Target,
    pub(crate) connect_timeout: Duration,
    pub(crate) response_timeout: Duration,
}

#[derive(Clone)]
enum Target {
    Single(Box<Client>),
    Cluster(Box<ClusterNodes>),
    Sentinel(Arc<Sentinels>),
    Manager(ConnectionManager),
    Pool(deadpool_redis::Pool),
}

#[derive(Clone)]
struct ClusterNodes {
    nodes: Vec<ConnectionInfo>,
    root_certificate: Option<Vec<u8>>,
}

struct Sentinels {
    service: String,
    /// Asking the Sentinels needs the client to itself; it is held across the asking, which is never done for a
    /// call that waits.
    client: Mutex<SentinelClient>,
}

/// The text of an error by the redis crate about a URL may hold the URL, and so a password: it is left out.
fn bad_url(path: &'static str) -> ConfigError {
    ConfigError::new(
        path,
        "this is not a Redis URL: write redis://host:port, rediss://host:port or unix:///path, with user:password@ before the host where one is needed",
    )
}

fn connection_info(path: &'static str, url: &str) -> Result<ConnectionInfo, ConfigError> {
    let info = url.into_connection_info().map_err(|_| bad_url(path))?;
    if matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
        use_a_cryptography_provider();
    }
    Ok(info.set_tcp_settings(TcpSettings::default().set_nodelay(true)))
}

/// rustls panics where nobody has chosen a provider and two are compiled in.
fn use_a_cryptography_provider() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Somebody else may have been first, which is as good.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    }
}

impl RedisConnector {
    const fn new(target: Target) -> Self {
        Self {
            target,
            connect_timeout: CONNECT_TIMEOUT,
            response_timeout: RESPONSE_TIMEOUT,
        }
    }

    /// One server. Nothing is connected yet.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when the URL cannot be read; it does not repeat the URL.
    pub fn single(url: impl AsRef<str>) -> Result<Self, ConfigError> {
        let info = connection_info("url", url.as_ref())?;
        let client = Client::open(info).map_err(|_| bad_url("url"))?;
        Ok(Self::new(Target::Single(Box::new(client))))
    }

    /// A Cluster, found through any of its nodes. User, password and TLS are those of the first URL.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when there is no URL or one cannot be read.
    pub fn cluster<U: AsRef<str>>(urls: impl IntoIterator<Item = U>) -> Result<Self, ConfigError> {
        let nodes = urls
            .into_iter()
            .map(|url| connection_info("urls", url.as_ref()))
            .collect::<Result<Vec<_>, _>>()?;
        let nodes = ClusterNodes {
            nodes,
            root_certificate: None,
        };
        nodes.client(CONNECT_TIMEOUT, RESPONSE_TIMEOUT)?;
        Ok(Self::new(Target::Cluster(Box::new(nodes))))
    }

    /// The master that Sentinels know as `service`. User, password and database of the master are those of
    /// `master`, a URL whose host is not used; the Sentinels' own stand in their URLs.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when there is no Sentinel or a URL cannot be read.
    pub fn sentinel<U: AsRef<str>>(
        urls: impl IntoIterator<Item = U>,
        service: impl Into<String>,
        master: impl AsRef<str>,
    ) -> Result<Self, ConfigError> {
        let sentinels = urls
            .into_iter()
            .map(|url| connection_info("sentinels", url.as_ref()))
            .collect::<Result<Vec<_>, _>>()?;
        let master = connection_info("master", master.as_ref())?;
        let mut node = SentinelNodeConnectionInfo::default()
            .set_redis_connection_info(master.redis_settings().clone())
            .set_tcp_settings(master.tcp_settings().clone());
        if matches!(master.addr(), ConnectionAddr::TcpTls { .. }) {
            node = node.set_tls_mode(redis::TlsMode::Secure);
        }
        let service = service.into();
        let client =
            SentinelClient::build(sentinels, &service, Some(node), SentinelServerType::Master)
                .map_err(|_| ConfigError::new("sentinels", "name at least one Sentinel"))?;
        Ok(Self::new(Target::Sentinel(Arc::new(Sentinels {
            service,
            client: Mutex::new(client),
        }))))
    }

    /// A connection that the service has already. It must not repeat commands by itself, and its own response
    /// timeout should not be below the one set here.
    pub fn manager(manager: ConnectionManager) -> Self {
        Self::new(Target::Manager(manager))
    }

    /// A pool that the service has already. Every exchange checks a connection out, which costs a `PING`: one for
    /// a batch of decisions, or one for each where decisions do not come at once. A connector of its own is
    /// cheaper.
    pub fn pool(pool: deadpool_redis::Pool) -> Self {
        Self::new(Target::Pool(pool))
    }

    /// How long making a connection may take; 200 ms unless set.
    pub const fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long an answer may take; 50 ms unless set.
    pub const fn response_timeout(mut self, timeout: Duration) -> Self {
        self.response_timeout = timeout;
        self
    }

    /// Trusts the authorities of this PEM text for `rediss://` URLs, in place of the operating system's.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when the text holds no certificate, or the connection is not one of this crate's own.
    pub fn root_certificate(mut self, pem: impl Into<Vec<u8>>) -> Result<Self, ConfigError> {
        let pem = pem.into();
        let wrong = |source: RedisError| {
            ConfigError::new("root_certificate", "this is not a certificate in PEM form")
                .caused_by(source)
        };
        match &mut self.target {
            Target::Single(client) => {
                let info = client.get_connection_info().clone();
                **client = Client::build_with_tls(info, certificates(Some(pem))).map_err(wrong)?;
            }
            Target::Cluster(nodes) => {
                nodes.root_certificate = Some(pem);
                nodes.client(self.connect_timeout, self.response_timeout)?;
            }
            Target::Sentinel(_) | Target::Manager(_) | Target::Pool(_) => {
                return Err(ConfigError::new(
                    "root_certificate",
                    "only a single server and a Cluster take a certificate here",
                ));
            }
        }
        Ok(self)
    }

    pub(crate) const fn is_cluster(&self) -> bool {
        matches!(self.target, Target::Cluster(_))
    }

    /// Whether others use the same connection, and would wait for a command that waits.
    #[cfg(all(feature = "postgres", feature = "usage"))]
    pub(crate) const fn is_shared(&self) -> bool {
        matches!(self.target, Target::Manager(_))
    }

    /// Makes a connection, within the connect deadline.
    pub(crate) async fn connect(&self) -> Result<Link, RedisError> {
        self.in_time(self.connect_unbounded()).await
    }

    async fn in_time<T>(
        &self,
        connecting: impl Future<Output = Result<T, RedisError>>,
    ) -> Result<T, RedisError> {
        timeout(self.connect_timeout, connecting)
            .await
            .unwrap_or_else(|_| {
                Err(
                    io::Error::new(io::ErrorKind::TimedOut, "no connection within the deadline")
                        .into(),
                )
            })
    }

    /// Whether a connection can be made that hears what is published: not where the connection is one that the
    /// service has already.
    pub(super) const fn can_subscribe(&self) -> bool {
        !matches!(self.target, Target::Manager(_) | Target::Pool(_))
    }

    /// Makes such a connection, within the connect deadline. In a Cluster to one node after the other, as `attempt`
    /// counts: all of them hear what is published on any.
    pub(super) async fn subscribe(
        &self,
        channel: &[u8],
        attempt: usize,
    ) -> Result<PubSub, RedisError> {
        self.in_time(async {
            let client = match &self.target {
                Target::Single(client) => Client::clone(client),
                Target::Sentinel(sentinels) => {
                    sentinels.client.lock().await.async_get_client().await?
                }
                Target::Cluster(nodes) => nodes.one(attempt)?,
                Target::Manager(_) | Target::Pool(_) => {
                    return Err((redis::ErrorKind::Client, "this connection is shared").into());
                }
            };
            let mut connection = client.get_async_pubsub().await?;
            connection.subscribe(channel).await?;
            Ok(connection)
        })
        .await
    }

    async fn connect_unbounded(&self) -> Result<Link, RedisError> {
        // The deadline of an answer is kept by `Link::call`.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            .set_response_timeout(None);
        Ok(match &self.target {
            Target::Single(client) => Link::Single(
                client
                    .get_multiplexed_async_connection_with_config(&config)
                    .await?,
            ),
            Target::Sentinel(sentinels) => {
                let client = sentinels.client.lock().await.async_get_client().await?;
                Link::Single(
                    client
                        .get_multiplexed_async_connection_with_config(&config)
                        .await?,
                )
            }
            Target::Cluster(nodes) => {
                let client = nodes
                    .client(self.connect_timeout, self.response_timeout)
                    .map_err(|_| {
                        RedisError::from((redis::ErrorKind::InvalidClientConfig, "no nodes"))
                    })?;
                Link::Cluster(client.get_async_connection().await?)
            }
            Target::Manager(manager) => Link::Manager(manager.clone()),
            Target::Pool(pool) => Link::Pool(pool.clone(), self.connect_timeout),
        })
    }
}

fn certificates(root_certificate: Option<Vec<u8>>) -> TlsCertificates {
    TlsCertificates {
        client_tls: None,
        root_cert: root_certificate,
    }
}

impl ClusterNodes {
    fn one(&self, attempt: usize) -> Result<Client, RedisError> {
        let node = self.nodes.get(attempt % self.nodes.len().max(1));
        let node = node
            .cloned()
            .ok_or_else(|| RedisError::from((redis::ErrorKind::InvalidClientConfig, "no nodes")))?;
        match &self.root_certificate {
            Some(pem) => Client::build_with_tls(node, certificates(Some(pem.clone()))),
            None => Client::open(node),
        }
    }

    fn client(&self, connect: Duration, response: Duration) -> Result<ClusterClient, ConfigError> {
        // The redis crate repeats what was on its way when a connection broke, and a charge must not be made
        // twice: it repeats nothing, and `Link` follows moved slots itself.
        let mut builder = ClusterClient::builder(self.nodes.iter().cloned())
            .retries(0)
            .connection_timeout(connect)
            .response_timeout(response)
            .tcp_settings(TcpSettings::default().set_nodelay(true));
        if let Some(pem) = &self.root_certificate {
            builder = builder.certs(certificates(Some(pem.clone())));
        }
        builder
            .build()
            .map_err(|source| {
                ConfigError::new("urls", "these are not nodes of one Cluster: write at least one, with the same user, password and scheme")
                    .caused_by(source)
            })
    }
}

impl fmt::Debug for RedisConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut connector = f.debug_struct("RedisConnector");
        match &self.target {
            Target::Single(client) => {
                connector.field("single", &client.get_connection_info().addr().to_string())
            }
            Target::Cluster(nodes) => {
                let addresses: Vec<_> = nodes
                    .nodes
                    .iter()
                    .map(|node| node.addr().to_string())
                    .collect();
                connector.field("cluster", &addresses)
            }
            Target::Sentinel(sentinels) => connector.field("sentinel", &sentinels.service),
            Target::Manager(_) => connector.field("manager", &".."),
            Target::Pool(_) => connector.field("pool", &".."),
        };
        connector.finish_non_exhaustive()
    }
}

/// A connection. Cloning gives another handle to the same one.
#[derive(Clone)]
pub(crate) enum Link {
    Single(MultiplexedConnection),
    Manager(ConnectionManager),
    Cluster(ClusterConnection),
    Pool(deadpool_redis::Pool, Duration),
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Link(..)")
    }
}

/// How an exchange failed.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) fault: RedisFault,
    /// The server does not know the script; it has done nothing.
    pub(crate) is_no_script: bool,
    /// A new connection has to be made.
    pub(crate) is_broken: bool,
    pub(crate) is_timeout: bool,
}

impl Failed {
    fn of(error: RedisError) -> Self {
        Self {
            is_no_script: error.code() == Some("NOSCRIPT"),
            is_broken: wants_another_connection(&error),
            is_timeout: error.is_timeout(),
            fault: RedisFault::of(error),
        }
    }

    pub(super) fn before_sending(
        error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self {
            fault: RedisFault::not_run(error),
            is_no_script: false,
            is_broken: false,
            is_timeout: false,
        }
    }
}

impl Link {
    /// Sends one command and waits for its answer until the deadline. Nothing is ever sent twice, but to the node
    /// that a server names in place of itself.
    pub(crate) async fn call(&mut self, command: Cmd, deadline: Duration) -> Result<Value, Failed> {
        let pooled = match self {
            Self::Pool(pool, connect) => match timeout(*connect, pool.get()).await {
                Ok(Ok(connection)) => Some(connection),
                Ok(Err(error)) => return Err(Failed::before_sending(error)),
                Err(elapsed) => return Err(Failed::before_sending(elapsed)),
            },
            _ => None,
        };
        match timeout(deadline, self.send(command, pooled)).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(Failed::of(error)),
            Err(_) => Err(Failed {
                fault: RedisFault::timed_out(),
                is_no_script: false,
                is_broken: false,
                is_timeout: true,
            }),
        }
    }

    /// Sends a command that changes nothing, or may be run twice.
    pub(crate) async fn query(
        &mut self,
        command: Cmd,
        deadline: Duration,
    ) -> Result<Value, RedisError> {
        let pooled = match self {
            Self::Pool(pool, _) => Some(
                pool.get()
                    .await
                    .map_err(|error| RedisError::from(io::Error::other(error)))?,
            ),
            _ => None,
        };
        timeout(deadline, self.send(command, pooled))
            .await
            .unwrap_or_else(|_| {
                Err(io::Error::new(io::ErrorKind::TimedOut, "no answer within the deadline").into())
            })
    }

    async fn send(
        &mut self,
        command: Cmd,
        pooled: Option<deadpool_redis::Connection>,
    ) -> Result<Value, RedisError> {
        match (self, pooled) {
            (_, Some(mut connection)) => command.query_async(&mut connection).await,
            (Self::Single(connection), _) => command.query_async(connection).await,
            (Self::Manager(connection), _) => command.query_async(connection).await,
            (Self::Cluster(connection), _) => send_to_cluster(connection, command).await,
            (Self::Pool(..), None) => {
                Err((redis::ErrorKind::Client, "no connection was checked out").into())
            }
        }
    }
}

async fn send_to_cluster(
    connection: &mut ClusterConnection,
    command: Cmd,
) -> Result<Value, RedisError> {
    let mut redirects = 0;
    let mut answer = command.clone().query_async(connection).await;
    loop {
        let Err(error) = &answer else { return answer };
        let Some((host, port)) = error.redirect_node().and_then(|(address, _)| {
            let (host, port) = address.rsplit_once(':')?;
            Some((host.to_owned(), port.parse().ok()?))
        }) else {
            return answer;
        };
        redirects += 1;
        if redirects > MAX_REDIRECTS {
            return answer;
        }
        // The server that answered so has done nothing.
        let node = SingleNodeRoutingInfo::ByAddress { host, port };
        answer = if error.code() == Some("ASK") {
            let mut pipeline = redis::Pipeline::new();
            pipeline.cmd("ASKING").ignore().add_command(command.clone());
            connection
                .route_pipeline(pipeline, 1, 1, node)
                .await
                .and_then(|mut values| match values.pop() {
                    Some(value) => value.extract_error(),
                    None => Err((redis::ErrorKind::UnexpectedReturnType, "no answer").into()),
                })
        } else {
            connection
                .route_command(command.clone(), RoutingInfo::SingleNode(node))
                .await
                .and_then(Value::extract_error)
        };
    }
}
