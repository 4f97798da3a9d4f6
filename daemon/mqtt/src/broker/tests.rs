//! The broker as its clients see it: rumqttc in both versions, and the mosquitto clients.

#![allow(clippy::unwrap_used)]

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rumqttc::v5::mqttbytes::v5 as packets;
use rumqttc::{mqttbytes::v4, v5};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::{Broker, BrokerError};

/// It only catches hangs, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

async fn broker() -> Broker {
    Broker::start("127.0.0.1:0".parse().unwrap()).await.unwrap()
}

/// A client with its event loop in a separate task; received messages arrive on the channel.
#[allow(clippy::struct_field_names)]
struct Client<C, M> {
    client: C,
    messages: tokio::sync::mpsc::Receiver<M>,
    task: tokio::task::JoinHandle<()>,
}

impl<C, M> Client<C, M> {
    async fn message(&mut self) -> M {
        timeout(PATIENCE, self.messages.recv()).await.expect("a message in time").unwrap()
    }

    async fn nothing_more(&mut self) {
        assert!(timeout(Duration::from_millis(200), self.messages.recv()).await.is_err(), "a message too many");
    }
}

impl<C, M> Drop for Client<C, M> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn connect5(
    broker: &Broker,
    id: &str,
    filters: &[&str],
    set: impl FnOnce(&mut v5::MqttOptions),
) -> Client<v5::AsyncClient, packets::Publish> {
    let mut options = v5::MqttOptions::new(id, "127.0.0.1", broker.local_addr().port());
    set(&mut options);
    let (client, mut events) = v5::AsyncClient::new(options, 64);
    for filter in filters {
        client.subscribe(*filter, v5::mqttbytes::QoS::ExactlyOnce).await.unwrap();
    }
    let (sender, messages) = tokio::sync::mpsc::channel(8);
    let (ready, is_ready) = tokio::sync::oneshot::channel();
    let mut wanted = filters.len() + 1;
    let task = tokio::spawn(async move {
        let mut ready = Some(ready);
        while let Ok(event) = events.poll().await {
            match event {
                v5::Event::Incoming(packets::Packet::Publish(publish)) => {
                    sender.send(publish).await.unwrap();
                }
                v5::Event::Incoming(packets::Packet::ConnAck(_) | packets::Packet::SubAck(_)) => {
                    wanted -= 1;
                }
                _ => {}
            }
            if wanted == 0
                && let Some(ready) = ready.take()
            {
                let _ = ready.send(());
            }
        }
    });
    timeout(PATIENCE, is_ready).await.expect("connected and subscribed").unwrap();
    Client { client, messages, task }
}

async fn connect4(
    broker: &Broker,
    id: &str,
    filters: &[&str],
    set: impl FnOnce(&mut rumqttc::MqttOptions),
) -> Client<rumqttc::AsyncClient, v4::Publish> {
    let mut options = rumqttc::MqttOptions::new(id, "127.0.0.1", broker.local_addr().port());
    options.set_max_packet_size(1 << 20, 1 << 20);
    set(&mut options);
    let (client, mut events) = rumqttc::AsyncClient::new(options, 64);
    for filter in filters {
        client.subscribe(*filter, rumqttc::QoS::ExactlyOnce).await.unwrap();
    }
    let (sender, messages) = tokio::sync::mpsc::channel(8);
    let (ready, is_ready) = tokio::sync::oneshot::channel();
    let mut wanted = filters.len() + 1;
    let task = tokio::spawn(async move {
        let mut ready = Some(ready);
        while let Ok(event) = events.poll().await {
            match event {
                rumqttc::Event::Incoming(v4::Packet::Publish(publish)) => {
                    sender.send(publish).await.unwrap();
                }
                rumqttc::Event::Incoming(v4::Packet::ConnAck(_) | v4::Packet::SubAck(_)) => {
                    wanted -= 1;
                }
                _ => {}
            }
            if wanted == 0
                && let Some(ready) = ready.take()
            {
                let _ = ready.send(());
            }
        }
    });
    timeout(PATIENCE, is_ready).await.expect("connected and subscribed").unwrap();
    Client { client, messages, task }
}

/// Runs a mosquitto client against the broker.
async fn mosquitto(broker: &Broker, program: &str, arguments: &[&str]) -> String {
    let port = broker.local_addr().port().to_string();
    let mut command = Command::new(program);
    command.args(["-p", &port]).args(arguments).stdin(Stdio::null());
    let ended = tokio::task::spawn_blocking(move || command.output());
    match timeout(PATIENCE, ended).await.expect("the client to end").unwrap() {
        Ok(output) => {
            assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
        }
        Err(error) => panic!("{program} ({error}): run `make setup`"),
    }
}

/// Lifetime of the messages in these tests, in seconds. The broker counts down, so a slow delivery has some less.
const EXPIRY: u32 = 3600;

fn is_counted_down(received: &packets::PublishProperties) -> bool {
    received.message_expiry_interval.is_some_and(|left| (1..=EXPIRY).contains(&left))
}

fn properties() -> packets::PublishProperties {
    packets::PublishProperties {
        payload_format_indicator: Some(1),
        message_expiry_interval: Some(EXPIRY),
        response_topic: Some("reply/here".into()),
        correlation_data: Some(b"\x00\xff7".to_vec().into()),
        user_properties: vec![("k".into(), "v1".into()), ("k".into(), "v2".into())],
        content_type: Some("application/cbor".into()),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn properties_pass_unchanged_and_versions_cross() {
    let broker = broker().await;
    let mut five = connect5(&broker, "five", &["t/#"], |_| {}).await;
    let mut four = connect4(&broker, "four", &["t/+"], |_| {}).await;
    for qos in [v5::mqttbytes::QoS::AtMostOnce, v5::mqttbytes::QoS::AtLeastOnce, v5::mqttbytes::QoS::ExactlyOnce] {
        five.client.publish_with_properties("t/a", qos, false, "hi", properties()).await.unwrap();
        let received = five.message().await;
        let mut passed = received.properties.unwrap();
        assert!(is_counted_down(&passed), "{passed:?}");
        passed.message_expiry_interval = Some(EXPIRY);
        assert_eq!((received.qos, passed), (qos, properties()));
        let received = four.message().await;
        assert_eq!((&received.topic[..], &received.payload[..], received.qos as u8), ("t/a", &b"hi"[..], qos as u8));
    }
    four.client.publish("t/b", rumqttc::QoS::ExactlyOnce, false, "from 3.1.1").await.unwrap();
    assert_eq!(&five.message().await.payload[..], b"from 3.1.1");
    assert_eq!(&four.message().await.payload[..], b"from 3.1.1");
    five.nothing_more().await;
    four.nothing_more().await;
}

#[tokio::test]
async fn retained_messages_keep_properties_and_expire() {
    let broker = broker().await;
    let publisher = connect5(&broker, "p", &[], |_| {}).await;
    let qos = v5::mqttbytes::QoS::AtLeastOnce;
    publisher.client.publish_with_properties("r/kept", qos, true, "kept", properties()).await.unwrap();
    publisher.client.publish("r/cleared", qos, true, "x").await.unwrap();
    publisher.client.publish("r/cleared", qos, true, "").await.unwrap();
    let short = packets::PublishProperties { message_expiry_interval: Some(1), ..Default::default() };
    publisher.client.publish_with_properties("r/short", qos, true, "x", short).await.unwrap();
    // The short one expires, and the stored one gets a second older.
    sleep(Duration::from_millis(1200)).await;
    let mut late = connect5(&broker, "late", &["r/#"], |_| {}).await;
    let received = late.message().await;
    assert!(received.retain);
    let received = received.properties.unwrap();
    assert!(is_counted_down(&received) && received.message_expiry_interval < Some(EXPIRY), "{received:?}");
    assert_eq!(received.correlation_data, properties().correlation_data);
    assert_eq!(received.user_properties, properties().user_properties);
    late.nothing_more().await;
    let mut late = connect4(&broker, "late4", &["r/#"], |_| {}).await;
    assert!(late.message().await.retain);
}

#[tokio::test]
async fn a_will_follows_a_break_but_no_goodbye() {
    let broker = broker().await;
    let mut watcher = connect5(&broker, "watcher", &["state/#"], |_| {}).await;
    let dying = connect4(&broker, "dying", &[], |options| {
        options.set_last_will(v4::LastWill::new("state/4", "offline", rumqttc::QoS::AtLeastOnce, true));
    })
    .await;
    drop(dying);
    assert_eq!(&watcher.message().await.payload[..], b"offline");
    let dying = connect5(&broker, "dying", &[], |options| {
        options.set_last_will(packets::LastWill::new("state/5", "offline", v5::mqttbytes::QoS::AtLeastOnce, true, None));
    })
    .await;
    drop(dying);
    assert_eq!(&watcher.message().await.topic[..], b"state/5");
    let leaving = connect5(&broker, "leaving", &[], |options| {
        options.set_last_will(packets::LastWill::new("state/6", "offline", v5::mqttbytes::QoS::AtLeastOnce, true, None));
    })
    .await;
    leaving.client.disconnect().await.unwrap();
    watcher.nothing_more().await;
    let mut late = connect5(&broker, "late", &["state/+"], |_| {}).await;
    assert!(late.message().await.retain && late.message().await.retain);
}

#[tokio::test]
async fn a_session_outlives_its_connection() {
    let broker = broker().await;
    let keep = |options: &mut rumqttc::MqttOptions| {
        options.set_clean_session(false);
    };
    drop(connect4(&broker, "stays", &["q/#"], keep).await);
    let mut publisher = connect5(&broker, "p", &["done", "heard"], |_| {}).await;
    for index in 0..100 {
        publisher.client.publish("q/x", v5::mqttbytes::QoS::AtLeastOnce, false, format!("{index}")).await.unwrap();
    }
    // A later message that has come back proves that the broker has all earlier ones.
    publisher.client.publish("heard", v5::mqttbytes::QoS::AtLeastOnce, false, "").await.unwrap();
    assert_eq!(&publisher.message().await.topic[..], b"heard");
    let mut back = connect4(&broker, "stays", &[], keep).await;
    for index in 0..100 {
        assert_eq!(&back.message().await.payload[..], format!("{index}").as_bytes());
    }
    // Every unacknowledged message would come again. This one follows the last acknowledgement.
    back.client.publish("done", rumqttc::QoS::AtLeastOnce, false, "").await.unwrap();
    assert_eq!(&publisher.message().await.topic[..], b"done");
    let mut second = connect4(&broker, "stays", &[], keep).await;
    assert!(timeout(PATIENCE, back.messages.recv()).await.unwrap().is_none(), "the first connection is closed");
    publisher.client.publish("q/x", v5::mqttbytes::QoS::AtLeastOnce, false, "to the second").await.unwrap();
    assert_eq!(&second.message().await.payload[..], b"to the second");
}

#[tokio::test]
async fn a_shared_message_goes_to_one_member() {
    let broker = broker().await;
    let mut left = connect5(&broker, "left", &["$share/g/s/#"], |_| {}).await;
    let mut right = connect4(&broker, "right", &["$share/g/s/#"], |_| {}).await;
    for _ in 0..10 {
        left.client.publish("s/x", v5::mqttbytes::QoS::AtLeastOnce, false, "m").await.unwrap();
    }
    for _ in 0..5 {
        left.message().await;
        right.message().await;
    }
    left.nothing_more().await;
    right.nothing_more().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off() {
    let broker = broker().await;
    let mut slow = TcpStream::connect(broker.local_addr()).await.unwrap();
    slow.write_all(b"\x10\x11\x00\x04MQTT\x05\x02\x00\x00\x00\x00\x04slow").await.unwrap();
    slow.write_all(b"\x82\x07\x00\x01\x00\x00\x01f\x01").await.unwrap();
    let mut quick = connect5(&broker, "quick", &["f"], |options| {
        options.set_max_packet_size(Some(1 << 20));
    })
    .await;
    for _ in 0..150 {
        quick.client.publish("f", v5::mqttbytes::QoS::AtLeastOnce, false, vec![b'x'; 200_000]).await.unwrap();
        quick.message().await;
    }
    // Sent bytes are still in the socket; the end of the connection follows them.
    let mut sink = Vec::new();
    timeout(PATIENCE, slow.read_to_end(&mut sink)).await.expect("the slow client is disconnected").unwrap();
    assert!(sink.len() < 30_000_000, "{} bytes", sink.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_slows_its_publisher_and_loses_nothing() {
    let broker = broker().await;
    let mut reader = connect4(&broker, "reader", &["burst"], |_| {}).await;
    let publisher = connect5(&broker, "publisher", &[], |_| {}).await;
    let client = publisher.client.clone();
    let publishing = tokio::spawn(async move {
        for index in 0..2000 {
            let qos = v5::mqttbytes::QoS::AtLeastOnce;
            client.publish("burst", qos, false, format!("{index}")).await.unwrap();
        }
    });
    for index in 0..2000 {
        assert_eq!(&reader.message().await.payload[..], format!("{index}").as_bytes());
        sleep(Duration::from_micros(200)).await;
    }
    publishing.await.unwrap();
}

#[tokio::test]
async fn silence_and_nonsense_end_a_connection() {
    let broker = broker().await;
    let mut silent = TcpStream::connect(broker.local_addr()).await.unwrap();
    silent.write_all(b"\x10\x0f\x00\x04MQTT\x05\x02\x00\x01\x00\x00\x02si").await.unwrap();
    let started = Instant::now();
    let mut answer = Vec::new();
    timeout(PATIENCE, silent.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert!(started.elapsed() >= Duration::from_millis(1400));
    assert!(answer.ends_with(b"\xe0\x02\x8d\x00"), "keep alive timeout: {answer:x?}");

    for (nonsense, expected) in [
        (&[b'G'; 100][..], &b""[..]),
        (b"\x10\x0c\x00\x06MQIsdp\x03\x02\x00\x01", b"\x20\x02\x00\x01"),
        (b"\x10\xff\xff\xff\x7f", b"\x20\x02\x00\x03"),
    ] {
        let mut client = TcpStream::connect(broker.local_addr()).await.unwrap();
        client.write_all(nonsense).await.unwrap();
        let mut answer = Vec::new();
        let _ = timeout(PATIENCE, client.read_to_end(&mut answer)).await.expect("closed");
        assert!(answer.starts_with(expected), "{answer:x?}");
    }
}

#[tokio::test]
async fn a_taken_port_is_named_with_its_remedy() {
    let broker = broker().await;
    let listen = broker.local_addr();
    let error = Broker::start(listen).await.unwrap_err();
    assert!(matches!(error, BrokerError::InUse { .. }));
    assert!(error.to_string().contains(&format!("`[mqtt] broker = \"mqtt://{listen}\"`")), "{error}");
    let mut client = connect5(&broker, "c", &["x"], |_| {}).await;
    broker.shutdown().await;
    assert!(timeout(PATIENCE, client.messages.recv()).await.unwrap().is_none(), "the client is told");
    drop(Broker::start(listen).await.unwrap());
    // A dropped broker frees the port a moment later.
    let again = async {
        loop {
            match Broker::start(listen).await {
                Ok(broker) => return broker,
                Err(_) => sleep(Duration::from_millis(10)).await,
            }
        }
    };
    timeout(PATIENCE, again).await.expect("the port becomes free").shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mosquitto_clients_ask_publish_and_subscribe() {
    let broker = broker().await;
    let mut service = connect5(&broker, "service", &["svc/ask"], |_| {}).await;
    let client = service.client.clone();
    let answering = async {
        let question = service.message().await;
        let asked = question.properties.unwrap();
        assert_eq!(asked.user_properties, [("lang".into(), "en".into())]);
        let answer = packets::PublishProperties { correlation_data: asked.correlation_data, ..Default::default() };
        let qos = v5::mqttbytes::QoS::AtLeastOnce;
        client.publish_with_properties(asked.response_topic.unwrap(), qos, false, "42", answer).await.unwrap();
        service
    };
    let ask = ["-V", "5", "-q", "1", "-t", "svc/ask", "-e", "svc/reply", "-m", "why?", "-F", "%p %D"];
    let ask = [&ask[..], &["-D", "publish", "correlation-data", "c7", "-D", "publish", "user-property", "lang", "en"]];
    let ask = ask.concat();
    let asking = mosquitto(&broker, "mosquitto_rr", &ask);
    tokio::select! {
        answer = asking => assert_eq!(answer, "42 c7"),
        () = async { let _service = answering.await; std::future::pending().await } => {}
    }
    let publish = ["-V", "mqttv311", "-q", "1", "-r", "-t", "m/x", "-m", "kept"];
    mosquitto(&broker, "mosquitto_pub", &publish).await;
    for version in ["5", "mqttv311"] {
        for qos in ["0", "1", "2"] {
            let subscribe = ["-V", version, "-q", qos, "-t", "m/#", "-C", "1", "-F", "%t %p %r"];
            assert_eq!(mosquitto(&broker, "mosquitto_sub", &subscribe).await, "m/x kept 1");
        }
    }
}
