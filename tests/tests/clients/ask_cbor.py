"""Asks one question with paho-mqtt 5 in CBOR and prints the reply as JSON: PORT NODE QUESTION SECONDS."""

import json
import sys
import threading

import cbor2
import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

port, node, question, patience = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
reply_topic = "paho/reply/1"
correlation = b"\x00\xffpaho"
done = threading.Event()
reply = {}


def on_connect(client, _userdata, _flags, reason, _properties):
    assert not reason.is_failure, reason
    client.subscribe(reply_topic, qos=1)


def on_subscribe(client, _userdata, _mid, reasons, _properties):
    assert not reasons[0].is_failure, reasons
    properties = Properties(PacketTypes.PUBLISH)
    properties.ResponseTopic = reply_topic
    properties.CorrelationData = correlation
    properties.ContentType = "application/cbor"
    payload = cbor2.dumps({"id": "p1", "question": question, "max_tokens": 16})
    client.publish(f"vademecum/{node}/ask", payload, qos=1, properties=properties)


def on_message(_client, _userdata, message):
    reply["content_type"] = message.properties.ContentType
    reply["correlated"] = message.properties.CorrelationData == correlation
    reply["payload"] = cbor2.loads(message.payload)
    done.set()


client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
client.on_connect, client.on_subscribe, client.on_message = on_connect, on_subscribe, on_message
client.connect("127.0.0.1", port)
client.loop_start()
if not done.wait(patience):
    sys.exit("no reply")
client.disconnect()
client.loop_stop()
print(json.dumps(reply))
