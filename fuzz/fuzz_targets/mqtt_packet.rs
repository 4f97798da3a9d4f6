//! Packets that the embedded broker reads, in both versions of MQTT. Any bytes are a packet or a reason code; a message survives
//! writing and reading; memory stays in proportion to the packet.
#![no_main]

mod peak;

use bytes::BytesMut;
use mqtt::broker::packet::{Message, Outgoing, Packet, Reason, Version, frame, read, read_connect, write_publish};
use std::time::{Duration, Instant};

/// Packets without their lengths: CONNECT with a will, PUBLISH, SUBSCRIBE, UNSUBSCRIBE, DISCONNECT; for each MQTT 3.1.1 and 5.
const SAMPLES: [(u8, [&[u8]; 2]); 5] = [
    (
        0x10,
        [
            b"\x00\x04MQTT\x04\xee\x00\x3c\x00\x01c\x00\x03a/b\x00\x04gone\x00\x01u\x00\x01p",
            b"\x00\x04MQTT\x05\xee\x00\x3c\x14\x11\x00\x00\x00\x78\x21\x00\x0a\x27\x00\x01\x00\x00\x26\x00\x01k\x00\x00\x00\x01c\
              \x10\x18\x00\x00\x00\x05\x02\x00\x00\x00\x09\x03\x00\x03t/p\x00\x03a/b\x00\x04gone\x00\x01u\x00\x01p",
        ],
    ),
    (
        0x33,
        [
            b"\x00\x03a/b\x00\x07hello",
            b"\x00\x03a/b\x00\x07\x16\x08\x00\x01r\x09\x00\x02cc\x26\x00\x01k\x00\x01v\x02\x00\x00\x00\x09hello",
        ],
    ),
    (0x82, [b"\x00\x08\x00\x03a/+\x01\x00\x01#\x00", b"\x00\x08\x02\x0b\x07\x00\x03a/+\x2d\x00\x01#\x00"]),
    (0xa2, [b"\x00\x09\x00\x03a/+\x00\x01#", b"\x00\x09\x05\x26\x00\x00\x00\x00\x00\x03a/+"]),
    (0xe0, [b"", b"\x04\x05\x11\x00\x00\x00\x78"]),
];

/// A sample with some bytes of it replaced, or a first byte and a body from the fuzzer alone.
fn packet(how: u8, version: Version, bytes: &[u8]) -> Option<(u8, Vec<u8>)> {
    let [first, rest @ ..] = bytes else { return None };
    let Some((kind, samples)) = SAMPLES.get(usize::from(how % 8)) else {
        return Some((*first, rest.to_vec()));
    };
    let mut body = samples[usize::from(version == Version::V5)].to_vec();
    let [replaced, new @ ..] = rest else { return Some((*kind, body)) };
    let at = usize::from(*first) * body.len() / 256;
    let end = (at + usize::from(replaced % 16)).min(body.len());
    body.splice(at..end, new.iter().copied());
    // The flags of a PUBLISH count too.
    Some((if *kind == 0x33 { 0x30 | replaced >> 4 } else { *kind }, body))
}

/// A frame ends where its length says, whatever follows it, and is not there before.
fn assert_frames(buffer: &[u8]) {
    const LIMIT: usize = 256;
    if let Ok(Some((header, total))) = frame(buffer, LIMIT) {
        assert!(header <= total && total <= buffer.len() && total <= LIMIT);
        assert_eq!(frame(&buffer[..total], LIMIT), Ok(Some((header, total))));
        assert_eq!(frame(&buffer[..total - 1], LIMIT), Ok(None));
    }
}

fn assert_is_a_topic(topic: &str) {
    assert!(!topic.is_empty() && !topic.contains(['#', '+', '\0']) && u16::try_from(topic.len()).is_ok(), "{topic:?}");
}

/// Sends a message to a subscriber of either version, and reads it again.
fn there_and_back(message: &Message, id: u16) {
    assert_is_a_topic(&message.topic);
    assert!(message.qos <= 2);
    for version in [Version::V311, Version::V5] {
        let outgoing =
            Outgoing { message, qos: message.qos, retain: message.retain, duplicate: id & 1 == 1, id, subscription_ids: &[] };
        let mut out = BytesMut::new();
        write_publish(&mut out, version, &outgoing, Instant::now());
        let (header, total) = frame(&out, usize::MAX).expect("a length").expect("a whole packet");
        assert_eq!(total, out.len());
        let Ok(Packet::Publish { id: read_id, message: again }) = read(out[0], &out[header..], version) else {
            panic!("{message:?} is not read again: {out:?}")
        };
        assert_eq!(read_id, if message.qos > 0 { id } else { 0 });
        assert_eq!((&again.topic, &again.payload), (&message.topic, &message.payload));
        assert_eq!((again.qos, again.retain), (message.qos, message.retain));
        if version == Version::V5 {
            assert_eq!(again.properties, message.properties);
            match (message.expires, again.expires) {
                (None, None) => {}
                // Whole seconds cross the wire, rounded up.
                (Some(before), Some(after)) => {
                    assert!(before <= after + Duration::from_secs(2) && after <= before + Duration::from_secs(60));
                }
                one => panic!("{one:?}"),
            }
        }
    }
}

fn assert_is_a_refusal(reason: Reason) {
    assert!(reason.0 >= 0x80, "{reason}");
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let [how, bytes @ ..] = bytes else { return };
    assert_frames(bytes);
    let version = if how & 0x80 == 0 { Version::V311 } else { Version::V5 };
    let Some((first, body)) = packet(*how, version, bytes) else { return };
    let (connect, peak) = peak::peak(|| read_connect(first, &body));
    let bound = 4 * body.len() + (64 << 10);
    assert!(peak <= bound, "{peak} bytes for a CONNECT of {}", body.len());
    match connect {
        Ok(connect) => {
            assert!(connect.client_id.len() <= body.len());
            if let Some(will) = connect.will {
                there_and_back(&will.message, 1);
            }
        }
        Err(reason) => assert_is_a_refusal(reason),
    }
    let (packet, peak) = peak::peak(|| read(first, &body, version));
    assert!(peak <= bound, "{peak} bytes for a packet of {}", body.len());
    match packet {
        Ok(Packet::Publish { id, message }) => {
            assert_eq!(id == 0, message.qos == 0);
            there_and_back(&message, id);
        }
        Ok(Packet::PubAck(id) | Packet::PubRec { id, .. } | Packet::PubRel(id) | Packet::PubComp(id)) => assert_ne!(id, 0),
        Ok(Packet::Subscribe { id, subscription_id, filters }) => {
            assert!(id > 0 && subscription_id != Some(0) && !filters.is_empty());
            assert!(filters.iter().all(|filter| filter.qos <= 2 && filter.retain_handling <= 2));
        }
        Ok(Packet::Unsubscribe { id, filters }) => assert!(id > 0 && !filters.is_empty()),
        Ok(Packet::PingReq | Packet::Disconnect { .. }) => {}
        Err(reason) => assert_is_a_refusal(reason),
    }
});
