use std::{
    convert::Infallible,
    fmt::{self, Write},
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY},
};
use quick_cache::sync::Cache;
use sha2::{Digest, Sha256};
use smallvec::SmallVec;
use tower_service::Service;

use super::{DocumentAccess, OpenApiDocument};
use crate::{
    body::{FullBody, ResponseBody},
    error::{ErrorCode, Problem},
    identity::Identity,
};

const MAX_VARIANTS: usize = 64;
/// The header fields that a caller may be known by.
const CREDENTIALS: &str = "authorization, x-api-key";

/// Serves an OpenAPI document: to each caller the part that the caller may use.
///
/// Mount it at a path behind [`AuthLayer`](crate::AuthLayer) or the gate, which say who calls. Where nobody has said it,
/// on a public path or without a credential where none is needed, the caller gets the public part.
///
/// Answers `GET` and `HEAD` with `ETag`, `Vary` and `Cache-Control: private, no-cache`, and 304 where the caller has the
/// document already; any other method 405. What callers get is kept, as many variants as [`max_variants`] says: callers
/// who differ in nothing that the document asks for share one, and a changed plan is another one on the next call.
///
/// ```
/// use http::Request;
/// use serde_json::json;
/// use tollgate::openapi::{OpenApiDocument, OpenApiService};
/// use tower::ServiceExt;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let document = json!({ "openapi": "3.1.0", "info": { "title": "Shop", "version": "1" }, "paths": {} });
/// let service = OpenApiService::new(OpenApiDocument::new(document)?);
///
/// let answer = service.clone().oneshot(Request::get("/openapi.json").body(())?).await?;
/// assert_eq!(answer.headers()["cache-control"], "private, no-cache");
///
/// let again = Request::get("/openapi.json").header("if-none-match", &answer.headers()["etag"]).body(())?;
/// assert_eq!(service.clone().oneshot(again).await?.status(), 304);
///
/// let refused = service.oneshot(Request::post("/openapi.json").body(())?).await?;
/// assert_eq!(refused.status(), 405);
/// # Ok(())
/// # }
/// ```
///
/// [`max_variants`]: Self::max_variants
#[derive(Clone)]
pub struct OpenApiService {
    shared: Arc<Shared>,
    variants: Arc<Cache<Variant, Rendered>>,
    vary: HeaderValue,
}

struct Shared {
    document: OpenApiDocument,
    plans: Vec<String>,
    features: Vec<String>,
    scopes: Vec<String>,
}

/// What a caller has of what the document asks for. Bounded by the document, whatever callers bring.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Variant {
    is_known: bool,
    plan: Option<usize>,
    /// A bit for each feature and scope.
    has: SmallVec<[u64; 4]>,
}

#[derive(Clone, Debug)]
struct Rendered {
    body: Bytes,
    etag: HeaderValue,
}

impl OpenApiService {
    /// Serves a document.
    #[must_use]
    pub fn new(document: OpenApiDocument) -> Self {
        let asked = document.asked_for();
        let shared = Shared {
            document,
            plans: asked.plans.into_iter().collect(),
            features: asked.features.into_iter().collect(),
            scopes: asked.scopes.into_iter().collect(),
        };
        Self {
            shared: Arc::new(shared),
            variants: Arc::new(Cache::new(MAX_VARIANTS)),
            vary: const { HeaderValue::from_static(CREDENTIALS) },
        }
    }

    /// How many variants are kept; 64 unless set, 1 at least. One that is not kept is made again.
    #[must_use]
    pub fn max_variants(mut self, max_variants: usize) -> Self {
        self.variants = Arc::new(Cache::new(max_variants.max(1)));
        self
    }

    /// The `Vary` of the answers: the header fields that callers are known by. `authorization, x-api-key` unless set.
    #[must_use]
    pub fn vary(mut self, fields: HeaderValue) -> Self {
        self.vary = fields;
        self
    }

    fn rendered(&self, identity: Option<&Identity>) -> Rendered {
        let access = identity.map_or_else(DocumentAccess::anonymous, DocumentAccess::from);
        let variant = self.shared.variant(&access);
        let made = self.variants.get_or_insert_with(&variant, || {
            Ok::<_, Infallible>(Rendered::of(&self.shared.document, &access))
        });
        match made {
            Ok(rendered) => rendered,
            Err(never) => match never {},
        }
    }

    fn answer<B>(&self, request: &Request<B>) -> Response<FullBody> {
        let method = request.method();
        if method != Method::GET && method != Method::HEAD {
            return Problem::new(ErrorCode::MethodNotAllowed)
                .header(ALLOW, const { HeaderValue::from_static("GET, HEAD") })
                .into_response(method);
        }
        let rendered = self.rendered(request.extensions().get());
        let mut response = Response::new(ResponseBody::empty());
        let is_known = has(request.headers(), &rendered.etag);
        let fields = response.headers_mut();
        fields.insert(ETAG, rendered.etag);
        fields.insert(VARY, self.vary.clone());
        // Kept by the caller alone, who asks each time whether it is still so: a plan may change at any time.
        fields.insert(
            CACHE_CONTROL,
            const { HeaderValue::from_static("private, no-cache") },
        );
        if is_known {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            return response;
        }
        fields.insert(
            CONTENT_TYPE,
            const { HeaderValue::from_static("application/json") },
        );
        fields.insert(CONTENT_LENGTH, HeaderValue::from(rendered.body.len()));
        if method == Method::GET {
            *response.body_mut() = ResponseBody::full(rendered.body);
        }
        response
    }
}

impl Shared {
    fn variant(&self, access: &DocumentAccess) -> Variant {
        let plan = access.plan.as_deref();
        let features = self
            .features
            .iter()
            .map(|name| access.features.contains(&**name));
        let scopes = self
            .scopes
            .iter()
            .map(|name| access.scopes.contains(&**name));
        let mut has = SmallVec::new();
        for (place, is_there) in features.chain(scopes).enumerate() {
            if place % 64 == 0 {
                has.push(0);
            }
            if let Some(bits) = has.last_mut() {
                *bits |= u64::from(is_there) << (place % 64);
            }
        }
        Variant {
            is_known: plan.is_some(),
            plan: plan.and_then(|plan| self.plans.iter().position(|name| name == plan)),
            has,
        }
    }
}

impl Rendered {
    fn of(document: &OpenApiDocument, access: &DocumentAccess) -> Self {
        let body = document.for_caller(access).to_string();
        let mut etag = String::with_capacity(34);
        etag.push('"');
        for byte in Sha256::digest(&body).iter().take(16) {
            // Writing to text cannot fail.
            let _ = write!(etag, "{byte:02x}");
        }
        etag.push('"');
        Self {
            body: Bytes::from(body),
            // Quotes and digits are a legal value.
            etag: HeaderValue::try_from(etag).unwrap_or(const { HeaderValue::from_static("\"\"") }),
        }
    }
}

/// Whether the caller has the document already (RFC 9110 section 13.1.2, which compares weakly).
fn has(fields: &HeaderMap, etag: &HeaderValue) -> bool {
    let values = fields.get_all(IF_NONE_MATCH).iter();
    values
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .any(|known| known == b"*" || known.strip_prefix(b"W/").unwrap_or(known) == etag.as_bytes())
}

impl<B> Service<Request<B>> for OpenApiService {
    type Response = Response<FullBody>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        ready(Ok(self.answer(&request)))
    }
}

impl fmt::Debug for OpenApiService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenApiService")
            .field("variants", &self.variants.len())
            .finish_non_exhaustive()
    }
}
