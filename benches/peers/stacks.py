"""The stacks that answer: how each finds passages and lets a model answer from them.

All have the same models, passages, number of threads and context as the daemon, and a prompt with the passages in front of the
question, as tutorials have it. Libraries are imported where they are used, so that a worker loads only its own.
"""

import http.client
import json
import threading
import time
from pathlib import Path

CONTEXT = 2048
SYSTEM = "You are a helpful assistant. Answer the question briefly, using only the context."


def content(passage):
    """A passage as it is embedded: with its title and headings, as the daemon does."""
    return "\n".join(part for part in [passage["title"], passage["heading"], passage["text"]] if part)


def messages(question, passages):
    context = "\n\n".join(f"[{n}] {passage['text']}" for n, passage in enumerate(passages, 1))
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": f"Context:\n{context}\n\nQuestion: {question}"},
    ]


def plain(question, passages):
    """The same for a model without a chat template."""
    system, user = messages(question, passages)
    return f"{system['content']}\n\n{user['content']}\nAnswer:"


class Faiss:
    """Retrieval with the encoder in llama-cpp-python and an exact index in FAISS."""

    def __init__(self, arguments):
        import faiss
        import numpy
        from llama_cpp import Llama

        self.faiss, self.numpy = faiss, numpy
        faiss.omp_set_num_threads(arguments.threads)
        self.encoder = Llama(
            arguments.embedder,
            embedding=True,
            n_ctx=512,
            n_batch=512,
            n_ubatch=512,
            n_threads=arguments.threads,
            n_threads_batch=arguments.threads,
            verbose=False,
        )
        self.one_at_a_time = threading.Lock()

    def embed(self, text):
        with self.one_at_a_time:
            return self.numpy.array([self.encoder.embed(text, normalize=True, truncate=True)], dtype="float32")

    def build(self, passages, library):
        vectors = self.numpy.vstack([self.embed(content(passage)) for passage in passages])
        index = self.faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        Path(library).mkdir(parents=True, exist_ok=True)
        self.faiss.write_index(index, str(Path(library, "index.faiss")))
        Path(library, "passages.json").write_text(json.dumps(passages), encoding="utf-8")

    def open(self, library):
        self.index = self.faiss.read_index(str(Path(library, "index.faiss")))
        self.passages = json.loads(Path(library, "passages.json").read_text(encoding="utf-8"))

    def retrieve(self, question, count):
        _, rows = self.index.search(self.embed(question), count)
        return [self.passages[row] for row in rows[0] if row >= 0]


class Lean(Faiss):
    """llama-cpp-python, FAISS, paho-mqtt: the leanest that Python has."""

    flash = False

    def __init__(self, arguments):
        super().__init__(arguments)
        self.arguments = arguments

    def open(self, library):
        from llama_cpp import Llama

        super().open(library)
        threads = self.arguments.threads
        self.generator = Llama(
            self.arguments.generator,
            n_ctx=CONTEXT,
            n_threads=threads,
            n_threads_batch=threads,
            flash_attn=self.flash,
            verbose=False,
        )

    def generate(self, question, passages, most):
        settings = {"stream": True, "temperature": 0.0, "max_tokens": most}
        if self.arguments.plain:
            answer = self.generator.create_completion(plain(question, passages), stop=["\n\n"], **settings)
            pieces = (event["choices"][0]["text"] for event in answer)
        else:
            answer = self.generator.create_chat_completion(messages(question, passages), **settings)
            pieces = (event["choices"][0]["delta"].get("content") for event in answer)
        yield from (piece for piece in pieces if piece)


class Flash(Lean):
    """The same with flash attention, which it leaves off unless told."""

    flash = True


class Server(Faiss):
    """The same retrieval in front of llama-server, which this benchmark starts beside the worker."""

    def __init__(self, arguments):
        super().__init__(arguments)
        self.address, self.plain = arguments.server, arguments.plain

    def open(self, library):
        super().open(library)
        for _ in range(600):
            if self.is_ready():
                return
            time.sleep(0.05)
        raise RuntimeError(f"llama-server is not ready at {self.address}")

    def is_ready(self):
        connection = http.client.HTTPConnection(self.address, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def generate(self, question, passages, most):
        settings = {"stream": True, "temperature": 0.0, "cache_prompt": True}
        if self.plain:
            path = "/completion"
            body = {"prompt": plain(question, passages), "n_predict": most, "stop": ["\n\n"], **settings}
        else:
            path = "/v1/chat/completions"
            body = {"messages": messages(question, passages), "max_tokens": most, **settings}
        connection = http.client.HTTPConnection(self.address, timeout=120)
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"llama-server: {response.status} {response.read(500)!r}")
        for line in response:
            line = line.removeprefix(b"data: ").strip()
            if not line or line == b"[DONE]":
                continue
            event = json.loads(line)
            piece = event.get("content") if self.plain else event["choices"][0]["delta"].get("content")
            if piece:
                yield piece
        connection.close()


class LangChain:
    """LangChain with Chroma, as its documentation puts them together, and llama-cpp-python for both models."""

    def __init__(self, arguments):
        from langchain_community.embeddings import LlamaCppEmbeddings

        self.arguments = arguments
        threads = arguments.threads
        self.encoder = LlamaCppEmbeddings(
            model_path=arguments.embedder, n_ctx=512, n_batch=512, n_threads=threads, verbose=False
        )

    def build(self, passages, library):
        from langchain_chroma import Chroma
        from langchain_core.documents import Document

        documents = [Document(page_content=content(passage), metadata=passage) for passage in passages]
        Chroma.from_documents(documents, self.encoder, persist_directory=library)

    def open(self, library):
        from langchain_chroma import Chroma
        from langchain_community.llms import LlamaCpp
        from langchain_core.output_parsers import StrOutputParser
        from langchain_core.prompts import PromptTemplate

        self.store = Chroma(persist_directory=library, embedding_function=self.encoder)
        generator = LlamaCpp(
            model_path=self.arguments.generator,
            n_ctx=CONTEXT,
            n_batch=512,
            n_threads=self.arguments.threads,
            temperature=0.0,
            max_tokens=64,
            verbose=False,
        )
        prompt = PromptTemplate.from_template(SYSTEM + "\n\nContext:\n{context}\n\nQuestion: {question}\nAnswer:")
        self.chain = prompt | generator | StrOutputParser()

    def retrieve(self, question, count):
        return [document.metadata for document in self.store.similarity_search(question, k=count)]

    def generate(self, question, passages, _most):
        context = "\n\n".join(passage["text"] for passage in passages)
        yield from self.chain.stream({"context": context, "question": question})


STACKS = {"lean": Lean, "lean-flash": Flash, "server": Server, "langchain": LangChain}
