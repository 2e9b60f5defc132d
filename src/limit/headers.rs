//! What a client reads about its limits.

use std::{sync::Arc, time::Duration};

use bytes::BytesMut;
use http::{HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;

use super::{
    decision::{Decision, RuleState},
    rule::{Algorithm, Unit},
    set::LimitSet,
};
use crate::field;

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

/// What an answer tells of its limits, put together when the call is decided: the states need not be kept.
#[derive(Debug, Default)]
pub(super) struct Told {
    form: Form,
    warning: Option<Box<HeaderValue>>,
}

#[derive(Debug, Default)]
enum Form {
    #[default]
    Nothing,
    Draft11 {
        policy: HeaderValue,
        state: HeaderValue,
    },
    Legacy {
        limit: u64,
        remaining: u64,
        reset: u64,
    },
}

impl Told {
    /// Writes the fields. A field of a limit further in stays: several lines are one list (RFC 9651 section
    /// 3.1).
    #[inline]
    pub(super) fn write(self, headers: &mut HeaderMap) {
        match self.form {
            Form::Nothing => {}
            Form::Draft11 { policy, state } => {
                headers.append(RATE_LIMIT_POLICY, policy);
                headers.append(RATE_LIMIT, state);
            }
            Form::Legacy {
                limit,
                remaining,
                reset,
            } => {
                headers.insert(X_LIMIT, HeaderValue::from(limit));
                headers.insert(X_REMAINING, HeaderValue::from(remaining));
                headers.insert(X_RESET, HeaderValue::from(reset));
            }
        }
        if let Some(warning) = self.warning {
            headers.append(WARNING, *warning);
        }
    }
}

/// What an answer tells of a decision.
pub(super) fn told(style: HeaderStyle, set: &LimitSet, decision: &Decision) -> Told {
    let noteworthy = decision.states.iter().any(is_noteworthy);
    if style == HeaderStyle::Off && !noteworthy {
        return Told::default();
    }
    let mut visible: SmallVec<[&RuleState; 4]> = decision
        .states
        .iter()
        .filter(|state| is_visible(set, state))
        .collect();
    if visible.is_empty() {
        return Told::default();
    }
    let warning = noteworthy.then(|| warning(set, &visible)).flatten();
    let form = match style {
        HeaderStyle::Draft11 => {
            // The draft leaves the order free; clients that read one item only should read the tightest.
            if visible.len() > 1 {
                visible.sort_by(|a, b| tightness(a, b));
            }
            // Rule names are checked when a plan is compiled, so the text is a legal field value.
            match (policy(set, &visible), list(set, &visible, push_state)) {
                (Some(policy), Some(state)) => Form::Draft11 { policy, state },
                _ => Form::Nothing,
            }
        }
        HeaderStyle::Legacy => match visible.iter().min_by(|a, b| tightness(a, b)) {
            Some(state) => Form::Legacy {
                limit: state.limit,
                remaining: state.remaining,
                reset: state.reset().map_or(0, wait_seconds),
            },
            None => Form::Nothing,
        },
        HeaderStyle::Off => Form::Nothing,
    };
    Told { form, warning }
}

/// A `RateLimit-Policy` that was written before, and what it speaks of.
#[derive(Debug)]
pub(super) struct Policy {
    items: Box<[(usize, u64, Option<Duration>)]>,
    value: HeaderValue,
}

impl Policy {
    fn is_of(&self, states: &[&RuleState]) -> bool {
        self.items.len() == states.len()
            && std::iter::zip(&self.items, states).all(|(item, state)| *item == policy_item(state))
    }
}

const fn policy_item(state: &RuleState) -> (usize, u64, Option<Duration>) {
    (state.rule, state.limit, state.window())
}

/// The policy of some rules in this order; written once for all calls that have the same.
fn policy(set: &LimitSet, states: &[&RuleState]) -> Option<HeaderValue> {
    let written = set.rule_set().written_policies();
    let known = written.load();
    if let Some(policy) = known.iter().find(|policy| policy.is_of(states)) {
        return Some(policy.value.clone());
    }
    let value = list(set, states, push_policy)?;
    let policy = Arc::new(Policy {
        items: states.iter().map(|state| policy_item(state)).collect(),
        value: value.clone(),
    });
    // Calls at once may each write one; what is lost is written again.
    let kept = known.iter().rev().take(MAX_POLICIES - 1).rev().cloned();
    written.store(Arc::new(kept.chain([policy]).collect()));
    Some(value)
}

/// So many are kept of a set: three rules have six orders, and a policy changes where a month is longer than the
/// last.
const MAX_POLICIES: usize = 8;

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

fn list(
    set: &LimitSet,
    states: &[&RuleState],
    push: fn(&mut BytesMut, &LimitSet, &RuleState),
) -> Option<HeaderValue> {
    field::value(|text| {
        for (place, state) in states.iter().enumerate() {
            if place > 0 {
                text.extend_from_slice(b", ");
            }
            push(text, set, state);
        }
    })
}

fn push_name(text: &mut BytesMut, set: &LimitSet, state: &RuleState) {
    let rule = set.rules().get(state.rule);
    text.extend_from_slice(rule.map_or("", |rule| rule.quoted_name()).as_bytes());
}

/// The largest integer of RFC 9651 section 3.3.1.
const MAX_STRUCTURED_INTEGER: u64 = 999_999_999_999_999;

fn push_number(text: &mut BytesMut, parameter: &[u8], n: u64) {
    text.extend_from_slice(parameter);
    let mut digits = itoa::Buffer::new();
    text.extend_from_slice(digits.format(n.min(MAX_STRUCTURED_INTEGER)).as_bytes());
}

fn push_policy(text: &mut BytesMut, set: &LimitSet, state: &RuleState) {
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
    text.extend_from_slice(unit);
}

fn push_state(text: &mut BytesMut, set: &LimitSet, state: &RuleState) {
    push_name(text, set, state);
    let mut numbers = Backwards::new();
    if let Some(reset) = state.reset() {
        numbers.push(b";t=", wait_seconds(reset));
    }
    numbers.push(b";r=", state.remaining);
    text.extend_from_slice(numbers.as_bytes());
}

/// Two parameters under construction, from their end: so that both are one piece.
struct Backwards {
    bytes: [u8; 48],
    start: usize,
}

impl Backwards {
    const fn new() -> Self {
        Self {
            bytes: [0; 48],
            start: 48,
        }
    }

    fn push(&mut self, parameter: &[u8; 3], n: u64) {
        // Two parameters of three bytes and of fifteen digits each have room.
        let free = self.bytes.get_mut(..self.start).unwrap_or_default();
        let mut places = free.iter_mut().rev();
        let mut rest = n.min(MAX_STRUCTURED_INTEGER);
        for place in places.by_ref() {
            // Below 10.
            *place = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        for (byte, place) in parameter.iter().rev().zip(places.by_ref()) {
            *place = *byte;
        }
        self.start = places.len();
    }

    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }
}

/// Says which limits are nearly used up: `Tollgate-Limit-Warning: "quota";percent=80`.
#[cold]
fn warning(set: &LimitSet, states: &[&RuleState]) -> Option<Box<HeaderValue>> {
    let is_told = |state: &&&RuleState| state.threshold > 0 || warns(set, state);
    let told: SmallVec<[&RuleState; 4]> = states.iter().filter(is_told).copied().collect();
    if told.is_empty() {
        return None;
    }
    list(set, &told, push_warning).map(Box::new)
}

fn push_warning(text: &mut BytesMut, set: &LimitSet, state: &RuleState) {
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
    fn two_parameters_of_any_size_are_one_piece() {
        let mut numbers = Backwards::new();
        numbers.push(b";t=", u64::MAX);
        numbers.push(b";r=", u64::MAX);
        assert_eq!(numbers.as_bytes(), b";r=999999999999999;t=999999999999999");
        let mut numbers = Backwards::new();
        numbers.push(b";r=", 0);
        assert_eq!(numbers.as_bytes(), b";r=0");
    }

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
}
