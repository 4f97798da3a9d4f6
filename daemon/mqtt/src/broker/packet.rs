//! MQTT 3.1.1 and 5 packets, as a server reads and writes them.
//!
//! One codec serves both versions: they differ in little more than the property block. The properties of a message are checked
//! and then kept in wire form, so that a subscriber gets the publisher's bytes unchanged. Section numbers in comments refer to
//! the OASIS standard, MQTT Version 5.0 (2019).

use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};

/// Most filters in one packet, far above the subscriptions of a session. A filter of 3 bytes takes 32 here, and a packet may have 8 MiB.
const MAX_FILTERS: usize = 1024;

/// A reason code of MQTT 5 (section 2.4) for refusing a packet or a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("reason code 0x{0:02x}")]
pub struct Reason(pub u8);

impl Reason {
    pub const MALFORMED: Self = Self(0x81);
    pub const PROTOCOL_ERROR: Self = Self(0x82);
    pub const UNSUPPORTED_VERSION: Self = Self(0x84);
    pub const CLIENT_ID_INVALID: Self = Self(0x85);
    pub const SERVER_SHUTTING_DOWN: Self = Self(0x8b);
    pub const BAD_AUTHENTICATION: Self = Self(0x8c);
    pub const KEEP_ALIVE: Self = Self(0x8d);
    pub const TAKEN_OVER: Self = Self(0x8e);
    pub const FILTER_INVALID: Self = Self(0x8f);
    pub const TOPIC_INVALID: Self = Self(0x90);
    pub const RECEIVE_MAXIMUM: Self = Self(0x93);
    pub const TOPIC_ALIAS: Self = Self(0x94);
    pub const TOO_LARGE: Self = Self(0x95);
    pub const QUOTA: Self = Self(0x97);

    /// The closest return code of a 3.1.1 CONNACK.
    fn connect_return_code(self) -> u8 {
        match self {
            Self::UNSUPPORTED_VERSION => 1,
            Self::CLIENT_ID_INVALID => 2,
            Self::BAD_AUTHENTICATION => 5,
            _ => 3,
        }
    }
}

/// A client's protocol version, from the level in its CONNECT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V311,
    V5,
}

/// An application message on its way through the broker.
#[derive(Debug, Clone)]
pub struct Message {
    pub topic: String,
    pub payload: Bytes,
    /// Properties in wire form, without message expiry (counted down here).
    pub properties: Bytes,
    pub expires: Option<Instant>,
    pub qos: u8,
    pub retain: bool,
}

impl Message {
    /// Bytes of memory used by the message, for the bounds of queues.
    pub fn size(&self) -> usize {
        self.topic.len() + self.payload.len() + self.properties.len() + 128
    }

    pub fn expired(&self, now: Instant) -> bool {
        self.expires.is_some_and(|at| at <= now)
    }
}

/// A message that the broker publishes if a client leaves without DISCONNECT.
#[derive(Debug, Clone)]
pub struct Will {
    pub message: Message,
    pub delay: Duration,
}

/// CONNECT; absent MQTT 5 properties get the standard's defaults.
#[derive(Debug)]
pub struct Connect {
    pub version: Version,
    pub client_id: String,
    pub clean_start: bool,
    /// In seconds; 0 means none.
    pub keep_alive: u16,
    /// How long the session outlives the connection, in seconds; `u32::MAX` for ever.
    pub session_expiry: u32,
    pub receive_maximum: u16,
    pub max_packet: usize,
    pub will: Option<Will>,
}

/// One filter of a SUBSCRIBE with its options (section 3.8.3.1).
#[derive(Debug, Clone)]
pub struct Filter {
    pub pattern: String,
    pub qos: u8,
    pub no_local: bool,
    pub retain_as_published: bool,
    pub retain_handling: u8,
}

/// Packets that a client may send after its CONNECT.
#[derive(Debug)]
pub enum Packet {
    Publish { id: u16, message: Message },
    PubAck(u16),
    PubRec { id: u16, failed: bool },
    PubRel(u16),
    PubComp(u16),
    Subscribe { id: u16, subscription_id: Option<u32>, filters: Vec<Filter> },
    Unsubscribe { id: u16, filters: Vec<String> },
    PingReq,
    Disconnect { with_will: bool, session_expiry: Option<u32> },
}

/// Length of the header and of the whole first packet in `buffer`; `None` while bytes are missing.
pub fn frame(buffer: &[u8], limit: usize) -> Result<Option<(usize, usize)>, Reason> {
    let mut length = 0_usize;
    for (index, byte) in buffer.iter().skip(1).take(4).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            let header = index + 2;
            if header + length > limit {
                return Err(Reason::TOO_LARGE);
            }
            return Ok((buffer.len() >= header + length).then_some((header, header + length)));
        }
    }
    if buffer.len() >= 5 { Err(Reason::MALFORMED) } else { Ok(None) }
}

/// Parses a CONNECT from one whole frame.
pub fn read_connect(first: u8, body: &[u8]) -> Result<Connect, Reason> {
    if first != 0x10 {
        return Err(Reason::PROTOCOL_ERROR);
    }
    let mut reader = Reader(body);
    let name = reader.string()?;
    let level = reader.u8()?;
    let version = match (name, level) {
        ("MQTT", 4) => Version::V311,
        ("MQTT", 5) => Version::V5,
        _ => return Err(Reason::UNSUPPORTED_VERSION),
    };
    let flags = reader.u8()?;
    if flags & 1 != 0 {
        return Err(Reason::MALFORMED);
    }
    let clean_start = flags & 0x02 != 0;
    let keep_alive = reader.u16()?;
    let mut connect = Connect {
        version,
        client_id: String::new(),
        clean_start,
        keep_alive,
        session_expiry: if version == Version::V311 && !clean_start { u32::MAX } else { 0 },
        receive_maximum: u16::MAX,
        max_packet: usize::MAX,
        will: None,
    };
    reader.properties(version, &[0x11, 0x15, 0x16, 0x17, 0x19, 0x21, 0x22, 0x26, 0x27], |id, value, _| {
        match (id, value) {
            (0x11, Value::Number(seconds)) => connect.session_expiry = seconds,
            (0x15, _) => return Err(Reason::BAD_AUTHENTICATION),
            (0x21 | 0x27, Value::Number(0)) => return Err(Reason::PROTOCOL_ERROR),
            (0x21, Value::Number(count)) => connect.receive_maximum = count as u16,
            (0x27, Value::Number(bytes)) => connect.max_packet = bytes as usize,
            _ => {}
        }
        Ok(())
    })?;
    reader.string()?.clone_into(&mut connect.client_id);
    if flags & 0x04 != 0 {
        connect.will = Some(read_will(&mut reader, version, flags)?);
    } else if flags & 0x38 != 0 {
        return Err(Reason::MALFORMED);
    }
    // Only this machine reaches the broker, and there are no accounts: credentials are parsed and ignored.
    if flags & 0x80 != 0 {
        reader.string()?;
    }
    if flags & 0x40 != 0 {
        reader.binary()?;
    }
    reader.end()?;
    Ok(connect)
}

fn read_will(reader: &mut Reader<'_>, version: Version, flags: u8) -> Result<Will, Reason> {
    let mut delay = 0;
    let (properties, expires) = reader.message_properties(version, true, &mut delay)?;
    let topic = reader.topic()?;
    let payload = Bytes::copy_from_slice(reader.binary()?);
    let qos = qos((flags >> 3) & 3)?;
    let message = Message { topic, payload, properties, expires, qos, retain: flags & 0x20 != 0 };
    Ok(Will { message, delay: Duration::from_secs(u64::from(delay)) })
}

/// Parses any packet but CONNECT from one whole frame.
pub fn read(first: u8, body: &[u8], version: Version) -> Result<Packet, Reason> {
    let mut reader = Reader(body);
    let kind = first >> 4;
    // Section 2.1.3: all packets except PUBLISH have fixed flags.
    let expected = if matches!(kind, 6 | 8 | 10) { 2 } else { 0 };
    if kind != 3 && first & 0x0f != expected {
        return Err(Reason::MALFORMED);
    }
    let packet = match kind {
        3 => return read_publish(first, reader, version),
        4..=7 => {
            let id = reader.id()?;
            let reason = if reader.0.is_empty() { 0 } else { reader.u8()? };
            match kind {
                4 => Packet::PubAck(id),
                5 => Packet::PubRec { id, failed: reason >= 0x80 },
                6 => Packet::PubRel(id),
                _ => Packet::PubComp(id),
            }
        }
        8 => read_subscribe(reader, version)?,
        10 => {
            let id = reader.id()?;
            reader.properties(version, &[0x26], |_, _, _| Ok(()))?;
            let mut filters = Vec::new();
            while !reader.0.is_empty() {
                check_room(filters.len())?;
                filters.push(reader.string()?.to_owned());
            }
            if filters.is_empty() {
                return Err(Reason::PROTOCOL_ERROR);
            }
            Packet::Unsubscribe { id, filters }
        }
        12 => Packet::PingReq,
        14 => {
            let reason = if reader.0.is_empty() { 0 } else { reader.u8()? };
            let mut session_expiry = None;
            if !reader.0.is_empty() {
                reader.properties(version, &[0x11, 0x1c, 0x1f, 0x26], |id, value, _| {
                    if let (0x11, Value::Number(seconds)) = (id, value) {
                        session_expiry = Some(seconds);
                    }
                    Ok(())
                })?;
            }
            Packet::Disconnect { with_will: reason != 0, session_expiry }
        }
        _ => return Err(Reason::PROTOCOL_ERROR),
    };
    Ok(packet)
}

fn read_publish(first: u8, mut reader: Reader<'_>, version: Version) -> Result<Packet, Reason> {
    let qos = qos((first >> 1) & 3)?;
    let topic = reader.topic()?;
    let id = if qos > 0 { reader.id()? } else { 0 };
    let (properties, expires) = reader.message_properties(version, false, &mut 0)?;
    // Copied, so that a small stored message does not keep the whole read buffer alive.
    let payload = Bytes::copy_from_slice(reader.0);
    let message = Message { topic, payload, properties, expires, qos, retain: first & 1 != 0 };
    Ok(Packet::Publish { id, message })
}

fn read_subscribe(mut reader: Reader<'_>, version: Version) -> Result<Packet, Reason> {
    let id = reader.id()?;
    let mut subscription_id = None;
    reader.properties(version, &[0x0b, 0x26], |property, value, _| {
        match (property, value) {
            (0x0b, Value::Number(0)) => return Err(Reason::PROTOCOL_ERROR),
            (0x0b, Value::Number(number)) => subscription_id = Some(number),
            _ => {}
        }
        Ok(())
    })?;
    let mut filters = Vec::new();
    while !reader.0.is_empty() {
        check_room(filters.len())?;
        let pattern = reader.string()?.to_owned();
        let options = reader.u8()?;
        let allowed = if version == Version::V5 { 0x3f } else { 0x03 };
        if options & !allowed != 0 || options & 0x30 == 0x30 {
            return Err(Reason::MALFORMED);
        }
        filters.push(Filter {
            pattern,
            qos: qos(options & 3)?,
            no_local: options & 0x04 != 0,
            retain_as_published: options & 0x08 != 0,
            retain_handling: (options >> 4) & 3,
        });
    }
    if filters.is_empty() { Err(Reason::PROTOCOL_ERROR) } else { Ok(Packet::Subscribe { id, subscription_id, filters }) }
}

/// Whether a packet of so many filters may have one more.
fn check_room(filters: usize) -> Result<(), Reason> {
    if filters < MAX_FILTERS { Ok(()) } else { Err(Reason::QUOTA) }
}

fn qos(bits: u8) -> Result<u8, Reason> {
    if bits == 3 { Err(Reason::MALFORMED) } else { Ok(bits) }
}

enum Value<'a> {
    Number(u32),
    Text(&'a str),
    Other,
}

/// Takes fields from the front of a packet. A missing or wrong field makes the packet malformed.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Reason> {
        let (head, rest) = self.0.split_at_checked(count).ok_or(Reason::MALFORMED)?;
        self.0 = rest;
        Ok(head)
    }

    fn number(&mut self, bytes: usize) -> Result<u32, Reason> {
        Ok(self.take(bytes)?.iter().fold(0, |number, byte| number << 8 | u32::from(*byte)))
    }

    fn u8(&mut self) -> Result<u8, Reason> {
        Ok(self.number(1)? as u8)
    }

    fn u16(&mut self) -> Result<u16, Reason> {
        Ok(self.number(2)? as u16)
    }

    /// A packet identifier, never 0 (section 2.2.1).
    fn id(&mut self) -> Result<u16, Reason> {
        match self.u16()? {
            0 => Err(Reason::PROTOCOL_ERROR),
            id => Ok(id),
        }
    }

    fn varint(&mut self) -> Result<u32, Reason> {
        let mut number = 0;
        for shift in [0, 7, 14, 21] {
            let byte = self.u8()?;
            number |= u32::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Reason::MALFORMED)
    }

    fn binary(&mut self) -> Result<&'a [u8], Reason> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }

    fn string(&mut self) -> Result<&'a str, Reason> {
        let text = std::str::from_utf8(self.binary()?).map_err(|_| Reason::MALFORMED)?;
        if text.contains('\0') { Err(Reason::MALFORMED) } else { Ok(text) }
    }

    /// A topic name. An empty one would mean a topic alias, and the broker grants none.
    fn topic(&mut self) -> Result<String, Reason> {
        let topic = self.string()?;
        if topic.is_empty() || topic.contains(['#', '+']) { Err(Reason::TOPIC_INVALID) } else { Ok(topic.to_owned()) }
    }

    fn end(&self) -> Result<(), Reason> {
        if self.0.is_empty() { Ok(()) } else { Err(Reason::MALFORMED) }
    }

    /// Checks a property block (section 2.2.2) and passes on each property with its wire form; 3.1.1 packets have none.
    fn properties(
        &mut self,
        version: Version,
        allowed: &[u8],
        mut each: impl FnMut(u8, Value<'a>, &'a [u8]) -> Result<(), Reason>,
    ) -> Result<(), Reason> {
        if version == Version::V311 {
            return Ok(());
        }
        let length = self.varint()? as usize;
        let mut block = Reader(self.take(length)?);
        let mut seen = 0_u64;
        while !block.0.is_empty() {
            let start = block.0;
            let id = block.u8()?;
            if !allowed.contains(&id) {
                return Err(Reason::PROTOCOL_ERROR);
            }
            // Only user properties may repeat.
            if id != 0x26 && seen >> id & 1 == 1 {
                return Err(Reason::PROTOCOL_ERROR);
            }
            seen |= 1 << id;
            let value = match id {
                0x01 | 0x17 | 0x19 => Value::Number(block.number(1)?),
                0x21..=0x23 => Value::Number(block.number(2)?),
                0x02 | 0x11 | 0x18 | 0x27 => Value::Number(block.number(4)?),
                0x0b => Value::Number(block.varint()?),
                0x03 | 0x08 | 0x15 | 0x1c | 0x1f => Value::Text(block.string()?),
                0x09 | 0x16 => {
                    block.binary()?;
                    Value::Other
                }
                0x26 => {
                    block.string()?;
                    block.string()?;
                    Value::Other
                }
                _ => return Err(Reason::PROTOCOL_ERROR),
            };
            each(id, value, &start[..start.len() - block.0.len()])?;
        }
        Ok(())
    }

    /// A message's properties in wire form, and its expiry.
    fn message_properties(&mut self, version: Version, will: bool, delay: &mut u32) -> Result<(Bytes, Option<Instant>), Reason> {
        let mut kept = Vec::new();
        let mut expires = None;
        let allowed: &[u8] =
            if will { &[0x01, 0x02, 0x03, 0x08, 0x09, 0x18, 0x26] } else { &[0x01, 0x02, 0x03, 0x08, 0x09, 0x23, 0x26] };
        self.properties(version, allowed, |id, value, wire| {
            match (id, value) {
                (0x02, Value::Number(seconds)) => {
                    expires = Instant::now().checked_add(Duration::from_secs(u64::from(seconds)));
                }
                (0x18, Value::Number(seconds)) => *delay = seconds,
                (0x23, _) => return Err(Reason::TOPIC_ALIAS),
                (0x08, Value::Text(topic)) if topic.is_empty() || topic.contains(['#', '+']) => {
                    return Err(Reason::PROTOCOL_ERROR);
                }
                _ => kept.extend_from_slice(wire),
            }
            Ok(())
        })?;
        Ok((Bytes::from(kept), expires))
    }
}

fn put_varint(out: &mut BytesMut, mut number: usize) {
    loop {
        let byte = (number & 0x7f) as u8;
        number >>= 7;
        if number == 0 {
            return out.put_u8(byte);
        }
        out.put_u8(byte | 0x80);
    }
}

fn put_text(out: &mut BytesMut, text: &str) {
    // Every text came in with a 16 bit length, or is a short one of our own.
    out.put_u16(text.len() as u16);
    out.put_slice(text.as_bytes());
}

/// Writes a packet; `body` writes the part after the header.
fn put_packet(out: &mut BytesMut, first: u8, body: impl FnOnce(&mut BytesMut)) {
    let mut inner = BytesMut::new();
    body(&mut inner);
    out.put_u8(first);
    put_varint(out, inner.len());
    out.put_slice(&inner);
}

/// The broker's limits for an accepted client.
pub(super) struct Accepted<'a> {
    pub(super) session_present: bool,
    pub(super) assigned_id: Option<&'a str>,
    /// In seconds, if shorter than the client asked for.
    pub(super) session_expiry: Option<u32>,
    pub(super) receive_maximum: u16,
    pub(super) max_packet: u32,
}

/// A CONNACK that accepts.
pub(super) fn write_accepted(out: &mut BytesMut, version: Version, accepted: &Accepted<'_>) {
    put_packet(out, 0x20, |body| {
        body.put_u8(u8::from(accepted.session_present));
        body.put_u8(0);
        if version == Version::V311 {
            return;
        }
        let mut properties = BytesMut::new();
        properties.put_u8(0x21);
        properties.put_u16(accepted.receive_maximum);
        properties.put_u8(0x27);
        properties.put_u32(accepted.max_packet);
        if let Some(seconds) = accepted.session_expiry {
            properties.put_u8(0x11);
            properties.put_u32(seconds);
        }
        if let Some(id) = accepted.assigned_id {
            properties.put_u8(0x12);
            put_text(&mut properties, id);
        }
        put_varint(body, properties.len());
        body.put_slice(&properties);
    });
}

/// A CONNACK that refuses.
pub(super) fn write_refused(out: &mut BytesMut, version: Version, reason: Reason) {
    match version {
        Version::V311 => out.put_slice(&[0x20, 2, 0, reason.connect_return_code()]),
        Version::V5 => out.put_slice(&[0x20, 3, 0, reason.0, 0]),
    }
}

/// PUBACK (0x40), PUBREC (0x50), PUBREL (0x62) or PUBCOMP (0x70): success, in the short form of both versions.
pub(super) fn write_ack(out: &mut BytesMut, first: u8, id: u16) {
    out.put_slice(&[first, 2]);
    out.put_u16(id);
}

/// SUBACK (0x90) or UNSUBACK (0xb0) with a code for each filter; a 3.1.1 UNSUBACK has none.
pub(super) fn write_codes(out: &mut BytesMut, first: u8, version: Version, id: u16, codes: &[u8]) {
    put_packet(out, first, |body| {
        body.put_u16(id);
        match version {
            Version::V5 => {
                body.put_u8(0);
                body.put_slice(codes);
            }
            Version::V311 if first == 0x90 => {
                for code in codes {
                    body.put_u8((*code).min(0x80));
                }
            }
            Version::V311 => {}
        }
    });
}

/// PINGRESP.
pub(super) fn write_pong(out: &mut BytesMut) {
    out.put_slice(&[0xd0, 0]);
}

/// DISCONNECT; a 3.1.1 server sends none and just closes.
pub(super) fn write_disconnect(out: &mut BytesMut, version: Version, reason: Reason) {
    if version == Version::V5 {
        out.put_slice(&[0xe0, 2, reason.0, 0]);
    }
}

/// Delivery of one message to one subscriber.
pub struct Outgoing<'a> {
    pub message: &'a Message,
    pub qos: u8,
    pub retain: bool,
    pub duplicate: bool,
    /// Packet identifier; omitted for `QoS` 0.
    pub id: u16,
    pub subscription_ids: &'a [u32],
}

/// PUBLISH.
pub fn write_publish(out: &mut BytesMut, version: Version, outgoing: &Outgoing<'_>, now: Instant) {
    let message = outgoing.message;
    let first = 0x30 | u8::from(outgoing.duplicate) << 3 | outgoing.qos << 1 | u8::from(outgoing.retain);
    let mut head = BytesMut::with_capacity(message.topic.len() + message.properties.len() + 64);
    put_text(&mut head, &message.topic);
    if outgoing.qos > 0 {
        head.put_u16(outgoing.id);
    }
    if version == Version::V5 {
        let mut own = BytesMut::new();
        if let Some(at) = message.expires {
            own.put_u8(0x02);
            own.put_u32(at.saturating_duration_since(now).as_secs_f64().ceil() as u32);
        }
        for id in outgoing.subscription_ids {
            own.put_u8(0x0b);
            put_varint(&mut own, *id as usize);
        }
        put_varint(&mut head, own.len() + message.properties.len());
        head.put_slice(&own);
        head.put_slice(&message.properties);
    }
    out.put_u8(first);
    put_varint(out, head.len() + message.payload.len());
    out.put_slice(&head);
    out.put_slice(&message.payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_packets_are_framed() {
        assert_eq!(frame(&[0x30], 100), Ok(None));
        assert_eq!(frame(&[0x30, 2, 0], 100), Ok(None));
        assert_eq!(frame(&[0xe0, 0], 100), Ok(Some((2, 2))));
        assert_eq!(frame(&[0x30, 0x80, 0x01], 100), Err(Reason::TOO_LARGE));
        assert_eq!(frame(&[0x30, 0xff, 0xff, 0xff, 0xff], usize::MAX), Err(Reason::MALFORMED));
    }

    #[test]
    fn a_packet_has_a_bounded_number_of_filters() {
        for (first, filter) in [(0x82, &b"\0\x01a\0"[..]), (0xa2, b"\0\x01a")] {
            let packet = |filters: usize| [b"\0\x01\0", filter.repeat(filters).as_slice()].concat();
            assert!(read(first, &packet(MAX_FILTERS), Version::V5).is_ok());
            assert_eq!(read(first, &packet(MAX_FILTERS + 1), Version::V5).err(), Some(Reason::QUOTA));
        }
    }

    #[test]
    fn no_bytes_make_the_reader_panic() {
        fastrand::seed(1);
        let body = b"\x00\x03a/b\x00\x07\x15\x08\x00\x01r\x09\x00\x02cc\x26\x00\x01k\x00\x01v\x02\x00\x00\x00\x09hello";
        for _ in 0..200_000 {
            let mut bytes = body.to_vec();
            for _ in 0..fastrand::usize(0..4) {
                let at = fastrand::usize(0..bytes.len());
                bytes[at] = fastrand::u8(..);
            }
            bytes.truncate(fastrand::usize(0..=bytes.len()));
            let version = if fastrand::bool() { Version::V5 } else { Version::V311 };
            let _ = read(fastrand::u8(..), &bytes, version);
            let _ = read_connect(0x10, &bytes);
            let _ = frame(&bytes, 1000);
        }
    }
}
