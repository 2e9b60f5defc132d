//! Values of header fields, without an allocation for each.

use std::cell::RefCell;

use bytes::BytesMut;
use http::HeaderValue;

/// So many bytes are allocated at once. As long as one value of them is kept, all of them are.
const ROOM_BYTES: usize = 4096;

thread_local! {
    /// Room for the next values of this thread. A value is a count on the room that it stands in; when the values
    /// of a full room are gone, the room is used again.
    static ROOM: RefCell<BytesMut> = RefCell::new(BytesMut::new());
}

/// The value that `write` puts together; `None` where that is no legal value (RFC 9110 section 5.5).
///
/// `write` must not make another value.
#[inline]
pub(crate) fn value(write: impl Fn(&mut BytesMut)) -> Option<HeaderValue> {
    let in_room = ROOM.try_with(|room| {
        let mut room = room.try_borrow_mut().ok()?;
        if room.capacity() < ROOM_BYTES / 16 {
            room.reserve(ROOM_BYTES);
        }
        write(&mut room);
        Some(room.split().freeze())
    });
    // A thread that ends has no room any more.
    let bytes = in_room.ok().flatten().unwrap_or_else(|| {
        let mut own = BytesMut::new();
        write(&mut own);
        own.freeze()
    });
    HeaderValue::from_maybe_shared(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stand_apart_and_may_be_longer_than_a_room() {
        let long = "x".repeat(2 * ROOM_BYTES);
        let values: Vec<_> = (0..1_000)
            .map(|n| value(|text| text.extend_from_slice(format!("value {n}").as_bytes())).unwrap())
            .collect();
        let longest = value(|text| text.extend_from_slice(long.as_bytes())).unwrap();
        for (n, value) in values.iter().enumerate() {
            assert_eq!(value, &format!("value {n}"));
        }
        assert_eq!(longest, long);
    }

    #[test]
    fn what_is_no_legal_value_makes_none() {
        assert!(value(|text| text.extend_from_slice(b"a\nb")).is_none());
        assert_eq!(value(|text| text.extend_from_slice(b"ab")).unwrap(), "ab");
    }
}
