//! From a settled call to its event, away from the request path.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use super::{
    abort::Billed,
    cost::Spent,
    event::{EventId, UsageEvent, printable},
    meter::Call,
};
use crate::route::UNMATCHED;

/// Makes events. Keeps the texts that repeat from call to call, so that they are stored once.
pub(super) struct Encoder {
    source: Arc<str>,
    known: HashMap<Box<str>, Arc<str>>,
}

/// A service has some hundreds of routes; past this many the memory is started anew.
const MAX_KNOWN: usize = 4096;

impl Encoder {
    pub(super) fn new(source: Arc<str>) -> Self {
        Self {
            source,
            known: HashMap::new(),
        }
    }

    /// The event of a settled call; `None` for a call that has no identity or no end, which the recorder
    /// never queues.
    pub(super) fn event(&mut self, call: &Call) -> Option<UsageEvent> {
        static DEFAULT_API: LazyLock<Arc<str>> = LazyLock::new(|| Arc::from("default"));
        let identity = call.identity()?;
        let ending = call.ending()?;
        let told = call.reported();
        let request_bytes = call.request_bytes().saturating_sub(told.received);
        let response_bytes = ending.response_bytes.saturating_sub(told.sent);
        // Not below: the lock that the quantities take there is held to the end of the event.
        let cost = Spent::cost(call, request_bytes, response_bytes);
        Some(UsageEvent {
            schema: UsageEvent::SCHEMA,
            id: call.id,
            part_of: EventId::from_u128(call.part_of),
            source: Arc::clone(&self.source),
            time: call.started.wall(),
            tenant: identity.tenant().id().clone(),
            key: identity.key().cloned(),
            plan: identity.plan().name().clone(),
            environment: identity.environment(),
            api: Arc::clone(call.site.as_ref().map_or(&*DEFAULT_API, |site| &site.api)),
            route: self.shared(call.route.get().map_or(UNMATCHED, |route| route.as_str())),
            method: self.shared(call.method.as_str()),
            status: ending.status,
            grpc_status: ending.grpc_status,
            outcome: ending.outcome,
            refused: ending.refused.map(|code| self.shared(code.as_str())),
            latency_micros: ending.latency_micros,
            request_bytes,
            response_bytes,
            quantities: call.quantities().unreported(call.billed()).collect(),
            waived: call.billed() == Billed::Nothing,
            overage: call.is_overage(),
            deprecated: call.is_deprecated(),
            request_id: (!call.request_id.is_empty())
                .then(|| Arc::from(&*printable(&String::from_utf8_lossy(&call.request_id)))),
            trace_id: (call.trace_id != 0).then(|| Arc::from(format!("{:032x}", call.trace_id))),
            cost,
            country: call.country().map(|country| self.shared(country.as_str())),
        })
    }

    fn shared(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.known.get(text) {
            return Arc::clone(known);
        }
        if self.known.len() >= MAX_KNOWN {
            self.known.clear();
        }
        let shared: Arc<str> = Arc::from(&*printable(text));
        self.known.insert(Box::from(text), Arc::clone(&shared));
        shared
    }
}
