use std::{collections::HashMap, fmt, sync::Arc};

use http::Method;

use super::GrpcKind;
use crate::{
    error::ConfigError,
    head::RequestHead,
    route::{MatchedRoute, RouteOf, RouteTemplate},
};

/// The methods of a gRPC service by name: as routes, so that usage events and limits can tell them apart, or as
/// those that only read.
///
/// A caller can make up any number of methods, so that a path alone is no route: what is not listed is
/// [`unmatched`](crate::route::UNMATCHED). A call that is not gRPC has the route that [`MatchedRoute`] finds, for
/// services that serve both.
///
/// Cloning does not allocate.
///
/// ```
/// use tollgate::{Tollgate, grpc::GrpcRoutes, plan::Plan};
///
/// let gate = Tollgate::builder()
///     .plans([Plan::new("free")])
///     // A whole service is named as tonic's `NamedService::NAME` has it, and counts as one route.
///     .route_of(GrpcRoutes::new(["/shop.Orders/Get", "/shop.Orders/Place", "grpc.health.v1.Health"])?)
///     // What tenants in read-only access may still call.
///     .reads(GrpcRoutes::new(["/shop.Orders/Get"])?.reads())
///     .build()?;
/// # let _ = gate;
/// # Ok::<(), tollgate::error::ConfigError>(())
/// ```
#[derive(Clone)]
pub struct GrpcRoutes {
    known: Arc<Known>,
}

#[derive(Default)]
struct Known {
    /// By the whole path.
    methods: HashMap<Box<str>, RouteTemplate>,
    /// By the service's name.
    services: HashMap<Box<str>, RouteTemplate>,
}

impl GrpcRoutes {
    /// Methods as they are called, `/package.Service/Method`, and whole services, `package.Service` or
    /// `/package.Service/*`. The route of a whole service is `/package.Service/*` for each of its methods.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the place, such as `grpc_routes[1]`, of what is neither.
    pub fn new<N: AsRef<str>>(names: impl IntoIterator<Item = N>) -> Result<Self, ConfigError> {
        let mut known = Known::default();
        for (place, name) in names.into_iter().enumerate() {
            known.add(name.as_ref()).ok_or_else(|| {
                let reason = "a method is written `/package.Service/Method`, a whole service `package.Service`";
                ConfigError::new(format!("grpc_routes[{place}]"), reason)
            })?;
        }
        Ok(Self {
            known: Arc::new(known),
        })
    }

    /// Whether the path is that of a listed method, or of a method of a listed service.
    #[must_use]
    pub fn contains(&self, path: &str) -> bool {
        self.known.find(path).is_some()
    }

    /// These methods as the ones that only read, for [`TollgateBuilder::reads`](crate::TollgateBuilder::reads) and
    /// [`TenantLayer::reads`](crate::TenantLayer::reads). Of calls that are not gRPC, GET, HEAD and OPTIONS only
    /// read.
    pub fn reads(self) -> impl Fn(&RequestHead<'_>) -> bool + Send + Sync + 'static {
        move |head| {
            if GrpcKind::of(head.headers()).is_some() {
                self.contains(head.uri().path())
            } else {
                matches!(*head.method(), Method::GET | Method::HEAD | Method::OPTIONS)
            }
        }
    }
}

impl Known {
    fn add(&mut self, name: &str) -> Option<()> {
        let Some(path) = name.strip_prefix('/') else {
            return self.add_service(name);
        };
        let (service, method) = path.split_once('/')?;
        if method == "*" {
            return self.add_service(service);
        }
        (is_name(service) && is_name(method)).then_some(())?;
        let template = RouteTemplate::from(Arc::<str>::from(name));
        self.methods.insert(name.into(), template);
        Some(())
    }

    fn add_service(&mut self, service: &str) -> Option<()> {
        is_name(service).then_some(())?;
        let template = RouteTemplate::from(Arc::<str>::from(format!("/{service}/*")));
        self.services.insert(service.into(), template);
        Some(())
    }

    fn find(&self, path: &str) -> Option<&RouteTemplate> {
        self.methods.get(path).or_else(|| {
            let (service, method) = path.strip_prefix('/')?.split_once('/')?;
            is_name(method).then_some(())?;
            self.services.get(service)
        })
    }
}

/// Names in a protocol file are identifiers, with dots between those of a package; other descriptions may allow
/// more, but nothing that a path could hide behind.
fn is_name(name: &str) -> bool {
    let is_plain =
        |c: char| c.is_ascii_graphic() && !matches!(c, '/' | '*' | '%' | '?' | '#' | '\\');
    !name.is_empty() && name.chars().all(is_plain)
}

impl RouteOf for GrpcRoutes {
    fn route_of(&self, head: &RequestHead<'_>) -> Option<RouteTemplate> {
        if GrpcKind::of(head.headers()).is_some() {
            self.known.find(head.uri().path()).cloned()
        } else {
            MatchedRoute.route_of(head)
        }
    }
}

impl fmt::Debug for GrpcRoutes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrpcRoutes")
            .field("methods", &self.known.methods.len())
            .field("services", &self.known.services.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use http::{Request, header::CONTENT_TYPE};

    use super::*;

    fn routes() -> GrpcRoutes {
        GrpcRoutes::new(["/shop.Orders/Get", "grpc.health.v1.Health", "/b.B/*"]).unwrap()
    }

    fn route(content_type: &str, path: &str) -> Option<String> {
        let request = Request::post(path).header(CONTENT_TYPE, content_type);
        let request = request.body(()).unwrap();
        let route = routes().route_of(&RequestHead::from(&request));
        route.map(|route| route.as_str().to_owned())
    }

    #[test]
    fn only_what_is_listed_is_a_route() {
        let route = |path| route("application/grpc", path);
        assert_eq!(
            route("/shop.Orders/Get").as_deref(),
            Some("/shop.Orders/Get")
        );
        let health = "/grpc.health.v1.Health/*";
        assert_eq!(
            route("/grpc.health.v1.Health/Check").as_deref(),
            Some(health)
        );
        assert_eq!(route("/grpc.health.v1.Health/Any").as_deref(), Some(health));
        assert_eq!(route("/b.B/C").as_deref(), Some("/b.B/*"));
        for path in [
            "/shop.Orders/Place",
            "/shop.Orders/get",
            "/shop.Orders/Get/",
            "/shop.Orders",
            "/b.B/",
            "/b.B/C/D",
            "/b.B/%2e%2e",
            "/",
        ] {
            assert_eq!(route(path), None, "{path}");
        }
    }

    #[test]
    fn a_call_that_is_not_grpc_has_no_route_here() {
        assert_eq!(route("application/json", "/shop.Orders/Get"), None);
    }

    #[test]
    fn what_is_no_method_is_refused_with_its_place() {
        for name in [
            "", "/", "/a", "/a/", "//b", "/a/b/c", "a b", "a/b", "/a/b?c", "*", "/*/b",
        ] {
            let error = GrpcRoutes::new(["a.B", name]).unwrap_err();
            assert_eq!(error.path(), "grpc_routes[1]", "{name}");
        }
    }
}
