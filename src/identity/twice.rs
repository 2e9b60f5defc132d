//! The layer stands twice around a route.

use std::sync::atomic::{AtomicBool, Ordering};

use super::Identity;
use crate::head::RequestHead;

/// Notices requests that an outer layer has identified, and taken the credential out of.
#[derive(Debug, Default)]
pub(super) struct Twice {
    told: AtomicBool,
}

impl Twice {
    /// Looks at a request without a credential. The log is told once.
    pub(super) fn look_at(&self, head: &RequestHead<'_>) {
        let is_known = head.extensions().get::<Identity>().is_some();
        if is_known && !self.told.swap(true, Ordering::Relaxed) {
            tracing::error!(
                target: "tollgate::auth",
                path = head.uri().path(),
                "layer twice: an outer layer has identified this request and taken its credential out, so this one \
                 answers 401. Put one layer around the route; or give this one a header field of its own (Extractor), \
                 or take the outer identity as it is (inserted_identity)"
            );
        }
    }
}
