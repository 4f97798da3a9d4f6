"""The vector indexes that are compared. One class each; all take unit vectors and rank by inner product."""

import importlib
import importlib.metadata

import numpy

from worker import DIMENSIONS, K, size_of

# Rows handed over at once while an index is built.
BLOCK = 50_000
# A tenth of the rows passes the filter.
BUCKETS = 10


def vectors(path, rows=None):
    """Rows of 384 little-endian f32, mapped, not read."""
    whole = numpy.memmap(path, dtype="<f4", mode="r").reshape(-1, DIMENSIONS)
    return whole if rows is None else whole[:rows]


def blocks(rows):
    for begin in range(0, len(rows), BLOCK):
        yield begin, numpy.ascontiguousarray(rows[begin : begin + BLOCK])


def int8(rows):
    """Each row with its largest magnitude at 127: the cosine stays, the length goes."""
    return numpy.round(rows * (127.0 / numpy.abs(rows).max(axis=-1, keepdims=True))).astype(numpy.int8)


class Engine:
    package = ""
    module = ""

    def __init__(self):
        # Here, so that memory is counted from after the import.
        self.library = importlib.import_module(self.module)

    def version(self):
        return f"{self.package} {importlib.metadata.version(self.package)}"

    def bytes(self, directory, ask):
        return size_of(directory)

    def query(self, vector):
        return numpy.ascontiguousarray(vector)

    def batch(self, queries, threads, effort):
        raise NotImplementedError("no batches")

    def add(self, row, vector):
        raise NotImplementedError("no single rows")

    def delete(self, row):
        raise NotImplementedError("no deletion")


class Faiss(Engine):
    package = "faiss-cpu"
    module = "faiss"

    def build(self, rows, directory, threads):
        self.library.omp_set_num_threads(threads)
        index = self.make(rows)
        for _, block in blocks(rows):
            index.add(block)
        self.library.write_index(index, str(directory / "index"))

    def open(self, directory, rows, ask):
        self.rows = rows
        self.index = self.library.read_index(str(directory / "index"))

    def parameters(self, effort, bucket):
        """None without options; a selector of every tenth row with a filter."""
        if bucket is None:
            return None
        chosen = numpy.zeros((self.rows + 7) // 8 * 8, dtype=bool)
        chosen[bucket : self.rows : BUCKETS] = True
        self.selector = self.library.IDSelectorBitmap(numpy.packbits(chosen, bitorder="little"))
        return self.library.SearchParameters(sel=self.selector)

    def searcher(self, threads, effort, bucket):
        self.library.omp_set_num_threads(threads)
        index, options = self.index, self.parameters(effort, bucket)
        return lambda query: index.search(query[None], K, params=options)

    def ids(self, result):
        return result[1][0].tolist()

    def batch(self, queries, threads, effort):
        self.library.omp_set_num_threads(threads)
        self.index.search(queries, K, params=self.parameters(effort, None))

    def add(self, row, vector):
        self.index.add(vector[None])

    def delete(self, row):
        # Rows are numbered by place: the last one is taken off, and the others keep their numbers.
        self.index.remove_ids(numpy.array([row]))


class FaissFlat(Faiss):
    def make(self, rows):
        return self.library.IndexFlatIP(DIMENSIONS)


class FaissSharded(FaissFlat):
    """IndexFlatIP in halves with a thread each: by itself FAISS searches a single query with one thread."""

    def open(self, directory, rows, ask):
        super().open(directory, rows, ask)
        whole, self.halves = self.index, [self.library.IndexFlatIP(DIMENSIONS) for _ in range(2)]
        self.index = self.library.IndexShards(DIMENSIONS, True, True)
        for half, begin, end in zip(self.halves, [0, rows // 2], [rows // 2, rows]):
            half.add(whole.reconstruct_n(begin, end - begin))
            self.index.add_shard(half)

    def add(self, row, vector):
        raise NotImplementedError("measured as IndexFlatIP")


class FaissSq8(Faiss):
    def make(self, rows):
        index = self.library.IndexScalarQuantizer(
            DIMENSIONS, self.library.ScalarQuantizer.QT_8bit, self.library.METRIC_INNER_PRODUCT
        )
        index.train(numpy.ascontiguousarray(rows[:BLOCK]))
        return index


class FaissHnsw(Faiss):
    def make(self, rows):
        index = self.library.IndexHNSWFlat(DIMENSIONS, 16, self.library.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 128
        return index

    def parameters(self, effort, bucket):
        super().parameters(effort, bucket)
        return self.library.SearchParametersHNSW(efSearch=effort, sel=None if bucket is None else self.selector)

    def delete(self, row):
        raise NotImplementedError("HNSW cannot remove rows")


class Usearch(Engine):
    """HNSW with usearch's own defaults (connectivity 16, expansion_add 128)."""

    package = "usearch"
    module = "usearch.index"
    dtype = "f32"

    def build(self, rows, directory, threads):
        index = self.library.Index(ndim=DIMENSIONS, metric="ip", dtype=self.dtype)
        for begin, block in blocks(rows):
            index.add(numpy.arange(begin, begin + len(block)), block, threads=threads)
        index.save(str(directory / "index"))

    def open(self, directory, rows, ask):
        self.index = self.library.Index(ndim=DIMENSIONS, metric="ip", dtype=self.dtype)
        self.index.load(str(directory / "index"))

    def searcher(self, threads, effort, bucket):
        if bucket is not None:
            raise NotImplementedError("no filters from Python")
        self.index.expansion_search = effort
        search = self.index.search
        return lambda query: search(query, K, threads=threads)

    def ids(self, result):
        return result.keys.tolist()

    def batch(self, queries, threads, effort):
        self.index.expansion_search = effort
        self.index.search(queries, K, threads=threads)

    def add(self, row, vector):
        self.index.add(row, vector, threads=1)

    def delete(self, row):
        self.index.remove(row)


class UsearchI8(Usearch):
    dtype = "i8"


class UsearchExact(Engine):
    """usearch's brute force over rows that lie in a file."""

    package = "usearch"
    module = "usearch.index"
    dtype = "<f4"

    def build(self, rows, directory, threads):
        with open(directory / "rows", "wb") as file:
            for _, block in blocks(rows):
                self.code(block).tofile(file)

    def code(self, rows):
        return numpy.ascontiguousarray(rows)

    def query(self, vector):
        return self.code(numpy.array(vector))

    def open(self, directory, rows, ask):
        self.rows = numpy.memmap(directory / "rows", dtype=self.dtype, mode="r").reshape(-1, DIMENSIONS)

    def searcher(self, threads, effort, bucket):
        if bucket is not None:
            raise NotImplementedError("no filters")
        rows, search = self.rows, self.library.search
        return lambda query: search(rows, query, K, metric="cos", exact=True, threads=threads)

    def ids(self, result):
        return result.keys.tolist()

    def batch(self, queries, threads, effort):
        self.library.search(self.rows, self.code(numpy.array(queries)), K, metric="cos", exact=True, threads=threads)


class UsearchExactI8(UsearchExact):
    dtype = "i1"

    def code(self, rows):
        return int8(rows)


class SqliteVec(Engine):
    package = "sqlite-vec"
    module = "sqlite_vec"
    kind = "float"
    wrap = "?"

    def code(self, rows):
        return rows

    def query(self, vector):
        return self.code(numpy.array(vector)).tobytes()

    def connect(self, directory):
        # Python's own sqlite3 is often built without extensions.
        self.database = importlib.import_module("apsw").Connection(str(directory / "rows.sqlite"))
        self.database.enable_load_extension(True)
        self.database.load_extension(self.library.loadable_path())

    def build(self, rows, directory, threads):
        (directory / "rows.sqlite").unlink(missing_ok=True)
        self.connect(directory)
        self.database.execute("pragma journal_mode = off")
        self.database.execute(
            f"create virtual table rows using vec0(embedding {self.kind}[{DIMENSIONS}] distance_metric=cosine, bucket integer)"
        )
        self.database.execute("begin")
        for begin, block in blocks(rows):
            coded = self.code(block)
            self.database.executemany(
                f"insert into rows(rowid, embedding, bucket) values (?, {self.wrap}, ?)",
                ((begin + i, row.tobytes(), (begin + i) % BUCKETS) for i, row in enumerate(coded)),
            )
        self.database.execute("commit")

    def open(self, directory, rows, ask):
        self.connect(directory)
        self.database.execute("pragma mmap_size = 4294967296")

    def searcher(self, threads, effort, bucket):
        where = "" if bucket is None else f" and bucket = {bucket}"
        statement = f"select rowid from rows where embedding match {self.wrap} and k = {K}{where}"
        execute = self.database.execute
        return lambda query: execute(statement, (query,)).fetchall()

    def ids(self, result):
        return [row for (row,) in result]

    def add(self, row, vector):
        statement = f"insert into rows(rowid, embedding, bucket) values (?, {self.wrap}, ?)"
        self.database.execute(statement, (row, self.query(vector), row % BUCKETS))

    def delete(self, row):
        self.database.execute("delete from rows where rowid = ?", (row,))


class SqliteVecInt8(SqliteVec):
    kind = "int8"
    wrap = "vec_int8(?)"

    def code(self, rows):
        return int8(rows)


class QdrantEdge(Engine):
    """HNSW with qdrant's defaults (m 16, ef_construct 100)."""

    package = "qdrant-edge-py"
    module = "qdrant_edge"
    quantised = False

    def config(self, threads):
        q = self.library
        quantisation = q.ScalarQuantizationConfig(type=q.ScalarType.Int8, quantile=0.99) if self.quantised else None
        return q.EdgeConfig(
            vectors=q.EdgeVectorParams(size=DIMENSIONS, distance=q.Distance.Dot),
            hnsw_config=q.HnswIndexConfig(m=16, ef_construct=100, full_scan_threshold=10_000, max_indexing_threads=threads),
            quantization_config=quantisation,
            # One segment: each further one is searched on its own.
            optimizers=q.EdgeOptimizersConfig(default_segment_number=1, indexing_threshold=1_000),
            max_search_threads=threads,
        )

    def points(self, rows):
        q = self.library
        return q.UpdateOperation.upsert_points(
            [q.Point(row, vector.tolist(), {"bucket": row % BUCKETS}) for row, vector in rows]
        )

    def build(self, rows, directory, threads):
        q = self.library
        shard = q.EdgeShard.create(str(directory), self.config(threads))
        shard.update(q.UpdateOperation.create_field_index("bucket", q.PayloadSchemaType.Integer))
        for begin in range(0, len(rows), 1_000):
            shard.update(self.points(enumerate(rows[begin : begin + 1_000], begin)))
        shard.optimize()
        shard.flush()
        shard.close()

    def open(self, directory, rows, ask):
        self.directory, self.threads = directory, ask["threads"]
        self.shard = self.library.EdgeShard.load(str(directory), self.config(self.threads))

    def searcher(self, threads, effort, bucket):
        q = self.library
        if threads != self.threads:
            self.shard.close()
            self.threads = threads
            self.shard = q.EdgeShard.load(str(self.directory), self.config(threads))
        quantisation = q.QuantizationSearchParams(rescore=True, oversampling=2.0) if self.quantised else None
        options = q.SearchParams(hnsw_ef=effort, quantization=quantisation)
        only = None if bucket is None else q.Filter(must=[q.FieldCondition(key="bucket", match=q.MatchValue(bucket))])
        search = self.shard.search
        return lambda query: search(q.SearchRequest(q.Query.Nearest(query), K, filter=only, params=options))

    def query(self, vector):
        return vector.tolist()

    def ids(self, result):
        return [point.id for point in result]

    def add(self, row, vector):
        self.shard.update(self.points([(row, vector)]))

    def delete(self, row):
        self.shard.update(self.library.UpdateOperation.delete_points([row]))


class QdrantEdgeInt8(QdrantEdge):
    quantised = True


ENGINES = {
    "faiss-flat": FaissFlat,
    "faiss-flat-sharded": FaissSharded,
    "faiss-sq8": FaissSq8,
    "faiss-hnsw": FaissHnsw,
    "usearch-f32": Usearch,
    "usearch-i8": UsearchI8,
    "usearch-exact": UsearchExact,
    "usearch-exact-i8": UsearchExactI8,
    "sqlite-vec": SqliteVec,
    "sqlite-vec-int8": SqliteVecInt8,
    "qdrant-edge": QdrantEdge,
    "qdrant-edge-int8": QdrantEdgeInt8,
}
