//! What comes over MQTT and the control socket: any bytes are a request or an error in words; one that is understood is the same again when
//! it is written and read in either encoding; and nothing is read deeper or longer than the bounds say.
#![no_main]
#![allow(dead_code)]

#[path = "../../daemon/src/api/wire.rs"]
mod wire;

/// In place of the room `answer`, whose parts of a reply no client sends.
mod answer {
    use serde::{Deserialize, Serialize};

    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    pub enum Mode {
        #[default]
        Answer,
        Evidence,
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    pub struct Answer {
        answer: String,
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    pub struct Citation {
        document: String,
    }
}

/// In place of the room `ingest`, for the same reason.
mod ingest {
    pub mod watch {
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        pub struct Listed {
            id: String,
        }
    }
}

use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Debug;
use wire::Encoding;

/// Reads a request, and what that gives again from what it is written as; `plain` leaves out what JSON has no words for.
fn there_and_back<T: Serialize + DeserializeOwned + Debug + Clone>(
    encoding: Encoding,
    bytes: &[u8],
    id: impl Fn(&T) -> Option<&str>,
    plain: impl Fn(&mut T),
) {
    let Ok(request) = encoding.decode::<T>(bytes) else { return };
    let id = id(&request).unwrap_or("none");
    assert!(!id.is_empty() && id.len() <= wire::MAX_ID && !id.contains(char::is_control), "{id:?}");
    let mut plainly = request.clone();
    plain(&mut plainly);
    for (encoding, request) in [(Encoding::Cbor, request), (Encoding::Json, plainly)] {
        let written = encoding.encode(&request).expect("it is written");
        let read: T = encoding.decode(&written).unwrap_or_else(|error| panic!("{error}: {request:?}"));
        assert_eq!(encoding.encode(&read).expect("it is written"), written, "{request:?}");
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((first, payload)) = bytes.split_first() else { return };
    let kind = [None, Some("application/json"), Some("application/cbor; charset=x"), Some("text/plain")][usize::from(first & 3)];
    let Some(encoding) = Encoding::of(payload, kind) else { return };
    match first >> 2 & 7 {
        0..=2 => there_and_back::<wire::Ask>(
            encoding,
            payload,
            |ask| ask.id.as_deref(),
            // JSON has neither infinity nor NaN.
            |ask| (ask.temperature, ask.top_p, ask.min_p) = (None, None, None),
        ),
        3 => there_and_back::<wire::Put>(encoding, payload, |put| put.id.as_deref(), |_| ()),
        4 => there_and_back::<wire::Delete>(encoding, payload, |delete| delete.id.as_deref(), |_| ()),
        5 => there_and_back::<wire::List>(encoding, payload, |list| list.id.as_deref(), |_| ()),
        6 => there_and_back::<wire::CancelRequest>(encoding, payload, |cancel| Some(&cancel.id), |_| ()),
        _ => {
            // Deeper than the bound: an error, whatever it is that is so deep, and never the end of the stack.
            let depth = 200 + payload.len();
            let deep = match encoding {
                Encoding::Json => [b"{\"question\":".repeat(depth), payload.to_vec()].concat(),
                Encoding::Cbor => [[&[0xa1, 0x68], &b"question"[..]].concat().repeat(depth), payload.to_vec()].concat(),
            };
            assert!(encoding.decode::<wire::Ask>(&deep).is_err());
        }
    }
});
