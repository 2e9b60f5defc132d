//! What a client reads about its limits.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, header::RETRY_AFTER};
use smallvec::SmallVec;

use super::{
    decision::{Decision, Outcome, RuleState},
    rule::{Algorithm, Unit},
    set::LimitSet,
};

/// The form in which answers carry the state of the limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HeaderStyle {
    /// `RateLimit-Policy` and `RateLimit` as in draft-ietf-httpapi-ratelimit-headers-11.
    #[default]
    Draft11,
    /// `X-RateLimit-Limit`, `X-RateLimit-Remaining` and `X-RateLimit-Reset` (seconds from now) for the most
    /// restrictive rule.
    Legacy,
    /// None, but `Retry-After` on refusals.
    Off,
}

const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const X_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const X_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const X_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
const WARNING: HeaderName = HeaderName::from_static("tollgate-limit-warning");

/// Whole seconds of a wait, rounded up and never 0: RFC 9110 section 10.2.3 has no fractions, and 0 would
/// invite the client to come back at once.
pub(crate) fn wait_seconds(wait: Duration) -> u64 {
    let seconds = wait.as_secs();
    if wait.subsec_nanos() > 0 {
        seconds.saturating_add(1)
    } else {
        seconds.max(1)
    }
}

/// Writes the decision's fields into `headers`.
pub(super) fn write(
    style: HeaderStyle,
    set: &LimitSet,
    decision: &Decision,
    headers: &mut HeaderMap,
) {
    if let Outcome::Refused {
        retry_after: Some(wait),
        ..
    } = decision.outcome
    {
        headers.insert(RETRY_AFTER, HeaderValue::from(wait_seconds(wait)));
    }
    if style == HeaderStyle::Off && !decision.states.iter().any(is_noteworthy) {
        return;
    }
    let mut visible: SmallVec<[&RuleState; 4]> = decision
        .states
        .iter()
        .filter(|state| is_visible(set, state))
        .collect();
    if visible.is_empty() {
        return;
    }
    if visible.iter().any(|state| is_noteworthy(state)) {
        write_warning(set, &visible, headers);
    }
    match style {
        HeaderStyle::Draft11 => {
            // The draft leaves the order free; clients that read one item only should read the tightest.
            visible.sort_by(|a, b| tightness(a, b));
            append(
                headers,
                RATE_LIMIT_POLICY,
                &list(set, &visible, push_policy),
            );
            append(headers, RATE_LIMIT, &list(set, &visible, push_state));
        }
        HeaderStyle::Legacy => {
            if let Some(state) = visible.iter().min_by(|a, b| tightness(a, b)) {
                headers.insert(X_LIMIT, HeaderValue::from(state.limit));
                headers.insert(X_REMAINING, HeaderValue::from(state.remaining));
                let reset = state.reset().map_or(0, wait_seconds);
                headers.insert(X_RESET, HeaderValue::from(reset));
            }
        }
        HeaderStyle::Off => {}
    }
}

fn is_visible(set: &LimitSet, state: &RuleState) -> bool {
    set.rules()
        .get(state.rule)
        .is_some_and(|rule| !rule.rule().shadow)
}

/// Exceeded rules first, then by the share that is left.
fn tightness(a: &RuleState, b: &RuleState) -> std::cmp::Ordering {
    let left = u128::from(a.remaining) * u128::from(b.limit.max(1));
    let right = u128::from(b.remaining) * u128::from(a.limit.max(1));
    b.exceeded.cmp(&a.exceeded).then(left.cmp(&right))
}

/// Whether a warning may have to tell of the state.
const fn is_noteworthy(state: &RuleState) -> bool {
    state.threshold > 0 || state.exceeded
}

/// A field's value under construction: on the stack unless it is long, so that it is allocated once, as a value.
struct Text {
    bytes: [u8; 256],
    len: usize,
    /// All of it, once there is no more room on the stack.
    spilled: Vec<u8>,
}

impl Text {
    const fn new() -> Self {
        Self {
            bytes: [0; 256],
            len: 0,
            spilled: Vec::new(),
        }
    }

    fn push(&mut self, part: &[u8]) {
        let end = self.len + part.len();
        match self.bytes.get_mut(self.len..end) {
            Some(room) => room.copy_from_slice(part),
            None => {
                if self.spilled.is_empty() {
                    let before = self.bytes.get(..self.len);
                    self.spilled.extend_from_slice(before.unwrap_or_default());
                }
                self.spilled.extend_from_slice(part);
            }
        }
        self.len = end;
    }

    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&self.spilled)
    }
}

fn append(headers: &mut HeaderMap, name: HeaderName, text: &Text) {
    // Rule names are checked when a plan is compiled, so the text is a legal field value.
    // A field of a limit further in stays: several lines are one list (RFC 9651 section 3.1).
    if let Ok(value) = HeaderValue::from_bytes(text.as_bytes()) {
        headers.append(name, value);
    }
}

fn list(set: &LimitSet, states: &[&RuleState], push: fn(&mut Text, &LimitSet, &RuleState)) -> Text {
    let mut text = Text::new();
    for state in states {
        if text.len > 0 {
            text.push(b", ");
        }
        push(&mut text, set, state);
    }
    text
}

fn push_name(text: &mut Text, set: &LimitSet, state: &RuleState) {
    let rule = set.rules().get(state.rule);
    text.push(rule.map_or("", |rule| rule.quoted_name()).as_bytes());
}

/// The largest integer of RFC 9651 section 3.3.1.
const MAX_STRUCTURED_INTEGER: u64 = 999_999_999_999_999;

fn push_number(text: &mut Text, parameter: &[u8], n: u64) {
    text.push(parameter);
    let mut digits = itoa::Buffer::new();
    text.push(digits.format(n.min(MAX_STRUCTURED_INTEGER)).as_bytes());
}

fn push_policy(text: &mut Text, set: &LimitSet, state: &RuleState) {
    push_name(text, set, state);
    push_number(text, b";q=", state.limit);
    if let Some(window) = state.window() {
        push_number(text, b";w=", wait_seconds(window));
    }
    let Some(rule) = set.rules().get(state.rule) else {
        return;
    };
    let unit: &[u8] = match (rule.algorithm(), &rule.rule().unit) {
        (Algorithm::Concurrency { .. }, _) => b";qu=\"concurrent-requests\"",
        (_, Unit::Bytes) => b";qu=\"content-bytes\"",
        // The draft's registry has no unit for a service's own quantities; requests are its default.
        (_, Unit::Requests | Unit::Custom(_)) => b"",
    };
    text.push(unit);
}

fn push_state(text: &mut Text, set: &LimitSet, state: &RuleState) {
    push_name(text, set, state);
    push_number(text, b";r=", state.remaining);
    if let Some(reset) = state.reset() {
        push_number(text, b";t=", wait_seconds(reset));
    }
}

/// Says which limits are nearly used up: `Tollgate-Limit-Warning: "quota";percent=80`.
fn write_warning(set: &LimitSet, states: &[&RuleState], headers: &mut HeaderMap) {
    let is_told = |state: &&&RuleState| state.threshold > 0 || warns(set, state);
    let told: SmallVec<[&RuleState; 4]> = states.iter().filter(is_told).copied().collect();
    if !told.is_empty() {
        append(headers, WARNING, &list(set, &told, push_warning));
    }
}

fn push_warning(text: &mut Text, set: &LimitSet, state: &RuleState) {
    let percent = if warns(set, state) {
        100
    } else {
        state.threshold.into()
    };
    push_name(text, set, state);
    push_number(text, b";percent=", percent);
}

fn warns(set: &LimitSet, state: &RuleState) -> bool {
    state.exceeded
        && set
            .rules()
            .get(state.rule)
            .is_some_and(|rule| rule.rule().action == super::rule::Action::Warn)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_rounded_up_and_never_zero() {
        for (micros, seconds) in [(0, 1), (1, 1), (900_000, 1), (1_000_000, 1), (1_000_001, 2)] {
            assert_eq!(
                wait_seconds(Duration::from_micros(micros)),
                seconds,
                "{micros} us"
            );
        }
        assert_eq!(wait_seconds(Duration::MAX), u64::MAX);
    }

    #[test]
    fn a_text_of_any_length_is_kept_whole() {
        for parts in [0, 1, 85, 86, 200] {
            let mut text = Text::new();
            (0..parts).for_each(|_| text.push(b"abc"));
            assert_eq!(text.as_bytes(), b"abc".repeat(parts));
        }
    }
}
