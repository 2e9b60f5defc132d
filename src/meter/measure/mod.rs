//! Quantities that are read from the response itself, frame by frame.

mod body;
mod layer;
mod sse;
mod token_usage;

use bytes::Bytes;
use http::response::Parts;

use super::Meter;

pub use self::{
    body::{MeasureBody, MeasureFuture},
    layer::{MeasureLayer, Measured},
    token_usage::{TokenUsage, TokenUsageReader},
};

/// Reads quantities from the content of a response while it streams past, for [`MeasureLayer`].
///
/// A closure that takes the bytes of each data frame works, where nothing has to be kept between frames:
///
/// ```
/// use tollgate::meter::{MeasureLayer, Meter};
///
/// let layer = MeasureLayer::new(|data: &[u8], meter: &Meter| {
///     meter.add("lines", data.iter().filter(|byte| **byte == b'\n').count() as u64);
/// });
/// # let _ = layer;
/// ```
///
/// # Contract
///
/// - Runs on the task that serves the connection, between a frame and the client: it must not block, and what it
///   keeps should be bounded.
/// - What is added in [`data`](Self::data) belongs to that frame: it counts, whoever leaves, once the frame is
///   handed over.
/// - Frames end anywhere, also within a line, a number or a character.
pub trait Measure: Send + Sync + 'static {
    /// What is kept of one response between its frames.
    type State: Send;

    /// Looks at the head of a response; `None` lets it pass unread. Called once for each call that has a meter.
    fn begin(&self, head: &Parts) -> Option<Self::State>;

    /// Reads the next data frame.
    fn data(&self, state: &mut Self::State, data: &Bytes, meter: &Meter);

    /// The content has ended. Not called when the client leaves or the stream breaks before.
    fn end(&self, state: &mut Self::State, meter: &Meter) {
        let _ = (state, meter);
    }
}

impl<F> Measure for F
where
    F: Fn(&[u8], &Meter) + Send + Sync + 'static,
{
    type State = ();

    fn begin(&self, _: &Parts) -> Option<()> {
        Some(())
    }

    fn data(&self, (): &mut (), data: &Bytes, meter: &Meter) {
        self(data, meter);
    }
}
