use tracing::Span;

use super::Identity;

/// Tells the current span who calls: by the names of [`span`](crate::span), and by the short ones for a span that
/// a service made itself. A name that the span does not declare is passed over.
pub(super) fn tell_span(identity: &Identity) {
    let span = Span::current();
    if span.is_disabled() {
        return;
    }
    let tenant = identity.tenant().id().as_str();
    let plan = identity.plan().name().as_str();
    for (name, value) in [
        ("tollgate.tenant", tenant),
        ("tenant", tenant),
        ("tollgate.plan", plan),
        ("plan", plan),
    ] {
        span.record(name, value);
    }
    if let Some(key) = identity.key() {
        span.record("tollgate.key_id", key.as_str());
        span.record("key_id", key.as_str());
    }
}
