//! Reading a body that a stranger sends: so much, and so long.

use std::{future::poll_fn, pin::Pin, time::Duration};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http_body::Body;

use super::Answer;

pub(super) async fn read<B: Body>(
    body: B,
    max_bytes: usize,
    deadline: Duration,
) -> Result<Bytes, Answer> {
    // What is said to be too large is not even read.
    let least = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if least > max_bytes {
        return Err(Answer::TooLarge);
    }
    let reading = collect(Box::pin(body), max_bytes);
    let read = tokio::time::timeout(deadline, reading).await;
    read.unwrap_or(Err(Answer::TooSlow))
}

async fn collect<B: Body>(mut body: Pin<Box<B>>, max_bytes: usize) -> Result<Bytes, Answer> {
    let mut bytes = BytesMut::new();
    while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        let Ok(frame) = frame else {
            return Err(Answer::BrokenBody);
        };
        // Trailers say nothing that is signed.
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if bytes.len().saturating_add(data.remaining()) > max_bytes {
            return Err(Answer::TooLarge);
        }
        bytes.put(data);
    }
    Ok(bytes.freeze())
}
