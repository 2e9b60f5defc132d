use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    task::Poll,
    time::Duration,
};

use tokio::time::timeout;

use super::{SinkError, UsageSink, Verdicts};
use crate::meter::UsageEvent;

/// Why a batch got no verdict.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OfferFailure {
    #[error(transparent)]
    Sink(SinkError),
    #[error("the sink did not answer within {0:?}")]
    Timeout(Duration),
    #[error("the sink panicked")]
    Panic,
}

/// Writes a batch with all that a sink may do wrong: an error, no answer in time, a panic.
pub(crate) async fn offer(
    sink: &dyn UsageSink,
    batch: &[UsageEvent],
    patience: Duration,
) -> Result<Verdicts, OfferFailure> {
    let writing = async {
        let mut write = pin!(sink.write(batch));
        std::future::poll_fn(move |cx| {
            // A sink that panics must not end the background task, which would then be started by the next
            // call and offer the batch again without a wait.
            match catch_unwind(AssertUnwindSafe(|| write.as_mut().poll(cx))) {
                Ok(Poll::Pending) => Poll::Pending,
                Ok(Poll::Ready(result)) => Poll::Ready(result.map_err(OfferFailure::Sink)),
                Err(_) => Poll::Ready(Err(OfferFailure::Panic)),
            }
        })
        .await
    };
    match timeout(patience, writing).await {
        Ok(result) => result,
        Err(_) => Err(OfferFailure::Timeout(patience)),
    }
}
