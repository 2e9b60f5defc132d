use clickhouse::error::Error;

/// What an error of ClickHouse's means for a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Merges are behind: inserts make it worse.
    TooManyParts,
    /// Something in the rows, which others need not suffer for.
    OfRows(&'static str),
    /// The server, its settings or the way to it.
    Other,
}

/// The number of an exception, as it stands in the answer: `Code: 252. DB::Exception: ..`.
fn code(text: &str) -> Option<u16> {
    let (_, rest) = text.split_once("Code: ")?;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

/// Judges by the numbers of ClickHouse's `ErrorCodes.cpp`.
pub(super) fn judge(error: &Error) -> Fault {
    let Error::BadResponse(text) = error else {
        return Fault::Other;
    };
    match code(text) {
        Some(252) => Fault::TooManyParts,
        // A constraint, or a `throwIf` in a materialized view, that somebody added.
        Some(395 | 469) => Fault::OfRows("violated_constraint"),
        // Values out of range, text that is too large, rows that cannot be read.
        Some(6 | 27 | 32 | 33 | 69 | 117 | 131 | 321 | 349 | 407) => {
            Fault::OfRows("unreadable_row")
        }
        _ => Fault::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exception_is_told_by_its_number() {
        let judged = |text: &str| judge(&Error::BadResponse(text.to_owned()));
        assert_eq!(
            judged("Code: 252. DB::Exception: Too many parts (301)"),
            Fault::TooManyParts
        );
        assert_eq!(
            judged("Code: 469. DB::Exception: Constraint `c`"),
            Fault::OfRows("violated_constraint")
        );
        for other in [
            "Code: 241. DB::Exception: Memory limit",
            "Code: ",
            "Bad Gateway",
            "",
        ] {
            assert_eq!(judged(other), Fault::Other, "{other}");
        }
        assert_eq!(judge(&Error::TimedOut), Fault::Other);
    }
}
