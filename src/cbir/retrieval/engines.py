"""Engines that hold a gallery's embeddings and find the nearest ones: exact, faiss and Milvus.

An engine is chosen by one text, and all engines have the same interface:

    exact                           computes every similarity; ties keep the gallery's order
    faiss:HNSW32;efSearch=128       a faiss factory string, and faiss' own search parameters
    milvus:./folder                 Milvus Lite, in a folder
    milvus:http://host:19530        a Milvus server; MILVUS_TOKEN holds the token, if it needs one
    milvus:http://host:19530;HNSW   the same with a type of index of Milvus, instead of FLAT

Loading can be repeated. An engine keeps what it already holds, adds what is new and removes what
the gallery no longer has, so an interruption loses at most one block and stores nothing twice.

faiss and Milvus are optional extras, imported only if they are chosen.
"""

import contextlib
import importlib.metadata
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from cbir import StudyError
from cbir.files import disk_errors, locked, replacing
from cbir.progress import Ticker
from cbir.retrieval import ranking

EXACT = "exact"
# For each kind of engine, the module to import, and another package that may provide it.
PACKAGES = {"faiss": ("faiss", "faiss-cpu"), "milvus": ("pymilvus", "milvus-lite")}
# The number of embeddings that are added at a time, and between two versions of a faiss index on
# disk, each of which takes a second or more to write.
BLOCK, BLOCKS_PER_FILE = 10_000, 25
# faiss is trained on a random sample of this size: it uses at most 256 embeddings per centroid.
MOST_TRAINING, SEED = 262_144, 0
# The largest number of results of a Milvus server. Milvus Lite has no such limit.
MOST_RESULTS = 16_384
# The seconds after which a request to a server fails; until then, pymilvus repeats it if the server
# does not answer.
PATIENCE = 60


class GalleryEngine(Protocol):
    """A gallery's embeddings, which can be searched."""

    def load(self, embeddings: np.ndarray, labels: np.ndarray, ids: np.ndarray) -> None:
        """Make the engine hold exactly these embeddings, with progress output.

        Args:
            embeddings: (n, d) float32 of unit length; may be memory-mapped.
            labels: (n,) int, the classes.
            ids: (n,) int64, unique; an id always stands for the same embedding.

        Raises:
            StudyError: the disk is full, or a server fails.
        """

    def search(
        self, queries: np.ndarray, k: int, restrict_to: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the k nearest images of each query, among those that were loaded.

        Args:
            queries: (n_queries, d) float32 of unit length.
            k: number of results, 1 or greater, limited to the size of the gallery.
            restrict_to: (n_queries, n_classes) bool, the classes that each query may return; all
                by default.

        Returns:
            (n_queries, k) int64 rows of the loaded arrays, nearest first, and their float32 cosine
            similarities; -1 and NaN where the engine found fewer.

        Raises:
            StudyError: k is more than a server can return, or the server fails.
        """

    def n_bytes(self) -> int:
        """The size of its gallery in bytes, in memory or on disk."""

    def close(self) -> None:
        """Release files and connections."""


def resolved(text: str, base: Path = Path()) -> str:
    """The text of an engine with an absolute path, valid in any working folder.

    Relative paths start in the folder `base`.
    """
    kind, _, place = text.partition(":")
    is_folder = kind == "milvus" and place and "://" not in place
    return f"milvus:{(base / Path(place).expanduser()).resolve()}" if is_folder else text


def open_engine(text: str, dimensions: int, *, name: str, key: str, folder: Path) -> GalleryEngine:
    """Open an engine.

    Args:
        text: as in the module's description, `resolved`.
        dimensions: d.
        name: the gallery's name.
        key: fingerprint of the network; embeddings of two networks are never mixed.
        folder: for the files of faiss.

    Raises:
        StudyError: the text is not understood, a package is missing, a server does not answer, or
            the engine holds this gallery embedded by another network.
    """
    check_engine(text)
    kind, _, choice = text.partition(":")
    if kind == "faiss":
        return Faiss(choice, dimensions, folder / f"{name}-{key[:12]}.faiss")
    return Milvus(choice, dimensions, name, key) if kind == "milvus" else Exact()


def check_engine(text: str) -> None:
    """StudyError, before any work starts, if an engine is unknown or its package is missing."""
    kind, _, choice = text.partition(":")
    if text == EXACT:
        return
    if kind not in PACKAGES or not choice:
        raise StudyError(
            f"engine: {text!r} is unknown: use exact, faiss:HNSW32 (any faiss factory string), "
            "milvus:./folder or milvus:http://host:19530"
        )
    try:
        importlib.import_module(PACKAGES[kind][0])
    except ImportError:
        raise StudyError(
            f"engine: {PACKAGES[kind][0]} is not installed: run `make scale` first, or use exact"
        ) from None


def versions(text: str) -> list[str]:
    """The packages of an engine that are installed, with their versions."""
    installed = []
    for package in PACKAGES.get(text.partition(":")[0], ()):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed.append(f"{package} {importlib.metadata.version(package)}")
    return installed


class Exact:
    """Computes every similarity (`ranking.search`)."""

    def load(self, embeddings: np.ndarray, labels: np.ndarray, ids: np.ndarray) -> None:
        self._labels = labels
        self._gallery = ranking.prepare(embeddings)

    def search(
        self, queries: np.ndarray, k: int, restrict_to: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        return ranking.search(
            queries, self._gallery, k, gallery_labels=self._labels, restrict_to=restrict_to
        )

    def n_bytes(self) -> int:
        return self._gallery.rows.nbytes + self._gallery.centred.nbytes

    def close(self) -> None:
        del self._gallery


class Faiss:
    """An index of faiss in a file. Distances are squared and Euclidean, as some have no others.

    Args:
        choice: a factory string; after a semicolon, parameters for faiss' `ParameterSpace`.
        dimensions: d.
        path: the file of the index.

    Raises:
        StudyError: faiss does not accept `choice`.
    """

    def __init__(self, choice: str, dimensions: int, path: Path):
        import faiss

        self._faiss, self._path = faiss, path
        factory, _, self._parameters = choice.partition(";")
        self._factory = factory
        try:
            self._index = faiss.index_factory(dimensions, factory, faiss.METRIC_L2)
            self._set_parameters()
        except RuntimeError as error:
            raise StudyError(
                f"engine: faiss does not accept {choice!r} ({_reason(error)}): use faiss:HNSW32 or "
                "another factory string"
            ) from None

    def load(self, embeddings: np.ndarray, labels: np.ndarray, ids: np.ndarray) -> None:
        self._labels = np.asarray(labels)
        if np.array_equal(self._read(), ids):
            return
        with disk_errors(self._path), locked(self._path):
            # Another process may have written the file meanwhile.
            self._build(self._read(), embeddings, ids)

    def _build(self, stored_ids: np.ndarray, embeddings: np.ndarray, ids: np.ndarray) -> None:
        """Add the embeddings that are missing to an index that holds these ids."""
        # An index only grows. If the gallery lost an image, it is built again.
        n_stored = len(stored_ids)
        if self._index.ntotal != n_stored or not np.array_equal(stored_ids, ids[:n_stored]):
            self._index.reset()
            n_stored = 0
        if not self._index.is_trained:
            rows = np.random.default_rng(SEED).permutation(len(embeddings))[:MOST_TRAINING]
            try:
                self._index.train(np.ascontiguousarray(embeddings[np.sort(rows)], np.float32))
            except RuntimeError as error:
                raise StudyError(
                    f"engine: faiss:{self._factory} cannot be built from {len(embeddings):,} "
                    f"embeddings ({_reason(error)}): use faiss:HNSW32, faiss:Flat or exact"
                ) from None
        ticker = Ticker(len(ids), "embeddings")
        for block, start in enumerate(range(n_stored, len(ids), BLOCK), start=1):
            end = min(start + BLOCK, len(ids))
            self._index.add(np.ascontiguousarray(embeddings[start:end], np.float32))
            if block % BLOCKS_PER_FILE == 0 or end == len(ids):
                self._write(ids[:end])
            ticker.reached(end)

    def search(
        self, queries: np.ndarray, k: int, restrict_to: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        rows = np.full((len(queries), k), -1)
        distances = np.full((len(queries), k), np.nan, np.float32)
        for of_group, classes in _groups(len(queries), restrict_to):
            selector = None
            if classes is not None:
                is_searched = np.packbits(np.isin(self._labels, classes), bitorder="little")
                selector = self._faiss.IDSelectorBitmap(is_searched)
            vectors = np.ascontiguousarray(queries[of_group], np.float32)
            parameters = self._search_parameters(self._index, selector)
            try:
                neighbours = self._index.search(vectors, k, params=parameters)
            except RuntimeError:
                if selector is None:
                    raise
                raise StudyError(
                    f"engine: faiss:{self._factory} cannot search within classes: use "
                    "faiss:HNSW32, faiss:Flat or exact"
                ) from None
            distances[of_group], rows[of_group] = neighbours
        # Of unit vectors: the squared distance is 2 - 2 * similarity.
        return rows, np.where(rows < 0, np.float32(np.nan), 1 - distances / 2)

    def n_bytes(self) -> int:
        return self._path.stat().st_size

    def close(self) -> None:
        del self._index

    def _search_parameters(self, index, selector):
        """The index's parameters for a search of selected images; None for all images."""
        if selector is None:
            return None
        faiss, index = self._faiss, self._faiss.downcast_index(index)
        if isinstance(index, faiss.IndexPreTransform):
            parameters = self._search_parameters(index.index, selector)
            return faiss.SearchParametersPreTransform(index_params=parameters)
        if isinstance(index, faiss.IndexRefine):
            parameters = self._search_parameters(index.base_index, selector)
            return faiss.IndexRefineSearchParameters(
                k_factor=index.k_factor, base_index_params=parameters
            )
        if isinstance(index, faiss.IndexIVF):
            return faiss.SearchParametersIVF(sel=selector, nprobe=index.nprobe)
        if isinstance(index, faiss.IndexHNSW):
            return faiss.SearchParametersHNSW(sel=selector, efSearch=index.hnsw.efSearch)
        return faiss.SearchParameters(sel=selector)

    def _set_parameters(self) -> None:
        if self._parameters:
            space = self._faiss.ParameterSpace()
            space.set_index_parameters(self._index, self._parameters)

    def _read(self) -> np.ndarray:
        """The ids of the file, whose index is opened; none if there is no file for this choice."""
        try:
            with np.load(self._path, allow_pickle=False) as file:
                if str(file["factory"]) == self._factory:
                    self._index = self._faiss.deserialize_index(file["index"])
                    self._set_parameters()
                    return file["ids"]
        except Exception:  # Libraries raise many kinds for a damaged file.
            pass  # The index is built again.
        return np.empty(0, np.int64)

    def _write(self, ids: np.ndarray) -> None:
        """Write the index with its ids, as one file under a temporary name, moved into place."""
        index = self._faiss.serialize_index(self._index)
        with replacing(self._path) as temporary, temporary.open("wb") as file:
            np.savez(file, factory=self._factory, ids=ids, index=index)


class Milvus:
    """A collection of Milvus, in a folder (Milvus Lite) or on a server.

    The name of the collection ends in the fingerprint of the network, so that embeddings of
    different networks never mix. Milvus ranks by inner product, with its index FLAT, which finds
    the same images as `Exact`, unless another one is chosen.

    Args:
        choice: the path of a folder, or the URI of a server, `http://host:port`; after a semicolon,
            the type of the index.
        dimensions, name, key: as for `open_engine`.

    Raises:
        StudyError: as `open_engine`.
    """

    def __init__(self, choice: str, dimensions: int, name: str, key: str):
        import grpc
        import pymilvus

        where, _, index_type = choice.partition(";")
        self._where = where
        self._errors = (pymilvus.MilvusException, grpc.RpcError)
        self._is_server = "://" in where
        # A message to a server holds 64 MB at most.
        self._block = max(1, min(BLOCK, 2**24 // (dimensions * 4)))
        token = os.environ.get("MILVUS_TOKEN", "")
        if self._is_server:
            self._uri = where
        else:
            # pymilvus recognises a folder of Milvus Lite by this ending.
            self._uri = where.removesuffix(".db") + ".db"
            # One process at a time can use it.
            self._lock = contextlib.ExitStack()
            self._lock.enter_context(locked(Path(self._uri)))
            # Milvus Lite has no time stamps, and both sides log that each time.
            logging.getLogger("grpc._server").setLevel(logging.CRITICAL)
            logging.getLogger("pymilvus").setLevel(logging.ERROR)
        self._client = self._request(pymilvus.MilvusClient, self._uri, token=token)
        self._collection = f"{_identifier(name)}_{key[:12]}"
        others = [
            other for other in self._request(self._client.list_collections)
            if other.rpartition("_")[0] == _identifier(name) and other != self._collection
        ]  # fmt: skip
        if others:
            raise StudyError(
                f"{where} holds the gallery {name!r} embedded by another network: choose another "
                f"name for the gallery, or drop the collection {others[0]}"
            )
        index = self._client.prepare_index_params()
        index.add_index("vector", index_type=index_type or "FLAT", metric_type="IP")
        self._open(pymilvus, dimensions, index)

    def load(self, embeddings: np.ndarray, labels: np.ndarray, ids: np.ndarray) -> None:
        self._order = np.argsort(ids)
        self._ids = ids[self._order]
        stored_ids = self._stored_ids()
        removed_ids = np.setdiff1d(stored_ids, ids)
        for start in range(0, len(removed_ids), BLOCK):
            block = removed_ids[start : start + BLOCK].tolist()
            self._request(self._client.delete, self._collection, ids=block)
        missing = np.flatnonzero(~np.isin(ids, stored_ids))
        ticker = Ticker(len(missing), "embeddings")
        for start in range(0, len(missing), self._block):
            rows = missing[start : start + self._block]
            data = [
                {"id": int(ids[row]), "label": int(labels[row]), "vector": vector}
                for row, vector in zip(rows, np.asarray(embeddings[rows], np.float32), strict=True)
            ]
            self._request(self._client.upsert, self._collection, data)
            ticker.reached(start + len(rows))

    def search(
        self, queries: np.ndarray, k: int, restrict_to: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        if self._is_server and k > MOST_RESULTS:
            raise StudyError(
                f"engine: a Milvus server returns at most {MOST_RESULTS:,} results, not {k:,}: "
                "lower k, or use exact"
            )
        rows = np.full((len(queries), k), -1)
        similarities = np.full((len(queries), k), np.nan, np.float32)
        for of_group, classes in _groups(len(queries), restrict_to):
            condition = "" if classes is None else f"label in {classes.tolist()}"
            answers = self._request(
                self._client.search, self._collection,
                list(np.asarray(queries[of_group], np.float32)), filter=condition, limit=k,
                consistency_level="Strong",
            )  # fmt: skip
            for query, hits in zip(of_group, answers, strict=True):
                result_ids = np.array([hit["id"] for hit in hits], np.int64)
                places = np.searchsorted(self._ids, result_ids)
                rows[query, : len(hits)] = self._order[places]
                similarities[query, : len(hits)] = [hit["distance"] for hit in hits]
        return rows, similarities

    def n_bytes(self) -> int:
        files = Path(self._uri).rglob("*")
        return 0 if self._is_server else sum(f.stat().st_size for f in files if f.is_file())

    def close(self) -> None:
        self._client.close()
        if not self._is_server:
            from milvus_lite.server_manager import server_manager_instance

            server_manager_instance.release_server(self._uri)
            self._lock.close()

    def _open(self, pymilvus, dimensions: int, index) -> None:
        """Open the collection with this index; create what is missing."""
        (requested_index,) = index
        if not self._request(self._client.has_collection, self._collection):
            schema = pymilvus.MilvusClient.create_schema(auto_id=False)
            schema.add_field("id", pymilvus.DataType.INT64, is_primary=True)
            schema.add_field("label", pymilvus.DataType.INT64)
            schema.add_field("vector", pymilvus.DataType.FLOAT_VECTOR, dim=dimensions)
            create = self._client.create_collection
            self._request(create, self._collection, schema=schema, index_params=index)
        stored_index = self._request(self._client.describe_index, self._collection, "vector") or {}
        if stored_index.get("index_type") != requested_index.index_type:
            self._request(self._client.release_collection, self._collection)
            if stored_index:
                self._request(self._client.drop_index, self._collection, "vector")
            self._request(self._client.create_index, self._collection, index)
        self._request(self._client.load_collection, self._collection)

    def _stored_ids(self) -> np.ndarray:
        """The ids in the collection."""

        def read_all(timeout: int) -> list[int]:
            pages = self._client.query_iterator(
                self._collection, batch_size=BLOCK, filter="", output_fields=["id"],
                consistency_level="Strong", timeout=timeout,
            )  # fmt: skip
            ids = []
            while rows := pages.next():
                ids += [row["id"] for row in rows]
            pages.close()
            return ids

        return np.array(self._request(read_all), np.int64)

    def _request(self, request, *arguments, **named):
        """The answer to a request of pymilvus; StudyError if it failed or outlasted `PATIENCE`."""
        try:
            return request(*arguments, timeout=PATIENCE, **named)
        except self._errors as error:
            message = error.message if hasattr(error, "message") else error.details()
            reason = " ".join(str(message).split())[:200]
        remedy = "check the folder"
        if self._is_server:
            remedy = "start the server, or check its address, its version and MILVUS_TOKEN"
        raise StudyError(
            f"Milvus at {self._where} failed: {reason}: {remedy}; its contents are kept"
        )


def _reason(error: RuntimeError) -> str:
    """The message of an error of faiss, without the location in its code."""
    return str(error).rpartition("Error: ")[2]


def _groups(
    n_queries: int, restrict_to: np.ndarray | None
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Queries that search the same classes, and these classes; None for all."""
    if restrict_to is None:
        yield np.arange(n_queries), None
        return
    patterns, group = np.unique(restrict_to, axis=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        yield np.flatnonzero(group == number), np.flatnonzero(pattern)


def _identifier(name: str) -> str:
    """A name for Milvus: letters, digits and underscores, beginning with a letter."""
    return "g_" + "".join(letter if letter.isascii() and letter.isalnum() else f"_{ord(letter):x}_"
                          for letter in name)  # fmt: skip
