//! Other implementations read our CBOR, and we read theirs.

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use vademecum_tests::{python, run_with_input};
use wire::{
    Answer, AnswerReply, AnsweredBy, Ask, CancelRequest, Change, Citation, Delete, DeleteReply, DeltaReply, Encoding, ErrorBody,
    ErrorCode, ErrorReply, EvidenceReply, FileState, LibraryState, LibraryWork, List, ListReply, Listed, Mode, Origin,
    PassageReply, Priority, Put, PutReply, ReplyForm, SearchReply, Timings, Usage,
};

/// Another implementation reads our CBOR, and we read its CBOR, also with the tag of self-described CBOR.
fn crosses<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T) {
    let ours = Encoding::Cbor.encode(value).expect("we write");
    assert_eq!(&serde_cbor::from_slice::<T>(&ours).expect("the peer reads"), value);
    let theirs = serde_cbor::to_vec(value).expect("the peer writes");
    for bytes in [theirs.clone(), [&[0xd9, 0xd9, 0xf7], theirs.as_slice()].concat()] {
        assert_eq!(Encoding::of(&bytes, None), Some(Encoding::Cbor), "told by its first byte");
        assert_eq!(&Encoding::Cbor.decode::<T>(&bytes).expect("we read"), value);
    }
}

fn text() -> impl Strategy<Value = String> {
    "\\PC{0,24}"
}

fn id() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9 äß漢🔧_-]{1,24}"
}

fn number() -> impl Strategy<Value = f32> {
    proptest::num::f32::NORMAL | proptest::num::f32::ZERO
}

fn millis() -> impl Strategy<Value = f64> {
    proptest::num::f64::NORMAL | proptest::num::f64::ZERO
}

fn ask() -> impl Strategy<Value = Ask> {
    let mode = option::of(prop_oneof![Just(Mode::Answer), Just(Mode::Evidence)]);
    let first =
        (option::of(id()), text(), option::of(text()), btree_map(text(), vec(text(), 0..3), 0..3), option::of(any::<usize>()));
    let second = (option::of(any::<usize>()), option::of(any::<bool>()), mode, option::of(any::<u64>()), option::of(text()));
    let priority = option::of(prop_oneof![Just(Priority::Low), Just(Priority::Normal), Just(Priority::High)]);
    let third = (option::of(number()), option::of(number()), option::of(number()), option::of(any::<u32>()), priority);
    let form = option::of(prop_oneof![Just(ReplyForm::Json), Just(ReplyForm::Text)]);
    let shape = (option::of(text()), form, option::of(any::<usize>()), option::of(any::<usize>()));
    (first, second, third, shape).prop_map(|(a, b, c, d)| Ask {
        id: a.0,
        question: a.1,
        collection: a.2,
        filter: a.3,
        top_k: a.4,
        max_tokens: b.0,
        stream: b.1,
        mode: b.2,
        deadline_ms: b.3,
        priority: c.4,
        reply_to: b.4,
        session: d.0,
        reply: d.1,
        max_chars: d.2,
        citations: d.3,
        temperature: c.0,
        top_p: c.1,
        min_p: c.2,
        seed: c.3,
    })
}

fn put() -> impl Strategy<Value = Put> {
    let data = option::of(vec(any::<u8>(), 0..64).prop_map(serde_bytes::ByteBuf::from));
    let (tags, texts) = (btree_map(text(), text(), 0..3), vec(option::of(text()), 5));
    (option::of(id()), text(), data, tags, texts).prop_map(|(id, document, data, tags, texts)| {
        let [text, media_type, title, collection, reply_to] = texts.try_into().expect("five");
        Put { id, document, text, data, media_type, title, collection, tags, more: None, reply_to }
    })
}

fn citation() -> impl Strategy<Value = Citation> {
    let pages = (option::of(any::<u32>()), vec(any::<u32>(), 0..3));
    (any::<usize>(), vec(text(), 5), pages, number()).prop_map(|(n, texts, (page, pages), score)| {
        let [document, title, heading, chunk, quote] = texts.try_into().expect("five");
        Citation { n, document, title, heading, page, pages, chunk, score, quote }
    })
}

fn passage() -> impl Strategy<Value = PassageReply> {
    citation().prop_map(|Citation { n, document, title, heading, page, pages: _, chunk, score, quote: text }| PassageReply {
        n,
        document,
        title,
        heading,
        page,
        chunk,
        score,
        text,
    })
}

fn answer() -> impl Strategy<Value = Answer> {
    let timings = vec(millis(), 8).prop_map(|t| Timings {
        evidence_ms: t[0],
        embed_ms: t[1],
        search_ms: t[2],
        queue_ms: t[3],
        prefill_ms: t[4],
        ttft_ms: t[5],
        total_ms: t[6],
        tokens_per_s: t[7],
    });
    let usage = vec(any::<usize>(), 6).prop_map(|u| Usage {
        passages: u[0],
        prompt_tokens: u[1],
        reused_tokens: u[2],
        answer_tokens: u[3],
        drafted_tokens: u[4],
        accepted_tokens: u[5],
        read: (u[0] % 2 == 0).then(|| "section".to_owned()),
        reading_tokens_per_s: (u[1] % 2 == 0).then_some(u[2] as f64),
        withheld: u[3],
    });
    let lists = (vec(text(), 0..3), vec(number(), 0..3), vec(citation(), 0..3), option::of((any::<u64>(), any::<u64>())));
    (vec(text(), 5), any::<bool>(), number(), lists, timings, usage).prop_map(
        |(texts, found, confidence, (steps, support, citations, library), timings, usage)| {
            let [question, answer, speech, model, finish] = texts.try_into().expect("five");
            let cached = false;
            let library = library.map(|(have, of)| LibraryState { state: LibraryWork::Rebuilding, have, of });
            Answer {
                question,
                answer,
                speech,
                steps,
                support,
                found,
                confidence,
                citations,
                by: AnsweredBy::Model,
                model,
                finish,
                cached,
                library,
                timings,
                usage,
            }
        },
    )
}

const CODES: [(ErrorCode, &str); 9] = [
    (ErrorCode::BadRequest, "bad_request"),
    (ErrorCode::TooLarge, "too_large"),
    (ErrorCode::UnknownCollection, "unknown_collection"),
    (ErrorCode::QueueFull, "queue_full"),
    (ErrorCode::DeadlineExceeded, "deadline_exceeded"),
    (ErrorCode::Cancelled, "cancelled"),
    (ErrorCode::NotReady, "not_ready"),
    (ErrorCode::Storage, "storage"),
    (ErrorCode::Internal, "internal"),
];

fn listed() -> impl Strategy<Value = Listed> {
    let tags = btree_map(text(), text(), 0..3);
    (vec(id(), 5), any::<u64>(), any::<u32>(), any::<u64>(), tags).prop_map(|(texts, bytes, chunks, added_unix, tags)| {
        let [id, collection, title, media_type, path] = texts.try_into().expect("five");
        let origin = Some(Origin { path, modified_ms: added_unix });
        let (note, state, reason) = (Some(title.clone()), FileState::Pending, Some(collection.clone()));
        Listed { id, collection, title, media_type, bytes, chunks, added_unix, tags, origin, note, state, reason }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn questions_cross(value in ask()) {
        crosses(&value);
    }

    #[test]
    fn documents_to_put_cross(value in put()) {
        crosses(&value);
    }

    #[test]
    fn small_requests_cross(id in option::of(id()), text in text(), other in option::of(text()), skip in option::of(any::<usize>()), given in id()) {
        crosses(&Delete { id: id.clone(), document: text, collection: other.clone(), reply_to: other.clone() });
        crosses(&List { id, collection: other.clone(), skip, limit: skip, reply_to: other });
        crosses(&CancelRequest { id: given });
    }

    #[test]
    fn answers_cross(id in id(), answer in answer()) {
        crosses(&AnswerReply { id, answer });
    }

    #[test]
    fn evidence_and_deltas_cross(id in id(), seq in any::<u64>(), evidence in vec(citation(), 0..4), delta in text()) {
        crosses(&EvidenceReply { id: id.clone(), seq, evidence });
        crosses(&DeltaReply { id, seq, delta });
    }

    #[test]
    fn passages_cross(id in id(), passages in vec(passage(), 0..4), found in any::<bool>(), confidence in number(), ms in millis()) {
        crosses(&SearchReply { id, passages, found, confidence, library: None, embed_ms: ms, search_ms: ms });
    }

    #[test]
    fn small_replies_cross(id in id(), text in text(), chunks in any::<u32>(), deleted in any::<bool>(), code in 0..CODES.len(),
        after in option::of(any::<u64>())) {
        let [document, collection] = [(); 2].map(|()| text.clone());
        let change = [Change::Added, Change::Replaced, Change::Unchanged][chunks as usize % 3];
        crosses(&PutReply { id: id.clone(), document, collection, change, chunks, note: Some(text.clone()) });
        crosses(&DeleteReply { id: id.clone(), document: text.clone(), deleted });
        crosses(&ErrorReply { id, error: ErrorBody { code: CODES[code].0, message: text, retry_after_ms: after } });
    }

    #[test]
    fn lists_cross(id in id(), documents in vec(listed(), 0..4), total in any::<usize>()) {
        let value = ListReply { id, documents, total };
        let ours = Encoding::Cbor.encode(&value).expect("we write");
        let read: ListReply = serde_cbor::from_slice(&ours).expect("the peer reads");
        prop_assert_eq!((&read.id, &read.documents, read.total), (&value.id, &value.documents, value.total));
        let theirs = serde_cbor::to_vec(&value).expect("the peer writes");
        let back: ListReply = Encoding::Cbor.decode(&theirs).expect("we read");
        prop_assert_eq!((&back.id, &back.documents, back.total), (&value.id, &value.documents, value.total));
    }
}

#[test]
fn bytes_are_byte_strings_and_absences_absent() {
    let put = Put { document: "a".into(), data: Some(serde_bytes::ByteBuf::from(vec![0, 255])), ..Put::default() };
    let value: serde_cbor::Value = serde_cbor::from_slice(&Encoding::Cbor.encode(&put).expect("encodes")).expect("decodes");
    let serde_cbor::Value::Map(map) = value else { panic!("a map") };
    assert_eq!(map.get(&serde_cbor::Value::Text("data".into())), Some(&serde_cbor::Value::Bytes(vec![0, 255])));
    assert_eq!(map.len(), 2, "only what is set is sent: {map:?}");
}

#[test]
fn error_codes_are_the_words_of_the_contract() {
    for (code, word) in CODES {
        assert_eq!(serde_json::to_value(code).expect("encodes"), word);
    }
}

#[test]
fn python_reads_and_writes_the_same() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let samples: Vec<_> = (0..16)
        .map(|_| (ask(), put(), answer()).new_tree(&mut runner).expect("a sample").current())
        .map(|(ask, put, answer)| (ask, put, AnswerReply { id: "x".into(), answer }))
        .collect();
    let hex = |bytes: Vec<u8>| bytes.iter().fold(String::new(), |line, byte| line + &format!("{byte:02x}")) + "\n";
    let mut input = String::new();
    for (ask, put, reply) in &samples {
        input += &hex(Encoding::Cbor.encode(ask).expect("encodes"));
        input += &hex(Encoding::Cbor.encode(put).expect("encodes"));
        input += &hex(Encoding::Cbor.encode(reply).expect("encodes"));
    }
    let output = run_with_input(&mut python("cbor_echo.py"), input.as_bytes()).exits(0);
    let bytes = |line: &str| -> Vec<u8> {
        (0..line.len() / 2).map(|i| u8::from_str_radix(&line[2 * i..2 * i + 2], 16).expect("hex")).collect()
    };
    let lines: Vec<Vec<u8>> = output.stdout.lines().map(bytes).collect();
    assert_eq!(lines.len(), 3 * samples.len(), "{output:?}");
    for (lines, (ask, put, reply)) in lines.chunks(3).zip(&samples) {
        assert_eq!(&Encoding::Cbor.decode::<Ask>(&lines[0]).expect("decodes"), ask);
        assert_eq!(&Encoding::Cbor.decode::<Put>(&lines[1]).expect("decodes"), put);
        assert_eq!(&Encoding::Cbor.decode::<AnswerReply>(&lines[2]).expect("decodes"), reply);
    }
}
