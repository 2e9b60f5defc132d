use http::{HeaderMap, HeaderName};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The trace that a request belongs to, from its `traceparent` header field (W3C Trace Context, section 3.2).
///
/// Read, never made: a request without one begins no trace here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct TraceContext {
    /// The trace; never zero. Written as 32 lower-case hexadecimal digits.
    pub trace_id: u128,
    /// The caller's span; never zero. Written as 16 lower-case hexadecimal digits.
    pub parent_id: u64,
    /// Whether the caller may have recorded its span.
    pub sampled: bool,
}

impl TraceContext {
    /// The context of a request; `None` where it has none, has several or has one that the standard calls
    /// invalid.
    #[must_use]
    pub fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(TRACEPARENT).iter();
        match (values.next(), values.next()) {
            (Some(value), None) => Self::parse(value.as_bytes()),
            _ => None,
        }
    }

    /// Reads `00-<trace id>-<parent id>-<flags>`. A version that is not known yet may go on behind a further
    /// dash (section 3.2.4); the version `ff`, upper case and ids of zeros are invalid.
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (version, rest) = field::<2>(value)?;
        let (trace_id, rest) = field::<32>(after_dash(rest)?)?;
        let (parent_id, rest) = field::<16>(after_dash(rest)?)?;
        let (flags, rest) = field::<2>(after_dash(rest)?)?;
        let ends_well = match version {
            0 => rest.is_empty(),
            0xff => false,
            _ => rest.is_empty() || rest.starts_with(b"-"),
        };
        let context = Self {
            trace_id,
            parent_id: u64::try_from(parent_id).ok()?,
            sampled: flags & 1 == 1,
        };
        (ends_well && context.trace_id != 0 && context.parent_id != 0).then_some(context)
    }
}

fn after_dash(bytes: &[u8]) -> Option<&[u8]> {
    bytes.strip_prefix(b"-")
}

/// The number in the first `N` lower-case hexadecimal digits, 32 at most, and what follows them.
fn field<const N: usize>(bytes: &[u8]) -> Option<(u128, &[u8])> {
    let (digits, rest) = bytes.split_first_chunk::<N>()?;
    let number = digits.iter().try_fold(0_u128, |number, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(digit))
    })?;
    Some((number, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const PARENT: &str = "00f067aa0ba902b7";

    fn parse(value: &str) -> Option<TraceContext> {
        TraceContext::parse(value.as_bytes())
    }

    #[test]
    fn reads_the_form_of_the_standard() {
        let context = parse(&format!("00-{TRACE}-{PARENT}-01")).unwrap();
        assert_eq!(context.trace_id, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
        assert_eq!(context.parent_id, 0x00f0_67aa_0ba9_02b7);
        assert!(context.sampled);
        let flags = |flags: &str| {
            parse(&format!("00-{TRACE}-{PARENT}-{flags}"))
                .unwrap()
                .sampled
        };
        assert_eq!(
            (flags("00"), flags("02"), flags("03")),
            (false, false, true)
        );
    }

    #[test]
    fn a_version_of_the_future_may_say_more_behind_a_dash() {
        for good in [
            "01-T-P-01",
            "cc-T-P-01",
            "cc-T-P-01-what-the-future-says",
            "01-T-P-01-",
        ] {
            assert!(parse(&filled(good)).is_some(), "{good}");
        }
        for bad in ["01-T-P-01.x", "01-T-P-0100", "cc-T-P-01what"] {
            assert!(parse(&filled(bad)).is_none(), "{bad}");
        }
    }

    #[test]
    fn what_the_standard_calls_invalid_is_ignored() {
        for bad in [
            "",
            "00",
            "00-",
            "ff-T-P-01",
            "0-T-P-01",
            "000-T-P-01",
            "0F-T-P-01",
            "00-00000000000000000000000000000000-P-01",
            "00-T-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-P-01",
            "00-T-00F067AA0BA902B7-01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-P-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-P-01",
            "00-T0-P-01",
            "00-T-P-1",
            "00-T-P-0A",
            "00-T-P-01-",
            "00-T-P-01-more",
            "00-T-P",
            "00_T_P_01",
            " 00-T-P-01",
            "00-T-P-01 ",
        ] {
            assert!(parse(&filled(bad)).is_none(), "{bad}");
        }
    }

    fn filled(form: &str) -> String {
        form.replace('T', TRACE).replace('P', PARENT)
    }

    #[test]
    fn two_fields_are_none() {
        let value = HeaderValue::from_str(&filled("00-T-P-01")).unwrap();
        let mut headers = HeaderMap::new();
        headers.append(TRACEPARENT, value.clone());
        assert!(TraceContext::from_headers(&headers).is_some());
        headers.append(TRACEPARENT, value);
        assert!(TraceContext::from_headers(&headers).is_none());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Some(context) = TraceContext::parse(&bytes) {
                prop_assert!(context.trace_id != 0 && context.parent_id != 0);
            }
        }

        #[test]
        fn every_valid_context_is_read(trace in 1_u128.., parent in 1_u64.., flags in any::<u8>()) {
            let context = parse(&format!("00-{trace:032x}-{parent:016x}-{flags:02x}")).unwrap();
            prop_assert_eq!((context.trace_id, context.parent_id), (trace, parent));
            prop_assert_eq!(context.sampled, flags % 2 == 1);
        }
    }
}
