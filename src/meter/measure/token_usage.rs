use std::{fmt, sync::Arc};

use bytes::Bytes;
use http::{
    HeaderMap,
    header::{CONTENT_ENCODING, CONTENT_TYPE},
    response::Parts,
};
use serde_json::Value;

use super::{Measure, sse::EventReader};
use crate::meter::Meter;

/// Reads the token counts that language model APIs report in their answers: the `usage` of a streamed answer's
/// events (`text/event-stream`), or of a whole one (`application/json`).
///
/// 1. In each event's JSON a `usage` object is looked for, at the top (OpenAI's chat completions and what is
///    compatible with them, Anthropic's `message_delta`), in `message` (Anthropic's `message_start`) and in
///    `response` (OpenAI's responses); and `usageMetadata` at the top (Gemini).
/// 2. Its whole numbers are counted under the names of the table. They are taken as totals of the answer so far:
///    the largest stands, and what it has grown by is added when it is read. A total that is repeated with each
///    event is so counted once, and a client that leaves pays for the last that was handed over.
/// 3. What is no JSON, has no usage or is longer than [`max_event_bytes`](Self::max_event_bytes) is passed over.
///    Nothing is ever held back from the client.
///
/// | field | quantity |
/// | --- | --- |
/// | `prompt_tokens`, `input_tokens`, `promptTokenCount` | `input_tokens` |
/// | `completion_tokens`, `output_tokens`, `candidatesTokenCount` | `output_tokens` |
///
/// Some APIs tell the usage in the last event only, and some (OpenAI's chat completions) only when the request
/// asks for it with `stream_options: {"include_usage": true}`: a client that leaves before it pays no tokens. Where
/// that matters, count the events too, by [`count_events`](Self::count_events).
///
/// A compressed answer (`content-encoding`) is passed over.
#[derive(Clone)]
#[must_use]
pub struct TokenUsage {
    settings: Arc<Settings>,
}

#[derive(Clone)]
struct Settings {
    /// Each field and the place of its quantity.
    fields: Vec<(Box<str>, usize)>,
    quantities: Vec<Arc<str>>,
    events: Option<Arc<str>>,
    max_event_bytes: usize,
}

impl TokenUsage {
    /// Reads the fields of the table, in events of up to 256 KiB.
    pub fn new() -> Self {
        let settings = Settings {
            fields: Vec::new(),
            quantities: Vec::new(),
            events: None,
            max_event_bytes: 256 * 1024,
        };
        let none = Self {
            settings: Arc::new(settings),
        };
        let inputs = ["prompt_tokens", "input_tokens", "promptTokenCount"];
        let outputs = ["completion_tokens", "output_tokens", "candidatesTokenCount"];
        let input = |usage: Self, field| usage.field(field, "input_tokens");
        let output = |usage: Self, field| usage.field(field, "output_tokens");
        outputs
            .into_iter()
            .fold(inputs.into_iter().fold(none, input), output)
    }

    fn with(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(Arc::make_mut(&mut self.settings));
        self
    }

    /// Counts one more field of the usage object, such as `total_tokens`, under a quantity's name; in place of
    /// the table's where it names one of its fields. Of several fields under one name the largest stands.
    pub fn field(self, field: impl Into<String>, quantity: impl Into<Arc<str>>) -> Self {
        let (field, quantity) = (field.into().into_boxed_str(), quantity.into());
        self.with(|settings| {
            let known = settings
                .quantities
                .iter()
                .position(|name| *name == quantity);
            let place = known.unwrap_or(settings.quantities.len());
            if known.is_none() {
                settings.quantities.push(quantity);
            }
            settings.fields.retain(|(known, _)| *known != field);
            settings.fields.push((field, place));
        })
    }

    /// Counts the events of a stream, `[DONE]` excepted, under a quantity's name; not counted unless set.
    pub fn count_events(self, quantity: impl Into<Arc<str>>) -> Self {
        self.with(|settings| settings.events = Some(quantity.into()))
    }

    /// The longest event, or whole JSON answer, that is read, in bytes; 262,144 unless set. It bounds what one
    /// stream can keep in memory, twice.
    pub fn max_event_bytes(self, n_bytes: usize) -> Self {
        self.with(|settings| settings.max_event_bytes = n_bytes)
    }
}

impl Default for TokenUsage {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for TokenUsage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenUsage")
            .field("quantities", &self.settings.quantities)
            .field("max_event_bytes", &self.settings.max_event_bytes)
            .finish_non_exhaustive()
    }
}

/// The reading of one answer by [`TokenUsage`].
#[derive(Debug)]
pub struct TokenUsageReader {
    form: Form,
    /// The largest total of each quantity so far, in the order of the settings.
    totals: Vec<u64>,
}

#[derive(Debug)]
enum Form {
    Events(EventReader),
    /// A whole answer; `None` once it is too long.
    Json(Option<Vec<u8>>),
}

impl Measure for TokenUsage {
    type State = TokenUsageReader;

    fn begin(&self, head: &Parts) -> Option<TokenUsageReader> {
        if head.headers.contains_key(CONTENT_ENCODING) {
            return None;
        }
        let form = match media_type(&head.headers)? {
            kind if kind.eq_ignore_ascii_case(b"text/event-stream") => {
                Form::Events(EventReader::new(self.settings.max_event_bytes))
            }
            kind if kind.eq_ignore_ascii_case(b"application/json") => Form::Json(Some(Vec::new())),
            _ => return None,
        };
        let totals = vec![0; self.settings.quantities.len()];
        Some(TokenUsageReader { form, totals })
    }

    fn data(&self, state: &mut TokenUsageReader, data: &Bytes, meter: &Meter) {
        let TokenUsageReader { form, totals } = state;
        match form {
            Form::Events(events) => {
                events.read(data, &mut |event| self.event(event, totals, meter));
            }
            Form::Json(kept) => {
                let max = self.settings.max_event_bytes;
                match kept {
                    Some(bytes) if bytes.len().saturating_add(data.len()) <= max => {
                        bytes.extend_from_slice(data);
                    }
                    _ => *kept = None,
                }
            }
        }
    }

    fn end(&self, state: &mut TokenUsageReader, meter: &Meter) {
        let TokenUsageReader { form, totals } = state;
        match form {
            Form::Events(events) => events.end(&mut |event| self.event(event, totals, meter)),
            Form::Json(Some(bytes)) => self.json(bytes, totals, meter),
            Form::Json(None) => {}
        }
    }
}

impl TokenUsage {
    fn event(&self, data: &[u8], totals: &mut [u64], meter: &Meter) {
        if let Some(name) = &self.settings.events
            && data != b"[DONE]"
        {
            meter.add(name, 1);
        }
        self.json(data, totals, meter);
    }

    fn json(&self, text: &[u8], totals: &mut [u64], meter: &Meter) {
        // Most events hold a word of text only, and are not parsed.
        if !holds(text, b"\"usage") {
            return;
        }
        let Ok(json) = serde_json::from_slice::<Value>(text) else {
            return;
        };
        let places = [
            json.get("usage"),
            json.get("usageMetadata"),
            json.get("message").and_then(|message| message.get("usage")),
            json.get("response")
                .and_then(|response| response.get("usage")),
        ];
        for usage in places.into_iter().flatten() {
            for (field, place) in &self.settings.fields {
                let now = usage.get(&**field).and_then(Value::as_u64);
                let quantity = self.settings.quantities.get(*place);
                let (Some(now), Some(quantity), Some(total)) =
                    (now, quantity, totals.get_mut(*place))
                else {
                    continue;
                };
                if now > *total {
                    meter.add(quantity, now - *total);
                    *total = now;
                }
            }
        }
    }
}

fn media_type(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(CONTENT_TYPE)?.as_bytes();
    let kind = value.split(|byte| *byte == b';').next()?;
    Some(kind.trim_ascii())
}

fn holds(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|window| window == word)
}

#[cfg(test)]
mod tests {
    use http::Response;

    use super::*;
    use crate::{clock::Now, meter::EventId};

    fn read(usage: &TokenUsage, kind: &str, pieces: &[&str]) -> Meter {
        let meter = Meter::new(EventId::new(0, 0), Now::default());
        let head = Response::builder().header(CONTENT_TYPE, kind).body(());
        let (head, ()) = head.unwrap().into_parts();
        if let Some(mut state) = usage.begin(&head) {
            for piece in pieces {
                let data = Bytes::copy_from_slice(piece.as_bytes());
                usage.data(&mut state, &data, &meter);
            }
            usage.end(&mut state, &meter);
        }
        meter
    }

    fn tokens(meter: &Meter) -> (u64, u64) {
        (
            meter.quantity("input_tokens"),
            meter.quantity("output_tokens"),
        )
    }

    const EVENTS: &str = "text/event-stream; charset=utf-8";

    #[test]
    fn reads_the_forms_of_the_common_apis() {
        let usage = TokenUsage::new().count_events("events");
        let chat = concat!(
            "data: {\"choices\":[{\"delta\":{\"content\":\"say \\\"usage\\\"\"}}],\"usage\":null}\n\n",
            "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":19,\"completion_tokens\":10,\"total_tokens\":29}}\n\n",
            "data: [DONE]\n\n",
        );
        let meter = read(&usage, EVENTS, &[chat]);
        assert_eq!(tokens(&meter), (19, 10));
        assert_eq!(meter.quantity("events"), 2);
        let messages = concat!(
            "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":",
            "{\"input_tokens\":25,\"output_tokens\":1}}}\n\n",
            "event: message_delta\ndata: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":15}}\n\n",
        );
        assert_eq!(tokens(&read(&usage, EVENTS, &[messages])), (25, 15));
        let both =
            "data: {\"usage\":{\"prompt_tokens\":8,\"input_tokens\":8,\"output_tokens\":2}}\n\n";
        assert_eq!(tokens(&read(&usage, EVENTS, &[both])), (8, 2));
        let responses = "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"usage\":\
             {\"input_tokens\":37,\"output_tokens\":11,\"total_tokens\":48}}}\n\n";
        assert_eq!(tokens(&read(&usage, EVENTS, &[responses])), (37, 11));
        let gemini = "data: {\"usageMetadata\":{\"promptTokenCount\":4,\"candidatesTokenCount\":2}}\r\n\r\n\
             data: {\"usageMetadata\":{\"promptTokenCount\":4,\"candidatesTokenCount\":9}}\r\n\r\n";
        assert_eq!(tokens(&read(&usage, EVENTS, &[gemini])), (4, 9));
        let whole = r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5}}"#;
        let (one, two) = whole.split_at(20);
        assert_eq!(
            tokens(&read(&usage, "application/json", &[one, two])),
            (3, 5)
        );
    }

    #[test]
    fn a_total_that_is_repeated_is_counted_once_and_never_falls() {
        let stream: Vec<_> = [1, 5, 5, 3, 9]
            .iter()
            .map(|n| format!("data: {{\"usage\":{{\"completion_tokens\":{n}}}}}\n\n"))
            .collect();
        let stream: Vec<_> = stream.iter().map(String::as_str).collect();
        assert_eq!(tokens(&read(&TokenUsage::new(), EVENTS, &stream)), (0, 9));
    }

    #[test]
    fn what_is_no_usage_is_passed_over() {
        let usage = TokenUsage::new().max_event_bytes(60);
        let long = format!(
            "data: {{\"pad\":\"{}\",\"usage\":{{\"output_tokens\":5}}}}\n\n",
            "x".repeat(60)
        );
        for stream in [
            "data: {\"usage\":{\"output_tokens\":-1,\"input_tokens\":1.5}}\n\n",
            "data: {\"usage\":{\"output_tokens\":\"7\"}}\n\n",
            "data: {\"usage\":[1,2]}\n\n",
            "data: {\"usage\":{\"output_tokens\":5\n\n",
            "data: \"usage\n\n",
            &long,
        ] {
            assert_eq!(tokens(&read(&usage, EVENTS, &[stream])), (0, 0), "{stream}");
        }
        let deep = format!(
            "data: {}\"usage\"{}\n\n",
            "[".repeat(10_000),
            "]".repeat(10_000)
        );
        assert_eq!(tokens(&read(&TokenUsage::new(), EVENTS, &[&deep])), (0, 0));
        let good = "data: {\"usage\":{\"output_tokens\":5}}\n\n";
        assert_eq!(tokens(&read(&usage, "text/plain", &[good])), (0, 0));
        assert_eq!(tokens(&read(&usage, EVENTS, &[&long, good])), (0, 5));
    }

    #[test]
    fn a_lie_of_the_largest_number_does_not_wrap() {
        let lie = format!("data: {{\"usage\":{{\"output_tokens\":{}}}}}\n\n", u64::MAX);
        let usage = TokenUsage::new().field("total", "output_tokens");
        let more = "data: {\"usage\":{\"total\":7}}\n\n";
        assert_eq!(tokens(&read(&usage, EVENTS, &[&lie, more])), (0, u64::MAX));
    }
}
