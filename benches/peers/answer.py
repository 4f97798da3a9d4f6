"""A stack that people would put together today, as a worker over MQTT that speaks the daemon's contract.

    answer.py serve STACK --port PORT --node NODE --library DIR --generator GGUF --embedder GGUF --threads N [--plain]
    answer.py build STACK --passages FILE ... (the same, without --port and --node)

STACK is one of `stacks.py`. `build` makes the search index of the passages, one JSON object a line with `document`, `title`,
`heading` and `text`; `serve` opens it, as the daemon opens its library, and answers on `vademecum/<node>/ask`:
evidence, the answer piece by piece, the whole answer. One thread speaks to the broker, the others answer.
"""

import argparse
import json
import queue
import sys
import threading
import time

import stacks

# llama-server works on several questions at once; the others hold one context.
AT_ONCE = {"server": 4}


class Worker:
    """Takes questions from the broker and answers them, as many at once as the stack can."""

    def __init__(self, client, node, stack, at_once):
        self.client, self.base, self.stack = client, f"vademecum/{node}", stack
        self.questions = queue.Queue()
        client.on_connect = self.subscribe
        client.on_subscribe = lambda *_: client.publish(f"{self.base}/state", "online", qos=1, retain=True)
        client.on_message = lambda _client, _userdata, message: self.questions.put(message)
        client.will_set(f"{self.base}/state", "offline", qos=1, retain=True)
        for _ in range(at_once):
            threading.Thread(target=self.work, daemon=True).start()

    def subscribe(self, client, *_):
        client.subscribe(f"{self.base}/ask", qos=1)

    def work(self):
        while True:
            message = self.questions.get()
            asked = time.perf_counter()
            request = json.loads(message.payload)
            to = getattr(message.properties, "ResponseTopic", None) or request.get("reply_to")
            to = to or f"{self.base}/answer/{request.get('id', '')}"
            try:
                self.answer(request, to, asked)
            except Exception as error:  # the client is told, as the daemon does; the next question is answered
                self.send(to, {"id": request.get("id"), "error": {"code": "internal", "message": repr(error)}})

    def answer(self, request, to, asked):
        def since():
            return (time.perf_counter() - asked) * 1e3

        passages = self.stack.retrieve(request["question"], request.get("top_k", 3))
        timings = {"evidence_ms": since()}
        citations = [{"n": n, "document": passage["document"], "quote": ""} for n, passage in enumerate(passages, 1)]
        self.send(to, {"id": request["id"], "seq": 0, "evidence": citations}, qos=0)
        pieces = []
        for piece in self.stack.generate(request["question"], passages, request.get("max_tokens", 64)):
            timings.setdefault("ttft_ms", since())
            pieces.append(piece)
            self.send(to, {"id": request["id"], "seq": len(pieces), "delta": piece}, qos=0)
        timings["total_ms"] = since()
        usage = {"passages": len(passages), "answer_tokens": len(pieces)}
        answer = {"answer": "".join(pieces).strip(), "found": True, "citations": citations}
        self.send(to, {"id": request["id"], **answer, "timings": timings, "usage": usage})

    def send(self, topic, message, qos=1):
        self.client.publish(topic, json.dumps(message), qos=qos)


def connected(arguments):
    import paho.mqtt.client as mqtt

    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=arguments.node, protocol=mqtt.MQTTv5)
    stack = stacks.STACKS[arguments.stack](arguments)
    stack.open(arguments.library)
    Worker(client, arguments.node, stack, AT_ONCE.get(arguments.stack, 1))
    client.connect("127.0.0.1", arguments.port, keepalive=600)
    return client


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("do", choices=["build", "serve"])
    parser.add_argument("stack", choices=stacks.STACKS)
    for name in ["--library", "--generator", "--embedder"]:
        parser.add_argument(name, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--port", type=int)
    parser.add_argument("--node")
    parser.add_argument("--passages")
    parser.add_argument("--server", help="where llama-server listens, host:port")
    parser.add_argument("--plain", action="store_true", help="the generator has no chat template")
    arguments = parser.parse_args()
    if arguments.do == "build":
        with open(arguments.passages, encoding="utf-8") as file:
            stacks.STACKS[arguments.stack](arguments).build([json.loads(line) for line in file], arguments.library)
        return 0
    connected(arguments).loop_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
