//! The broker's state: sessions, subscriptions, queues and retained messages, all in bounded memory.
//!
//! The router neither waits nor does IO. One mutex around the [`Router`] is the only lock.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::sync::Notify;
use wire::names;

use super::packet::{
    Accepted, Connect, Filter, Message, Outgoing, Reason, Version, Will, write_accepted, write_ack, write_publish,
};

/// Largest packet accepted, in bytes: a document sent over MQTT must fit.
pub(super) const MAX_PACKET: usize = 8 << 20;
/// Most sessions, connected or kept for an absent client.
const MAX_SESSIONS: usize = 128;
const MAX_SUBSCRIPTIONS: usize = 128;
/// Most messages and bytes queued for one client.
const MAX_QUEUE: usize = 1000;
const MAX_QUEUE_BYTES: usize = 16 << 20;
/// Most messages sent to one client without an acknowledgement.
const MAX_INFLIGHT: usize = 32;
/// Most `QoS` 2 messages of one client between PUBLISH and PUBREL.
const RECEIVE_MAXIMUM: u16 = 256;
const MAX_RETAINED: usize = 500;
const MAX_RETAINED_BYTES: usize = 16 << 20;
/// Most unread acknowledgements queued for one client, in bytes.
const MAX_CONTROL: usize = 256 << 10;
/// Longest time that a session outlives its connection, in seconds: a week.
const MAX_SESSION_EXPIRY: u32 = 7 * 24 * 3600;
/// Bytes written to a client at once, give or take a message.
const WRITE_BATCH: usize = 64 << 10;

/// The link between the router and the task of one connection.
#[derive(Debug, Default)]
pub(super) struct Link {
    /// There are bytes to write, or a reason to close.
    pub(super) wake: Notify,
    reason: AtomicU8,
}

impl Link {
    /// Asks the connection's task to end. The first reason counts.
    pub(super) fn close(&self, reason: Reason) {
        let _ = self.reason.compare_exchange(0, reason.0, Ordering::AcqRel, Ordering::Acquire);
        self.wake.notify_one();
    }

    pub(super) fn closed(&self) -> Option<Reason> {
        match self.reason.load(Ordering::Acquire) {
            0 => None,
            code => Some(Reason(code)),
        }
    }
}

/// A connection's identity towards the router. The generation distinguishes it from a later connection of the same client.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    pub(super) client: String,
    pub(super) version: Version,
    pub(super) link: Arc<Link>,
    generation: u64,
}

#[derive(Debug, Clone)]
struct Delivery {
    message: Arc<Message>,
    qos: u8,
    retain: bool,
    subscription_ids: Vec<u32>,
}

#[derive(Debug)]
struct Inflight {
    id: u16,
    /// `None` after the PUBREC of a `QoS` 2 message: only its PUBCOMP is missing.
    delivery: Option<Delivery>,
    /// Whether the message went out on this connection; a resumed session sends it again.
    sent: bool,
    duplicate: bool,
}

#[derive(Debug, Clone)]
struct Subscription {
    options: Filter,
    id: Option<u32>,
}

#[derive(Debug)]
struct Session {
    link: Option<Arc<Link>>,
    generation: u64,
    version: Version,
    subscriptions: Vec<Subscription>,
    queue: VecDeque<Delivery>,
    queued_bytes: usize,
    inflight: VecDeque<Inflight>,
    window: usize,
    max_packet: usize,
    last_id: u16,
    received: HashSet<u16>,
    control: BytesMut,
    will: Option<Will>,
    /// In seconds.
    expiry: u32,
    left: Instant,
}

impl Session {
    fn gone(&self, now: Instant) -> bool {
        self.link.is_none() && now.duration_since(self.left) >= Duration::from_secs(u64::from(self.expiry))
    }

    /// Queues a message. A connected client with a full queue is too slow and is disconnected; its queue stays. Returns whether
    /// a connected client's queue is more than half full, so that the publisher can be slowed down.
    fn offer(&mut self, client: &str, delivery: Delivery) -> bool {
        let full = self.queue.len() >= MAX_QUEUE || self.queued_bytes + delivery.message.size() > MAX_QUEUE_BYTES;
        if delivery.qos == 0 && (full || self.link.is_none()) {
            return false;
        }
        if full {
            match self.link.take() {
                Some(link) => {
                    log::warn!("mqtt broker: `{client}` does not keep up with its messages and is disconnected");
                    link.close(Reason::QUOTA);
                    self.left = Instant::now();
                }
                None => log::debug!("mqtt broker: the queue of `{client}` is full; a message for it is dropped"),
            }
            return false;
        }
        if let Some(link) = &self.link {
            link.wake.notify_one();
        }
        self.queued_bytes += delivery.message.size();
        self.queue.push_back(delivery);
        self.link.is_some() && (self.queue.len() > MAX_QUEUE / 2 || self.queued_bytes > MAX_QUEUE_BYTES / 2)
    }

    /// The next free packet identifier; the window is far smaller than the range of identifiers.
    fn next_id(&mut self) -> u16 {
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if self.inflight.iter().all(|inflight| inflight.id != self.last_id) {
                return self.last_id;
            }
        }
    }

    fn resend(&mut self, out: &mut BytesMut, now: Instant) {
        for inflight in self.inflight.iter_mut().filter(|inflight| !inflight.sent) {
            if out.len() >= WRITE_BATCH {
                return;
            }
            match &inflight.delivery {
                Some(delivery) => write(out, self.version, delivery, inflight.id, inflight.duplicate, now),
                None => write_ack(out, 0x62, inflight.id),
            }
            inflight.sent = true;
        }
    }

    fn drain(&mut self, out: &mut BytesMut) {
        let now = Instant::now();
        out.extend_from_slice(&self.control.split());
        self.resend(out, now);
        while out.len() < WRITE_BATCH {
            if self.queue.front().is_none_or(|next| next.qos > 0 && self.inflight.len() >= self.window) {
                return;
            }
            let Some(delivery) = self.queue.pop_front() else {
                return;
            };
            self.queued_bytes = self.queued_bytes.saturating_sub(delivery.message.size());
            if delivery.message.expired(now) {
                continue;
            }
            let id = if delivery.qos > 0 { self.next_id() } else { 0 };
            let start = out.len();
            write(out, self.version, &delivery, id, false, now);
            // Section 3.1.2.11.4: a message too large for the client counts as delivered.
            if out.len() - start > self.max_packet {
                out.truncate(start);
            } else if delivery.qos > 0 {
                self.inflight.push_back(Inflight { id, delivery: Some(delivery), sent: true, duplicate: true });
            }
        }
    }
}

fn write(out: &mut BytesMut, version: Version, delivery: &Delivery, id: u16, duplicate: bool, now: Instant) {
    let outgoing = Outgoing {
        message: &delivery.message,
        qos: delivery.qos,
        retain: delivery.retain,
        duplicate,
        id,
        subscription_ids: &delivery.subscription_ids,
    };
    write_publish(out, version, &outgoing, now);
}

/// Sessions by client identifier, and retained messages by topic.
#[derive(Debug, Default)]
pub(super) struct Router {
    sessions: HashMap<String, Session>,
    retained: BTreeMap<String, Arc<Message>>,
    retained_bytes: usize,
    generation: u64,
    /// Next member of the shared subscriptions.
    turn: usize,
}

impl Router {
    /// Accepts a client: ends an older connection of the same name, resumes or creates its session, and answers CONNACK.
    pub(super) fn connect(&mut self, connect: Connect) -> Result<Connection, Reason> {
        let now = Instant::now();
        self.generation += 1;
        let generation = self.generation;
        let Connect { version, client_id, clean_start, .. } = connect;
        let assigned = client_id.is_empty();
        if assigned && version == Version::V311 && !clean_start {
            return Err(Reason::CLIENT_ID_INVALID);
        }
        let client = if assigned { format!("auto-{generation}-{:08x}", fastrand::u32(..)) } else { client_id };
        self.take_over(&client, clean_start);
        self.sessions.retain(|_, session| !session.gone(now));
        if clean_start {
            self.sessions.remove(&client);
        }
        let session_present = self.sessions.contains_key(&client);
        if !session_present && self.sessions.len() >= MAX_SESSIONS {
            self.evict()?;
        }

        let expiry = connect.session_expiry.min(MAX_SESSION_EXPIRY);
        let link = Arc::new(Link::default());
        let session = self.sessions.entry(client.clone()).or_insert_with(|| Session {
            link: None,
            generation,
            version,
            subscriptions: Vec::new(),
            queue: VecDeque::new(),
            queued_bytes: 0,
            inflight: VecDeque::new(),
            window: MAX_INFLIGHT,
            max_packet: usize::MAX,
            last_id: 0,
            received: HashSet::new(),
            control: BytesMut::new(),
            will: None,
            expiry,
            left: now,
        });
        session.link = Some(Arc::clone(&link));
        session.generation = generation;
        session.version = version;
        session.window = MAX_INFLIGHT.min(usize::from(connect.receive_maximum));
        session.max_packet = connect.max_packet;
        session.will = connect.will;
        session.expiry = expiry;
        session.inflight.iter_mut().for_each(|inflight| inflight.sent = false);
        session.control.clear();
        let accepted = Accepted {
            session_present,
            assigned_id: assigned.then_some(client.as_str()),
            session_expiry: (expiry != connect.session_expiry).then_some(expiry),
            receive_maximum: RECEIVE_MAXIMUM,
            max_packet: MAX_PACKET as u32,
        };
        write_accepted(&mut session.control, version, &accepted);
        link.wake.notify_one();
        Ok(Connection { client, version, link, generation })
    }

    fn take_over(&mut self, client: &str, clean_start: bool) {
        let Some(session) = self.sessions.get_mut(client) else {
            return;
        };
        if let Some(link) = session.link.take() {
            link.close(Reason::TAKEN_OVER);
            session.left = Instant::now();
        }
        // Section 3.1.3.2.2: a pending will is not sent if the session goes on.
        let will = session.will.take().filter(|will| clean_start || session.expiry == 0 || will.delay.is_zero());
        let ends = clean_start || session.expiry == 0;
        if ends {
            self.sessions.remove(client);
        }
        if let Some(will) = will {
            self.publish(client, will.message);
        }
    }

    /// Makes room by dropping the session whose client has been away the longest.
    fn evict(&mut self) -> Result<(), Reason> {
        let away = self.sessions.iter().filter(|(_, session)| session.link.is_none());
        let longest = away.min_by_key(|(_, session)| session.left).map(|(client, _)| client.clone());
        let client = longest.ok_or(Reason::QUOTA)?;
        log::warn!("mqtt broker: there are {MAX_SESSIONS} sessions; the session of `{client}` is dropped for a new client");
        self.sessions.remove(&client);
        Ok(())
    }

    fn session(&mut self, connection: &Connection) -> Option<&mut Session> {
        self.sessions.get_mut(&connection.client).filter(|session| session.generation == connection.generation)
    }

    /// Queues an answer that goes out before messages. A client that leaves its answers unread is disconnected.
    pub(super) fn reply(&mut self, connection: &Connection, write: impl FnOnce(&mut BytesMut)) {
        if let Some(session) = self.session(connection) {
            write(&mut session.control);
            if session.control.len() > MAX_CONTROL {
                connection.link.close(Reason::QUOTA);
            }
            connection.link.wake.notify_one();
        }
    }

    /// Moves sendable packets into `out`.
    pub(super) fn drain(&mut self, connection: &Connection, out: &mut BytesMut) {
        if let Some(session) = self.session(connection) {
            session.drain(out);
        }
    }

    /// Ends a connection. Returns the delay of a pending will, for [`Router::publish_will`].
    pub(super) fn disconnect(&mut self, connection: &Connection, graceful: bool, expiry: Option<u32>) -> Option<Duration> {
        let session = self.session(connection)?;
        session.link = None;
        session.left = Instant::now();
        // Section 3.14.2.2.2: a session that ends with its connection cannot be prolonged.
        if let Some(seconds) = expiry.filter(|_| session.expiry > 0) {
            session.expiry = seconds.min(MAX_SESSION_EXPIRY);
        }
        if graceful {
            session.will = None;
        }
        let expiry = session.expiry;
        let delay = session.will.as_ref().map(|will| will.delay.min(Duration::from_secs(u64::from(expiry))));
        if delay.is_none() && expiry == 0 {
            self.sessions.remove(&connection.client);
        }
        delay
    }

    /// Publishes the will of an ended connection, unless the client has come back.
    pub(super) fn publish_will(&mut self, connection: &Connection) {
        let Some(session) = self.session(connection) else {
            return;
        };
        let will = session.will.take();
        if session.expiry == 0 {
            self.sessions.remove(&connection.client);
        }
        if let Some(will) = will {
            self.publish(&connection.client, will.message);
        }
    }

    /// Handles a PUBLISH and answers it according to its `QoS`. Returns whether a receiver falls behind.
    pub(super) fn receive(&mut self, connection: &Connection, id: u16, message: Message) -> Result<bool, Reason> {
        let mut behind = false;
        let qos = message.qos;
        if qos == 2 {
            let Some(session) = self.session(connection) else {
                return Ok(false);
            };
            let new = session.received.insert(id);
            if session.received.len() > usize::from(RECEIVE_MAXIMUM) {
                return Err(Reason::RECEIVE_MAXIMUM);
            }
            if new {
                behind = self.publish(&connection.client, message);
            }
        } else {
            behind = self.publish(&connection.client, message);
        }
        match qos {
            1 => self.reply(connection, |out| write_ack(out, 0x40, id)),
            2 => self.reply(connection, |out| write_ack(out, 0x50, id)),
            _ => {}
        }
        Ok(behind)
    }

    /// Handles PUBREL.
    pub(super) fn released(&mut self, connection: &Connection, id: u16) {
        if let Some(session) = self.session(connection) {
            session.received.remove(&id);
        }
        self.reply(connection, |out| write_ack(out, 0x70, id));
    }

    /// Handles PUBACK or PUBCOMP, or a PUBREC that refuses: the message has arrived, or never will.
    pub(super) fn acknowledged(&mut self, connection: &Connection, id: u16) {
        if let Some(session) = self.session(connection) {
            session.inflight.retain(|inflight| inflight.id != id);
            connection.link.wake.notify_one();
        }
    }

    /// Handles PUBREC and answers PUBREL.
    pub(super) fn recorded(&mut self, connection: &Connection, id: u16) {
        if let Some(session) = self.session(connection)
            && let Some(inflight) = session.inflight.iter_mut().find(|inflight| inflight.id == id)
        {
            inflight.delivery = None;
        }
        self.reply(connection, |out| write_ack(out, 0x62, id));
    }

    /// Delivers a message to all subscribers, and stores it if it is retained. Returns whether a receiver falls behind.
    pub(super) fn publish(&mut self, from: &str, mut message: Message) -> bool {
        let mut behind = false;
        let now = Instant::now();
        let retain = message.retain;
        message.retain = false;
        let message = Arc::new(message);
        if retain {
            self.keep(&message, now);
        }
        let mut groups: BTreeMap<String, Vec<(String, Subscription)>> = BTreeMap::new();
        for (client, session) in &mut self.sessions {
            let mut delivery: Option<Delivery> = None;
            for subscription in &session.subscriptions {
                let options = &subscription.options;
                let (group, filter) = split_shared(&options.pattern);
                if !names::topic_matches(filter, &message.topic) || (options.no_local && client == from) {
                    continue;
                }
                if group.is_some() {
                    groups.entry(options.pattern.clone()).or_default().push((client.clone(), subscription.clone()));
                    continue;
                }
                // Overlapping subscriptions make one delivery, at the best QoS among them.
                let delivery = delivery.get_or_insert_with(|| Delivery {
                    message: Arc::clone(&message),
                    qos: 0,
                    retain: false,
                    subscription_ids: Vec::new(),
                });
                delivery.qos = delivery.qos.max(options.qos.min(message.qos));
                delivery.retain |= retain && options.retain_as_published;
                delivery.subscription_ids.extend(subscription.id);
            }
            if let Some(delivery) = delivery.filter(|_| !session.gone(now)) {
                behind |= session.offer(client, delivery);
            }
        }
        for members in groups.into_values() {
            behind |= self.publish_shared(&members, &message, retain);
        }
        behind
    }

    /// Delivers a message to one member of a shared subscription, in turn, preferring connected members.
    fn publish_shared(&mut self, members: &[(String, Subscription)], message: &Arc<Message>, retain: bool) -> bool {
        let connected = |client: &String| self.sessions.get(client).is_some_and(|session| session.link.is_some());
        let mut ready: Vec<_> = members.iter().filter(|(client, _)| connected(client)).collect();
        if ready.is_empty() {
            ready = members.iter().collect();
        }
        ready.sort_by(|left, right| left.0.cmp(&right.0));
        self.turn = self.turn.wrapping_add(1);
        if let Some((client, subscription)) = ready.get(self.turn % ready.len().max(1))
            && let Some(session) = self.sessions.get_mut(client)
        {
            let delivery = Delivery {
                message: Arc::clone(message),
                qos: subscription.options.qos.min(message.qos),
                retain: retain && subscription.options.retain_as_published,
                subscription_ids: subscription.id.into_iter().collect(),
            };
            return session.offer(client, delivery);
        }
        false
    }

    /// Stores the message for later subscribers; an empty one clears its topic.
    fn keep(&mut self, message: &Arc<Message>, now: Instant) {
        if let Some(old) = self.retained.remove(&message.topic) {
            self.retained_bytes -= old.size();
        }
        if message.payload.is_empty() {
            return;
        }
        if self.retained.len() >= MAX_RETAINED || self.retained_bytes + message.size() > MAX_RETAINED_BYTES {
            self.retained.retain(|_, message| !message.expired(now));
            self.retained_bytes = self.retained.values().map(|message| message.size()).sum();
        }
        if self.retained.len() >= MAX_RETAINED || self.retained_bytes + message.size() > MAX_RETAINED_BYTES {
            log::warn!("mqtt broker: no room to retain `{}`; clear retained messages no longer needed", message.topic);
            return;
        }
        self.retained_bytes += message.size();
        self.retained.insert(message.topic.clone(), Arc::clone(message));
    }

    /// Subscribes, queues the matching retained messages, and returns a SUBACK code for each filter.
    pub(super) fn subscribe(&mut self, connection: &Connection, filters: &[Filter], id: Option<u32>) -> Vec<u8> {
        filters.iter().map(|filter| self.subscribe_one(connection, filter, id)).collect()
    }

    fn subscribe_one(&mut self, connection: &Connection, options: &Filter, id: Option<u32>) -> u8 {
        let (group, filter) = split_shared(&options.pattern);
        let bad_group = group.is_some_and(|group| group.is_empty() || group.contains(['#', '+']) || options.no_local);
        if !names::is_topic_filter(filter) || bad_group {
            return Reason::FILTER_INVALID.0;
        }
        let Some(session) = self.session(connection) else {
            return Reason::PROTOCOL_ERROR.0;
        };
        let known = session.subscriptions.iter().position(|known| known.options.pattern == options.pattern);
        if known.is_none() && session.subscriptions.len() >= MAX_SUBSCRIPTIONS {
            return Reason::QUOTA.0;
        }
        let subscription = Subscription { options: options.clone(), id };
        match known.and_then(|index| session.subscriptions.get_mut(index)) {
            Some(known) => *known = subscription,
            None => session.subscriptions.push(subscription),
        }
        let wanted = match options.retain_handling {
            0 => true,
            1 => known.is_none(),
            _ => false,
        };
        if wanted && group.is_none() {
            let now = Instant::now();
            if let Some(session) = self.sessions.get_mut(&connection.client) {
                let kept = self.retained.values();
                for message in kept.filter(|message| names::topic_matches(filter, &message.topic) && !message.expired(now)) {
                    let delivery = Delivery {
                        message: Arc::clone(message),
                        qos: options.qos.min(message.qos),
                        retain: true,
                        subscription_ids: id.into_iter().collect(),
                    };
                    session.offer(&connection.client, delivery);
                }
            }
        }
        options.qos
    }

    /// Returns an UNSUBACK code for each filter: 0, or 0x11 if there was no such subscription.
    pub(super) fn unsubscribe(&mut self, connection: &Connection, filters: &[String]) -> Vec<u8> {
        let Some(session) = self.session(connection) else {
            return vec![0x11; filters.len()];
        };
        let remove = |filter: &String| {
            let before = session.subscriptions.len();
            session.subscriptions.retain(|known| known.options.pattern != *filter);
            if session.subscriptions.len() < before { 0 } else { 0x11 }
        };
        filters.iter().map(remove).collect()
    }
}

/// The group of a shared subscription, `$share/<group>/<filter>`, and the filter itself.
fn split_shared(filter: &str) -> (Option<&str>, &str) {
    match filter.strip_prefix("$share/") {
        Some(rest) => rest.split_once('/').map_or((Some(""), rest), |(group, filter)| (Some(group), filter)),
        None => (None, filter),
    }
}
