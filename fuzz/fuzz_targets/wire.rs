//! Payloads from MQTT and the control socket. Any bytes are a request or a short error; a request survives writing and reading in
//! either encoding; no payload is read deeper or longer than the bounds say.
#![no_main]

use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Debug;
use wire::{
    Ask, CancelRequest, Delete, Encoding, ErrorBody, ErrorCode, ErrorReply, Failed, List, MAX_DEPTH, MAX_REQUEST_ID_BYTES,
    MAX_WORDS, Mode, Priority, Put, ReplyForm,
};

/// A request or a reply.
trait Crosses: Serialize + DeserializeOwned + Debug {
    /// One with everything in it.
    fn full() -> Self;
    fn id(&self) -> Option<&str>;
    /// Removes values that JSON cannot express.
    fn make_plain(&mut self) {}
}

#[allow(clippy::unnecessary_wraps, reason = "most texts of a request may be missing")]
fn text(text: &str) -> Option<String> {
    Some(text.to_owned())
}

impl Crosses for Ask {
    fn full() -> Self {
        Self {
            id: text("a-7"),
            question: "Größe of \"M8\"?\n".to_owned(),
            collection: text("manuals"),
            filter: [("maker".to_owned(), vec!["x".to_owned(), String::new()])].into(),
            top_k: Some(5),
            max_tokens: Some(300),
            stream: Some(true),
            mode: Some(Mode::Evidence),
            deadline_ms: Some(70_000),
            priority: Some(Priority::High),
            reply_to: text("reply/a"),
            session: text("kitchen"),
            reply: Some(ReplyForm::Text),
            max_chars: Some(200),
            citations: Some(0),
            temperature: Some(0.7),
            top_p: Some(0.1),
            min_p: Some(0.0),
            seed: Some(u32::MAX),
        }
    }

    fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// Neither infinity nor NaN.
    fn make_plain(&mut self) {
        for number in [&mut self.temperature, &mut self.top_p, &mut self.min_p] {
            *number = number.filter(|number| number.is_finite());
        }
    }
}

impl Crosses for Put {
    fn full() -> Self {
        Self {
            id: text("p-7"),
            document: "shelf/a.md".to_owned(),
            text: text("# Clock\n"),
            data: Some(serde_bytes::ByteBuf::from(*b"\0\xff")),
            media_type: text("text/markdown"),
            title: text("Clock"),
            collection: text("manuals"),
            tags: [("maker".to_owned(), "x".to_owned())].into(),
            more: Some(3),
            reply_to: text("reply/a"),
        }
    }

    fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }
}

impl Crosses for Delete {
    fn full() -> Self {
        Self { id: text("d-7"), document: "shelf/a.md".to_owned(), collection: text("manuals"), reply_to: text("reply/a") }
    }

    fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }
}

impl Crosses for List {
    fn full() -> Self {
        Self { id: text("l-7"), collection: text("manuals"), skip: Some(1000), limit: Some(1), reply_to: text("reply/a") }
    }

    fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }
}

impl Crosses for CancelRequest {
    fn full() -> Self {
        Self { id: "a-7".to_owned() }
    }

    fn id(&self) -> Option<&str> {
        Some(&self.id)
    }
}

impl Crosses for Failed {
    fn full() -> Self {
        Self { document: "a.pdf".to_owned(), collection: text("manuals"), bytes: 1 << 40, reason: "too large".to_owned() }
    }

    fn id(&self) -> Option<&str> {
        None
    }
}

/// The command line reads it.
impl Crosses for ErrorReply {
    fn full() -> Self {
        let error = ErrorBody { code: ErrorCode::QueueFull, message: "later".to_owned(), retry_after_ms: Some(100) };
        Self { id: "a-7".to_owned(), error }
    }

    fn id(&self) -> Option<&str> {
        None
    }
}

fn assert_is_an_error_in_words(error: &str) {
    assert!(!error.is_empty() && error.chars().count() <= MAX_WORDS && !error.contains(char::is_control), "{error:?}");
}

fn assert_is_an_id(id: &str) {
    assert!(!id.is_empty() && id.len() <= MAX_REQUEST_ID_BYTES && !id.contains(char::is_control), "{id:?}");
}

fn read<T: Crosses>(encoding: Encoding, payload: &[u8]) {
    let mut value: T = match encoding.decode(payload) {
        Ok(value) => value,
        Err(error) => return assert_is_an_error_in_words(&error),
    };
    if let Some(id) = value.id() {
        assert_is_an_id(id);
    }
    let written = Encoding::Cbor.encode(&value).expect("it is written");
    // Names may be missing in the payload; apart from them, a short payload never becomes a long request.
    assert!(written.len() <= 2 * payload.len() + 256, "{} of {}", written.len(), payload.len());
    there_and_back(&value, Encoding::Cbor);
    value.make_plain();
    there_and_back(&value, Encoding::Json);
}

fn there_and_back<T: Crosses>(value: &T, encoding: Encoding) {
    let written = encoding.encode(value).expect("it is written");
    assert_eq!(Encoding::of(&written, None), Some(encoding), "{value:?}");
    let read: T = encoding.decode(&written).unwrap_or_else(|error| panic!("{error}: {value:?}"));
    // NaN differs from itself; its bytes do not.
    assert_eq!(encoding.encode(&read).expect("it is written"), written, "{value:?}");
    if encoding == Encoding::Cbor {
        let tagged = [&[0xd9, 0xd9, 0xf7], &written[..]].concat();
        assert_eq!(Encoding::of(&tagged, None), Some(encoding));
        let read: T = encoding.decode(&tagged).unwrap_or_else(|error| panic!("{error}: {value:?}"));
        assert_eq!(encoding.encode(&read).expect("it is written"), written, "{value:?}");
    }
}

/// A request of ours with some bytes of it replaced, or `bytes` alone.
fn payload<T: Crosses>(how: u8, bytes: &[u8]) -> Vec<u8> {
    let [at, replaced, new @ ..] = bytes else { return bytes.to_vec() };
    let encoding = match how & 3 {
        0 => Encoding::Cbor,
        1 => Encoding::Json,
        _ => return bytes.to_vec(),
    };
    let mut payload = encoding.encode(&T::full()).expect("it is written");
    let at = usize::from(*at) * payload.len() / 256;
    let end = (at + usize::from(replaced % 32)).min(payload.len());
    payload.splice(at..end, new.iter().copied());
    payload
}

fn request<T: Crosses>(how: u8, kind: Option<&str>, bytes: &[u8]) {
    let payload = payload::<T>(how, bytes);
    match Encoding::of(&payload, kind) {
        Some(encoding) => read::<T>(encoding, &payload),
        None => match CancelRequest::of_text(&payload) {
            Ok(request) => assert_is_an_id(&request.id),
            Err(error) => assert_is_an_error_in_words(&error),
        },
    }
}

/// A question with things within things in a field, one for each byte: an error where it is too deep, and never the end of the stack.
fn deep(how: u8, bytes: &[u8]) {
    let field = ["id", "filter", "mode", "nobody's"][usize::from(how & 3)];
    // Each of them up to 64 times: the bound is soon reached.
    let bytes = &bytes[..bytes.len().min(64)];
    let often = 1 + usize::from(how >> 2);
    let mut json = format!("{{\"question\":\"q\",\"{field}\":");
    let mut cbor = [&[0xa2, 0x68][..], b"question", b"\x61q", &[0x60 + field.len() as u8], field.as_bytes()].concat();
    let (mut ends, mut breaks) = (String::new(), 0);
    for level in bytes.iter().flat_map(|byte| std::iter::repeat_n(byte & 3, often)) {
        let (start, end, header): (_, _, &[u8]) = match level {
            0 => ("[", ']', &[0x81]),
            1 => ("{\"a\":", '}', &[0xa1, 0x61, b'a']),
            2 => ("[", ']', &[0x9f]),
            _ => ("[", ']', &[0xc1, 0x81]),
        };
        json.push_str(start);
        ends.push(end);
        cbor.extend_from_slice(header);
        breaks += usize::from(level == 2);
    }
    json.push('0');
    json.extend(ends.chars().rev());
    json.push('}');
    cbor.push(0);
    cbor.extend(std::iter::repeat_n(0xff, breaks));
    let depth = 1 + bytes.len() * often;
    for (encoding, payload) in [(Encoding::Json, json.as_bytes()), (Encoding::Cbor, &cbor)] {
        match encoding.decode::<Ask>(payload) {
            // JSON skips an unknown field without using the stack.
            Ok(ask) => {
                assert!(encoding == Encoding::Json || depth <= MAX_DEPTH, "{depth}");
                assert!(field == "nobody's" || depth == 1, "{ask:?}");
            }
            Err(error) => assert_is_an_error_in_words(&error),
        }
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let [request_type, how, bytes @ ..] = bytes else { return };
    let kinds = [None, Some("application/json"), Some("application/cbor; charset=x"), Some("text/plain")];
    let kind = kinds[usize::from(how >> 2 & 3)];
    match request_type & 7 {
        0 => request::<Ask>(*how, kind, bytes),
        1 => request::<Put>(*how, kind, bytes),
        2 => request::<Delete>(*how, kind, bytes),
        3 => request::<List>(*how, kind, bytes),
        4 => request::<CancelRequest>(*how, kind, bytes),
        5 => request::<Failed>(*how, kind, bytes),
        6 => request::<ErrorReply>(*how, kind, bytes),
        _ => deep(*how, bytes),
    }
});
