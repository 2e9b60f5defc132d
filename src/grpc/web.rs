//! The trailers of gRPC-Web, which stand in the body (`PROTOCOL-WEB.md` of gRPC).

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{GrpcCode, GrpcKind};

/// In the first byte of a frame: trailers follow, not a message.
pub(crate) const TRAILERS: u8 = 0x80;

/// The first byte and the length, big-endian, of what follows.
const FRAME_HEAD: usize = 5;

/// The most that is kept of a frame of trailers, in bytes; the status stands at its beginning as a rule.
const MAX_KEPT: usize = 4096;

/// Finds the status in a body as it passes.
#[derive(Debug)]
pub(crate) struct WebTrailers {
    text: Option<Base64>,
    head: [u8; FRAME_HEAD],
    in_head: usize,
    left: u32,
    kept: Vec<u8>,
}

impl WebTrailers {
    pub(crate) fn new(kind: GrpcKind) -> Self {
        Self {
            text: (kind == GrpcKind::WebText).then(Base64::default),
            head: [0; FRAME_HEAD],
            in_head: 0,
            left: 0,
            kept: Vec::new(),
        }
    }

    /// Reads a piece of the body; the status once it is known.
    pub(crate) fn read(&mut self, data: &[u8]) -> Option<GrpcCode> {
        match &mut self.text {
            Some(text) => {
                let decoded = text.decode(data);
                self.read_frames(&decoded)
            }
            None => self.read_frames(data),
        }
    }

    fn read_frames(&mut self, mut data: &[u8]) -> Option<GrpcCode> {
        while let Some((first, rest)) = data.split_first() {
            if let Some(place) = self.head.get_mut(self.in_head) {
                *place = *first;
                self.in_head += 1;
                data = rest;
                if self.in_head < FRAME_HEAD {
                    continue;
                }
                let [_, length @ ..] = self.head;
                self.left = u32::from_be_bytes(length);
            } else {
                let here = data.len().min(self.left as usize);
                let (part, after) = data.split_at_checked(here).unwrap_or((data, &[]));
                if self.is_trailers() {
                    let room = MAX_KEPT.saturating_sub(self.kept.len()).min(part.len());
                    self.kept.extend(part.iter().take(room));
                }
                // `here` is at most `left`.
                self.left = self.left.saturating_sub(here as u32);
                data = after;
            }
            if self.left == 0 {
                self.in_head = 0;
                if self.is_trailers() {
                    return status_in(&self.kept);
                }
            }
        }
        None
    }

    const fn is_trailers(&self) -> bool {
        self.head[0] & TRAILERS != 0
    }
}

/// The lines of a header block of HTTP/1, whose names are in lower case by the protocol.
fn status_in(block: &[u8]) -> Option<GrpcCode> {
    block.split(|byte| *byte == b'\n').find_map(|line| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = line.split_at_checked(colon)?;
        let is_status = name.trim_ascii().eq_ignore_ascii_case(b"grpc-status");
        is_status.then(|| GrpcCode::from_field(value.get(1..).unwrap_or_default().trim_ascii()))
    })
}

/// Decodes base64 that comes in pieces, each of which may end with padding of its own.
#[derive(Debug, Default)]
struct Base64 {
    group: [u8; 4],
    filled: usize,
}

impl Base64 {
    fn decode(&mut self, text: &[u8]) -> Vec<u8> {
        let mut decoded = Vec::with_capacity(text.len() / 4 * 3 + 3);
        for byte in text {
            if let Some(place) = self.group.get_mut(self.filled) {
                *place = *byte;
                self.filled += 1;
            }
            if self.filled == self.group.len() {
                self.filled = 0;
                // What is not base64 is not understood by the client either: its call has no status.
                let _ = STANDARD.decode_vec(self.group, &mut decoded);
            }
        }
        decoded
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(flags: u8, content: &[u8]) -> Vec<u8> {
        let mut frame = vec![flags];
        frame.extend((content.len() as u32).to_be_bytes());
        frame.extend(content);
        frame
    }

    fn read(kind: GrpcKind, body: &[u8], cuts: usize) -> Option<GrpcCode> {
        let mut trailers = WebTrailers::new(kind);
        body.chunks(cuts.max(1))
            .filter_map(|piece| trailers.read(piece))
            .last()
    }

    proptest! {
        #[test]
        fn finds_the_status_however_the_body_is_cut(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..4),
            code in 0_u8..17,
            cuts in 1_usize..50,
        ) {
            let block = format!("grpc-message:x\r\nGrpc-Status: {code}\r\n");
            let mut body: Vec<u8> = messages.iter().flat_map(|message| frame(0, message)).collect();
            body.extend(frame(TRAILERS, block.as_bytes()));
            let code = GrpcCode::from_u8(code);
            prop_assert_eq!(read(GrpcKind::Web, &body, cuts), code);
            prop_assert_eq!(read(GrpcKind::WebText, STANDARD.encode(&body).as_bytes(), cuts), code);
        }

        #[test]
        fn any_bytes_are_read_without_harm(body in prop::collection::vec(any::<u8>(), 0..400), cuts in 1_usize..50) {
            let _ = read(GrpcKind::Web, &body, cuts);
            let _ = read(GrpcKind::WebText, &body, cuts);
        }
    }

    #[test]
    fn pieces_of_base64_may_each_have_padding() {
        let frame = frame(TRAILERS, b"grpc-status:7\r\n");
        let (first, second) = frame.split_at(7);
        let text = STANDARD.encode(first) + &STANDARD.encode(second);
        let code = read(GrpcKind::WebText, text.as_bytes(), 3);
        assert_eq!(code, Some(GrpcCode::PermissionDenied));
    }

    #[test]
    fn trailers_without_a_status_tell_none() {
        for block in [
            "",
            "grpc-message:x\r\n",
            "grpc-statusx:0\r\n",
            "grpc-status",
        ] {
            let body = frame(TRAILERS, block.as_bytes());
            assert_eq!(read(GrpcKind::Web, &body, 64), None, "{block}");
        }
    }
}
