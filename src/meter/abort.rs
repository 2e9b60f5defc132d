/// What a call pays whose client left before the answer was complete.
///
/// Applies to calls with the outcome [`Aborted`](super::CallOutcome::Aborted) and to nothing else: a call that is
/// served, refused, fails or panics counts what was added to its [`Meter`](super::Meter), whatever the policy.
///
/// "Handed over" means that the response body gave a frame to the server that asked for it. Nobody can know what
/// became of the bytes after that: they may wait in the buffers of the server, of the kernel or of a proxy when the
/// client leaves. So a client may pay for up to one frame and these buffers without having seen them, and never
/// pays for what was not even asked for.
///
/// | | [`Delivered`](Self::Delivered) | [`Produced`](Self::Produced) | [`NothingBeforeFirstByte`](Self::NothingBeforeFirstByte) |
/// | --- | --- | --- | --- |
/// | left before the first byte of content: quantities | none | all added | none |
/// | and the charge of its quotas | stays | stays | is given back |
/// | left later: quantities | those added until the last frame | all added | those added until the last frame |
/// | a reservation | the rest is released | the rest is released | the rest is released |
/// | a charge of rates and windows | stays | stays | stays |
///
/// A quantity belongs to the first frame that is handed over after it was added. Add it where the frame is made,
/// in the stream itself or through [`Measure`](super::Measure): a task that runs ahead of the stream adds for
/// frames that are not handed over yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AbortPolicy {
    /// Quantities count that were added until the last frame was handed over. The default.
    #[default]
    Delivered,
    /// As `Delivered`, but a call that is left before the first byte of its content was handed over pays nothing:
    /// its event stays, marked as [`waived`](super::UsageEvent::waived), and its quotas get everything back. Rates
    /// and windows keep what they were charged, or leaving early would be a way around them.
    NothingBeforeFirstByte,
    /// Every quantity counts that was added, handed over or not: for work that costs as much unseen.
    Produced,
}

impl AbortPolicy {
    /// What counts of a call that was left after so many bytes of content.
    pub(super) const fn billed(self, n_bytes: u64) -> Billed {
        match self {
            Self::Produced => Billed::All,
            Self::NothingBeforeFirstByte if n_bytes == 0 => Billed::Nothing,
            Self::Delivered | Self::NothingBeforeFirstByte => Billed::Delivered,
        }
    }
}

/// What counts of a call's quantities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Billed {
    /// All that was added.
    #[default]
    All,
    /// What was added until the last frame was handed over.
    Delivered,
    /// Nothing, and the call is not paid for either.
    Nothing,
}
