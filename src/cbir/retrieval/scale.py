"""Galleries of any size, generated like real embeddings, and what engines cost and find in them.

A gallery that outgrows a machine cannot be had for a study, so it is generated: with the classes
and the spread of real embeddings, but without their outliers and near copies.
"""

import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.lib.format import open_memmap

from cbir.cache import Artifact, cached, write_text
from cbir.images.dataset import take_rows
from cbir.networks.embeddings import Embeddings, normalise
from cbir.retrieval import metrics
from cbir.retrieval.engines import BLOCK, open_engine

# The number of generated queries, and of those that are timed one by one after some to warm up.
QUERIES, TIMED, WARM_UP = 1000, 200, 10
# The depths of recall and of mAP.
RECALL_DEPTH, MAP_DEPTH = 10, 100
SEED = 0
# The numbers of principal components that embeddings are reduced to.
COMPONENTS = (128, 64)


@dataclass(frozen=True)
class Generated:
    """Generated embeddings with classes: a gallery, and queries of the same distribution.

    Attributes:
        artifact: the stored arrays.
        gallery, labels: (n, d) float32 of unit length, memory-mapped; (n,) int64 classes.
        queries, query_labels: (`QUERIES`, d) and (`QUERIES`,), likewise.
    """

    artifact: Artifact
    gallery: np.ndarray
    labels: np.ndarray
    queries: np.ndarray
    query_labels: np.ndarray


def generate(embeddings: Embeddings, size: int, dimensions: int) -> Generated:
    """Generate a gallery of any size with the classes and the spread of real embeddings; cached.

    Each class is a Gaussian with the mean and the covariance of its gallery images in the first
    principal components of all of them; then all vectors get unit length. A larger gallery begins
    with the embeddings of a smaller one.

    Args:
        embeddings: the real ones.
        size: n.
        dimensions: d, limited to that of the real ones.
    """
    dimensions = min(dimensions, embeddings.gallery.shape[1])

    def make(folder: Path) -> None:
        draw = _fit(embeddings, dimensions)
        shape, labels = (size, dimensions), np.empty(size, np.int64)
        gallery = open_memmap(folder / "gallery.npy", "w+", np.float32, shape)
        for block, start in enumerate(range(0, size, BLOCK)):
            vectors, classes = draw(np.random.default_rng([SEED, block]), BLOCK)
            gallery[start : start + BLOCK] = vectors[: size - start]
            labels[start : start + BLOCK] = classes[: size - start]
        gallery.flush()
        np.save(folder / "labels.npy", labels)
        for name, array in zip(
            ("queries", "query_labels"), draw(np.random.default_rng(QUERIES), QUERIES), strict=True
        ):
            np.save(folder / f"{name}.npy", array)

    artifact = cached(
        "generated", make, parameters={"size": size, "dimensions": dimensions},
        reads=[embeddings.artifact.key, embeddings.dataset.search_fingerprint],
        package="retrieval",
    )  # fmt: skip
    names = ("gallery", "labels", "queries", "query_labels")
    return Generated(
        artifact, *(np.load(artifact.folder / f"{name}.npy", mmap_mode="r") for name in names)
    )


def _fit(embeddings: Embeddings, dimensions: int) -> Callable:
    """A function (random generator, n) -> (n, d) embeddings and (n,) classes like real ones."""
    real, labels = embeddings.gallery.astype(float), embeddings.dataset.gallery_labels
    # Not centred: cosine similarities depend on the origin.
    axes = np.linalg.eigh(real.T @ real)[1][:, ::-1][:, :dimensions]
    classes, counts = np.unique(labels, return_counts=True)
    means, roots = [], []
    for label in classes:
        of_class = real[labels == label] @ axes
        values, vectors = np.linalg.eigh(np.cov(of_class.T, bias=True))
        means.append(of_class.mean(axis=0))
        roots.append((vectors * np.sqrt(np.maximum(values, 0))).T)

    def draw(random: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        place = random.choice(len(classes), n, p=counts / counts.sum())
        rows = random.standard_normal((n, dimensions))
        for number, (mean, root) in enumerate(zip(means, roots, strict=True)):
            rows[place == number] = mean + rows[place == number] @ root
        return normalise(rows), classes[place]

    return draw


def measure_engine(text: str, generated: Generated) -> tuple[dict[str, float], np.ndarray]:
    """Measure what an engine costs, and what it finds; cached.

    Args:
        text: as for `open_engine`.
        generated: from `generate`.

    Returns:
        Its costs: size; p50 and p99 (milliseconds of a single query for 10 results); throughput
        (queries per second, searched together for 100 results); build (seconds); bytes (per
        embedding); and map (mAP of the first 100 results). And (`QUERIES`, 100) rows of the gallery
        that it returned.
    """

    def make(folder: Path) -> None:
        size, dimensions = generated.gallery.shape
        key = generated.artifact.key
        engine = open_engine(text, dimensions, name="scale", key=key, folder=folder / "engine")
        started = time.perf_counter()
        engine.load(generated.gallery, generated.labels, np.arange(size))
        build = time.perf_counter() - started
        milliseconds = []
        for query in generated.queries[: WARM_UP + TIMED]:
            started = time.perf_counter()
            engine.search(query[None], RECALL_DEPTH)
            milliseconds.append(1000 * (time.perf_counter() - started))
        p50, p99 = np.percentile(milliseconds[WARM_UP:], [50, 99])
        started = time.perf_counter()
        rows, _ = engine.search(generated.queries, min(MAP_DEPTH, size))
        throughput = QUERIES / (time.perf_counter() - started)
        costs = {"size": size, "p50": p50, "p99": p99, "throughput": throughput}
        costs |= {"build": build, "bytes": engine.n_bytes() / size}
        engine.close()
        shutil.rmtree(folder / "engine", ignore_errors=True)
        np.save(folder / "rows.npy", rows)
        write_text(folder / "costs.json", json.dumps(costs))

    artifact = cached(
        "engines", make, parameters={"engine": text}, reads=[generated.artifact.key],
        package="retrieval",
    )  # fmt: skip
    rows = np.load(artifact.folder / "rows.npy")
    costs = json.loads((artifact.folder / "costs.json").read_text("utf-8"))
    costs["map"] = _mean_average_precision(rows, generated)
    return costs, rows


def recall(rows: np.ndarray, nearest: np.ndarray) -> float:
    """The share of the nearest images that are among as many results, on average over queries.

    Args:
        rows, nearest: (n_queries, k), of an engine and of `exact`, as from `measure_engine`.
    """
    pairs = zip(rows[:, :RECALL_DEPTH], nearest[:, :RECALL_DEPTH], strict=True)
    return float(np.mean([np.isin(right, found).mean() for found, right in pairs]))


def _mean_average_precision(rows: np.ndarray, generated: Generated) -> float:
    """mAP of these results, as `metrics.average_precision` with k."""
    is_hit = (rows >= 0) & (generated.labels[rows] == generated.query_labels[:, None])
    n_relevant = np.bincount(generated.labels)[generated.query_labels]
    precisions = is_hit.cumsum(axis=1) / np.arange(1, rows.shape[1] + 1)
    best = np.minimum(n_relevant, rows.shape[1])
    return float((np.where(is_hit, precisions, 0).sum(axis=1) / best).mean())


def measure_reductions(embeddings: Embeddings) -> pd.DataFrame:
    """Average precision with smaller embeddings, on the real images; cached.

    The principal components and the mean are those of the training images. A code has one bit for
    each dimension: whether the embedding is above the mean there.

    Returns:
        One row per query and reduction: query (its position among all images), reduction (`PCA 64`,
        `sign bits`), average_precision, average_precision_without (of the full embeddings) and
        bytes (per image).
    """
    dataset = embeddings.dataset

    def make(folder: Path) -> None:
        train = take_rows(embeddings.vectors, dataset.train).astype(float)
        mean = train.mean(axis=0)
        axes = np.linalg.svd(train - mean, full_matrices=False)[2]
        parts = {"queries": embeddings.query - mean, "gallery": embeddings.gallery - mean}
        reduced = {
            f"PCA {n}": ([normalise(part @ axes[:n].T) for part in parts.values()], 4 * n)
            for n in COMPONENTS
            if n < len(axes)
        }
        codes = [np.where(part > 0, 1, -1).astype(np.float32) for part in parts.values()]
        reduced["sign bits"] = codes, math.ceil(len(mean) / 8)
        without = score(embeddings.query, embeddings.gallery)
        frames = [
            pd.DataFrame({
                "query": dataset.queries, "reduction": name,
                "average_precision": score(*vectors), "average_precision_without": without,
                "bytes": n_bytes,
            })
            for name, (vectors, n_bytes) in reduced.items()
        ]  # fmt: skip
        pd.concat(frames).to_parquet(folder / "per_query.parquet", index=False)

    def score(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
        scores = metrics.evaluate_retrieval(
            queries, dataset.query_labels, gallery, dataset.gallery_labels,
            ks=(1,), exclude=dataset.exclude,
        )  # fmt: skip
        return scores["average_precision"].to_numpy()

    artifact = cached(
        "reductions", make, parameters={},
        reads=[embeddings.artifact.key, dataset.search_fingerprint, dataset.split_fingerprint],
        package="retrieval",
    )  # fmt: skip
    return pd.read_parquet(artifact.folder / "per_query.parquet")
