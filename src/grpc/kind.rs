use http::{HeaderMap, HeaderValue, Method, Request, header::CONTENT_TYPE};

/// The forms of gRPC, told by the media type of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GrpcKind {
    /// `application/grpc`: the status stands in the trailers.
    Grpc,
    /// `application/grpc-web`: the status stands in the last frame of the body.
    Web,
    /// `application/grpc-web-text`: the same in base64.
    WebText,
}

impl GrpcKind {
    /// The form of a call. Every gRPC call is a POST, so that the others are told apart by their method alone.
    #[inline]
    pub(crate) fn of_call(method: &Method, content_type: Option<&HeaderValue>) -> Option<Self> {
        content_type
            .filter(|_| *method == Method::POST)
            .and_then(|value| Self::of_media_type(value.as_bytes()))
    }

    /// The form of a call whose header was not read before.
    #[inline]
    pub(crate) fn of_request<B>(request: &Request<B>) -> Option<Self> {
        if *request.method() == Method::POST {
            Self::of(request.headers())
        } else {
            None
        }
    }

    /// The form of a message, `None` when it is no gRPC.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        Self::of_media_type(headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes)?)
    }

    /// Reads the media type; what follows `+` names the encoding of the messages and does not matter here.
    pub(crate) fn of_media_type(value: &[u8]) -> Option<Self> {
        let end = value.iter().position(|byte| matches!(byte, b';' | b'+'));
        let name = end.and_then(|end| value.get(..end)).unwrap_or(value);
        let name = name.trim_ascii();
        [
            (Self::Grpc, b"application/grpc".as_slice()),
            (Self::Web, b"application/grpc-web"),
            (Self::WebText, b"application/grpc-web-text"),
        ]
        .into_iter()
        .find_map(|(kind, known)| name.eq_ignore_ascii_case(known).then_some(kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_told_by_the_media_type() {
        for (value, kind) in [
            ("application/grpc", Some(GrpcKind::Grpc)),
            ("application/grpc+proto", Some(GrpcKind::Grpc)),
            ("Application/GRPC; a=b", Some(GrpcKind::Grpc)),
            ("application/grpc-web", Some(GrpcKind::Web)),
            ("application/grpc-web+json;a=b", Some(GrpcKind::Web)),
            ("application/grpc-web-text", Some(GrpcKind::WebText)),
            ("application/grpc-web-text+proto", Some(GrpcKind::WebText)),
            ("application/grpcx", None),
            ("application/grpc-other", None),
            ("application/json", None),
            ("text/grpc", None),
            ("", None),
        ] {
            let kind_of = GrpcKind::of_media_type(value.as_bytes());
            assert_eq!(kind_of, kind, "{value}");
        }
    }
}
