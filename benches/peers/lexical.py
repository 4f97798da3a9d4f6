"""The full-text indexes that are compared: BM25 over whole chunks, title and headings included, the ten best."""

import importlib.metadata
import re

from worker import K


class Bm25s:
    """bm25s as its documentation has it, with its fastest backend where that can be had."""

    def version(self):
        return f"bm25s {importlib.metadata.version('bm25s')} (numba)"

    def build(self, texts, directory):
        import bm25s
        import Stemmer

        self.bm25s, self.stemmer = bm25s, Stemmer.Stemmer("english")
        self.index = bm25s.BM25(backend="numba")
        self.index.index(self.tokens(texts), show_progress=False)
        directory.mkdir(parents=True, exist_ok=True)
        self.index.save(directory)

    def tokens(self, texts):
        return self.bm25s.tokenize(texts, stopwords="en", stemmer=self.stemmer, show_progress=False)

    def search(self, text):
        rows, _ = self.index.retrieve(self.tokens([text]), k=K, show_progress=False, n_threads=1)
        return rows[0].tolist()


class Fts5:
    """SQLite's full-text index, terms joined by OR so that ranking decides, as in a search engine."""

    def version(self):
        import apsw

        return f"SQLite FTS5 {apsw.sqlite_lib_version()}"

    def build(self, texts, directory):
        directory.mkdir(parents=True, exist_ok=True)
        import apsw

        (directory / "texts.sqlite").unlink(missing_ok=True)
        self.database = apsw.Connection(str(directory / "texts.sqlite"))
        self.database.execute("pragma journal_mode = off")
        self.database.execute("create virtual table texts using fts5(text, content='', tokenize='porter unicode61')")
        self.database.execute("begin")
        self.database.executemany("insert into texts(rowid, text) values (?, ?)", enumerate(texts))
        self.database.execute("insert into texts(texts) values ('optimize')")
        self.database.execute("commit")
        self.database.execute("pragma mmap_size = 4294967296")

    def search(self, text):
        words = " OR ".join(f'"{word}"' for word in re.findall(r"\w+", text))
        rows = self.database.execute("select rowid from texts where texts match ? order by rank limit ?", (words, K))
        return [row for (row,) in rows]


ENGINES = {"bm25s": Bm25s, "fts5": Fts5}
