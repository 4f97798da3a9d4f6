"""One peer in one process: reads requests from standard input, one JSON object a line, and answers each with one line.

    worker.py dense NAME      a vector index: build, open, search, batch, filtered, update
    worker.py lexical NAME    a full-text index: build, search

Times are taken here, around one call as a user would write it, so that pipes and JSON stay outside of them; what the
language costs per call shows when the same call goes to an index of 16 rows. A request that fails is answered with
{"error": ...}; the run goes on without that figure.
"""

import json
import sys
import time
import traceback
from pathlib import Path

DIMENSIONS = 384
K = 10


def timed(call, inputs, seconds):
    """Calls `call` with each input; milliseconds of each and what it returned. Stops early after `seconds`."""
    clock = time.perf_counter_ns
    times, results = [], []
    end = clock() + int(seconds * 1e9)
    for one in inputs:
        begun = clock()
        result = call(one)
        done = clock()
        times.append((done - begun) / 1e6)
        results.append(result)
        if done > end:
            break
    return times, results


def size_of(directory):
    """Bytes on disk; what is only reserved in sparse files does not count."""
    return sum(path.stat().st_blocks * 512 for path in Path(directory).rglob("*") if path.is_file())


class Dense:
    """A worker around one engine of `dense.py`."""

    def __init__(self, name):
        import dense

        self.engine = dense.ENGINES[name]()

    def hello(self, _):
        return {"version": self.engine.version()}

    def build(self, ask):
        import dense

        directory = Path(ask["dir"])
        directory.mkdir(parents=True, exist_ok=True)
        begun = time.perf_counter()
        self.engine.build(dense.vectors(ask["vectors"], ask["rows"]), directory, ask["threads"])
        return {"build_s": time.perf_counter() - begun}

    def open(self, ask):
        begun = time.perf_counter()
        self.engine.open(Path(ask["dir"]), ask["rows"], ask)
        return {"open_ms": (time.perf_counter() - begun) * 1e3, "bytes": self.engine.bytes(Path(ask["dir"]), ask)}

    def search(self, ask):
        import dense

        call = self.engine.searcher(ask["threads"], ask["effort"], ask["bucket"])
        queries = [self.engine.query(vector) for vector in dense.vectors(ask["queries"])]
        timed(call, queries[:2], ask["seconds"])
        times, results = timed(call, queries, ask["seconds"])
        return {"ms": times, "ids": [self.engine.ids(result) for result in results]}

    def batch(self, ask):
        import dense

        queries = dense.vectors(ask["queries"])
        self.engine.batch(queries[:2], ask["threads"], ask["effort"])
        begun = time.perf_counter()
        self.engine.batch(queries, ask["threads"], ask["effort"])
        return {"ms_per_query": (time.perf_counter() - begun) * 1e3 / len(queries)}

    def update(self, ask):
        """Adds rows one by one, looks for each, removes them one by one and looks again."""
        import dense

        rows = [(ask["rows"] + i, vector) for i, vector in enumerate(dense.vectors(ask["vectors"])[-ask["count"]:])]
        call = self.engine.searcher(1, ask["effort"], None)

        def seen():
            return sum(row in self.engine.ids(call(self.engine.query(vector))) for row, vector in rows) / len(rows)

        add, _ = timed(lambda row: self.engine.add(*row), rows, 1e9)
        after_add = seen()
        # The last first: FAISS numbers the rows behind a removed one anew.
        delete, _ = timed(lambda row: self.engine.delete(row[0]), rows[::-1], 1e9)
        return {"add_ms": add, "delete_ms": delete, "found_after_add": after_add, "found_after_delete": seen()}


class Lexical:
    """A worker around one engine of `lexical.py`."""

    def __init__(self, name):
        import lexical

        self.engine = lexical.ENGINES[name]()

    def hello(self, _):
        return {"version": self.engine.version()}

    def build(self, ask):
        with open(ask["texts"], encoding="utf-8") as file:
            texts = [json.loads(line)["all"] for _, line in zip(range(ask["rows"]), file)]
        begun = time.perf_counter()
        self.engine.build(texts, Path(ask["dir"]))
        return {"build_s": time.perf_counter() - begun, "bytes": size_of(ask["dir"])}

    def search(self, ask):
        timed(self.engine.search, ask["texts"][:5], ask["seconds"])
        times, results = timed(self.engine.search, ask["texts"], ask["seconds"])
        return {"ms": times, "ids": results}


def main():
    worker = {"dense": Dense, "lexical": Lexical}[sys.argv[1]](sys.argv[2])
    answers = sys.stdout
    # What a library prints must not get between the answers.
    sys.stdout = sys.stderr
    for line in sys.stdin:
        ask = json.loads(line)
        try:
            answer = getattr(worker, ask["do"])(ask)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
