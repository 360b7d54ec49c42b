"""Galleries of any size, generated like real embeddings, and what engines cost and find in them.

A gallery that outgrows a machine cannot be downloaded with a study, so it is generated. The class
means and covariances of real embeddings describe it: those of a run, or the stored ones of
CIFAR-10.
"""

import hashlib
import json
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from cbir import StudyError
from cbir.cache import Artifact, cached, create_array, write_text
from cbir.images.dataset import take_rows
from cbir.networks.embeddings import Embeddings, normalise
from cbir.retrieval import metrics, uncertainty
from cbir.retrieval.engines import BLOCK, EXACT, open_engine, resolved, versions

# The number of queries, and of those that are timed one by one after some to warm up.
QUERIES, TIMED, WARM_UP = 1000, 200, 10
# The depths of recall and of mAP.
RECALL_DEPTH, MAP_DEPTH = 10, 100
SEED = 0
# The numbers of principal components that embeddings are reduced to.
COMPONENTS = (128, 64)
# The number of principal components whose covariances a description keeps; of the others, it keeps
# the variances.
RANK = 64
# From `describe_embeddings` of ResNet-50, fine-tuned on CIFAR-10: 50,000 training and 10,000 test
# images in 256 dimensions. docs/benchmarks.md compares galleries generated from it with the real
# ones.
CIFAR10 = Path(__file__).with_name("cifar10.npz")
# What describes embeddings: arrays by name.
Description = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Sample:
    """A gallery and queries, real or generated.

    Attributes:
        artifact: the stored arrays.
        gallery, labels: (n, d) float32 of unit length, memory-mapped; (n,) int64 classes.
        queries, query_labels: (at most `QUERIES`, d) and (n_queries,), likewise.
    """

    artifact: Artifact
    gallery: np.ndarray
    labels: np.ndarray
    queries: np.ndarray
    query_labels: np.ndarray


@threadpool_limits.wrap(limits=1)  # sums depend on the number of threads
def describe_embeddings(embeddings: Embeddings) -> Description:
    """The classes and the spread of embeddings in a few numbers.

    Gallery and queries are described separately, since a network embeds the images that trained it
    nearer to one another.

    Returns:
        For "gallery" and "queries": <part>_classes and <part>_shares (c,), <part>_means (c, d),
        <part>_roots (c, r, r) of the covariances of the first r = `RANK` principal components, and
        <part>_deviations (c, d - r) of the others; float16 in the directions of the gallery's
        components.
    """
    dataset, description = embeddings.dataset, {}
    gallery = embeddings.gallery.astype(float)
    # Not centred: cosine similarities depend on the origin.
    axes = np.linalg.eigh(gallery.T @ gallery)[1][:, ::-1]
    parts = {
        "gallery": (gallery, dataset.gallery_labels),
        "queries": (embeddings.query, dataset.query_labels),
    }
    for part, (vectors, labels) in parts.items():
        classes, counts = np.unique(labels, return_counts=True)
        description[f"{part}_classes"] = classes
        description[f"{part}_shares"] = counts / counts.sum()
        means, roots, deviations = [], [], []
        for label in classes:
            of_class = vectors[labels == label] @ axes
            means.append(of_class.mean(axis=0))
            covariance = np.atleast_2d(np.cov(of_class[:, :RANK].T, bias=True))
            values, directions = np.linalg.eigh(covariance)
            root = directions * np.sqrt(np.maximum(values, 0))
            # A triangular root takes half of the space.
            roots.append(np.linalg.qr(root.T, mode="r").T)
            deviations.append(of_class[:, RANK:].std(axis=0))
        named = {"means": means, "roots": roots, "deviations": deviations}
        description |= {f"{part}_{name}": np.array(x, np.float16) for name, x in named.items()}
    return description


def stored_description() -> Description:
    """The description in `CIFAR10`."""
    with np.load(CIFAR10) as arrays:
        return dict(arrays)


def generate(description: Description, size: int) -> Sample:
    """Generate a gallery of any size; cached.

    Each class is a Gaussian with the mean and the covariance of the description. All vectors are
    rotated at random, as the dimensions of a network have no order, and get unit length. A larger
    gallery begins with the embeddings of a smaller one.

    Args:
        description: from `describe_embeddings` or `stored_description`.
        size: n.
    """
    dimensions = description["gallery_means"].shape[1]

    def make(folder: Path) -> None:
        labels = np.empty(size, np.int64)
        gallery = create_array(folder / "gallery.npy", np.float32, (size, dimensions))
        # Sums depend on the number of threads.
        with threadpool_limits(1):
            for block, start in enumerate(range(0, size, BLOCK)):
                vectors, classes = _draw(description, "gallery", BLOCK, [SEED, block])
                gallery[start : start + BLOCK] = vectors[: size - start]
                labels[start : start + BLOCK] = classes[: size - start]
            gallery.flush()
            queries, query_labels = _draw(description, "queries", QUERIES, [QUERIES])
        _save(folder, labels=labels, queries=queries, query_labels=query_labels)

    digest = hashlib.sha256()
    for name in sorted(description):
        digest.update(np.ascontiguousarray(description[name]))
    artifact = cached(
        "generated", make, parameters={"size": size}, reads=[digest.hexdigest()],
        package="retrieval",
    )  # fmt: skip
    return _open(artifact)


def draw_real(embeddings: Embeddings, size: int) -> Sample:
    """Draw a gallery of at most all gallery images, and queries, from real embeddings; cached."""
    dataset = embeddings.dataset

    def make(folder: Path) -> None:
        random = np.random.default_rng(SEED)
        rows = random.permutation(len(embeddings.gallery))[:size]
        query_rows = random.permutation(len(embeddings.query))[:QUERIES]
        _save(
            folder, gallery=embeddings.gallery[rows], labels=dataset.gallery_labels[rows],
            queries=embeddings.query[query_rows], query_labels=dataset.query_labels[query_rows],
        )  # fmt: skip

    artifact = cached(
        "drawn", make, parameters={"size": size}, package="retrieval",
        reads=[embeddings.artifact.key, dataset.search_fingerprint],
    )  # fmt: skip
    return _open(artifact)


def _save(folder: Path, **arrays: np.ndarray) -> None:
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


def _open(artifact: Artifact) -> Sample:
    names = ("gallery", "labels", "queries", "query_labels")
    return Sample(
        artifact, *(np.load(artifact.folder / f"{name}.npy", mmap_mode="r") for name in names)
    )


def _draw(
    description: Description, part: str, n: int, seed: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """(n, d) embeddings of the gallery or the queries, and their (n,) classes."""
    random = np.random.default_rng(seed)
    classes, shares, means, roots, deviations = (
        description[f"{part}_{name}"]
        for name in ("classes", "shares", "means", "roots", "deviations")
    )
    place, rank = random.choice(len(classes), n, p=shares), roots.shape[1]
    vectors = random.standard_normal((n, means.shape[1]), np.float32)
    for number, root in enumerate(roots.astype(np.float32)):
        rows = np.flatnonzero(place == number)
        spread = [vectors[rows, :rank] @ root.T, vectors[rows, rank:] * deviations[number]]
        vectors[rows] = np.hstack(spread) + means[number]
    normal = np.random.default_rng(SEED).standard_normal(means.shape[1:] * 2)
    return normalise(vectors @ np.linalg.qr(normal)[0].astype(np.float32)), classes[place]


def measure_engine(text: str, sample: Sample) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """Measure what an engine costs, and what it finds; cached.

    Args:
        text: as for `open_engine`. A relative folder of Milvus Lite is deleted at the end.
        sample: from `generate` or `draw_real`.

    Returns:
        Its costs: size; p50 and p99 (milliseconds of a single query for 10 results); throughput
        (queries per second, searched together for 10 results); build (seconds); bytes (per
        embedding); and peak_bytes (the most memory of this process so far). And the rows of the
        gallery that it returned: (n_queries, 10) of this search, and (n_queries, 100) of another
        one, since engines that are asked for more results look at more images.
    """

    def make(folder: Path) -> None:
        size, dimensions = sample.gallery.shape
        key, home = sample.artifact.key, folder / "engine"
        # With what an interrupted measurement has built, the rest would take less time.
        shutil.rmtree(home, ignore_errors=True)
        # A server may hold galleries of other sizes.
        name = f"scale-{key[:12]}"
        engine = open_engine(resolved(text, home), dimensions, name=name, key=key, folder=home)
        started = time.perf_counter()
        engine.load(sample.gallery, sample.labels, np.arange(size))
        build = time.perf_counter() - started
        milliseconds = []
        for query in sample.queries[: WARM_UP + TIMED]:
            started = time.perf_counter()
            engine.search(query[None], RECALL_DEPTH)
            milliseconds.append(1000 * (time.perf_counter() - started))
        p50, p99 = np.percentile(milliseconds[WARM_UP:], [50, 99])
        started = time.perf_counter()
        nearest, _ = engine.search(sample.queries, RECALL_DEPTH)
        throughput = len(nearest) / (time.perf_counter() - started)
        ranked, _ = engine.search(sample.queries, min(MAP_DEPTH, size))
        costs = {"size": size, "p50": p50, "p99": p99, "throughput": throughput}
        costs |= {"build": build, "bytes": engine.n_bytes() / size}
        engine.close()
        shutil.rmtree(home, ignore_errors=True)
        np.savez(folder / "rows.npz", nearest=nearest, ranked=ranked)
        write_text(folder / "costs.json", json.dumps(costs))

    artifact = cached(
        "engines", make, parameters={"engine": text}, package="retrieval",
        reads=[sample.artifact.key, *versions(text)],
    )  # fmt: skip
    costs = json.loads((artifact.folder / "costs.json").read_text("utf-8"))
    costs["peak_bytes"] = artifact.manifest["peak_memory_bytes"]
    with np.load(artifact.folder / "rows.npz") as rows:
        return costs, rows["nearest"], rows["ranked"]


def measure_engines(
    description: Description,
    sizes: list[int],
    engines: Mapping[str, int],
    real: Embeddings | None = None,
) -> tuple[pd.DataFrame, list[str]]:
    """Measure engines in galleries of several sizes.

    Args:
        description: of the generated embeddings.
        sizes: of the galleries.
        engines: the largest size at which each is measured, by text as for `open_engine`.
        real: real embeddings, which are used up to their number.

    Returns:
        A row per engine and size: engine, is_real, the costs of `measure_engine`, and the means
        over the queries of recall, mean_average_precision (of the first 100 results) and
        mean_average_precision_change (from `exact`, on the same queries), each with <name>_ci_low
        and <name>_ci_high; and "engine: reason" of those that could not be measured.
    """
    rows, missing = [], {}
    for size in sorted(sizes):
        is_real = real is not None and size <= len(real.gallery)
        sample = draw_real(real, size) if is_real else generate(description, size)
        _, nearest, ranked = measure_engine(EXACT, sample)
        exact_precision = _average_precision(ranked, sample)
        for engine, largest in engines.items():
            if size > largest or engine in missing:
                continue
            try:
                costs, returned_rows, ranked = measure_engine(engine, sample)
            except StudyError as error:
                missing[engine] = str(error)
                continue
            precision = _average_precision(ranked, sample)
            recalls = recall(returned_rows, nearest)
            scores = pd.DataFrame({"recall": recalls, "mean_average_precision": precision})
            change = precision - exact_precision
            change = pd.DataFrame({"mean_average_precision_change": change})
            means = [uncertainty.intervals(scores), uncertainty.intervals(change, limits=None)]
            row = {"engine": engine, "is_real": is_real, **costs}
            for name, mean in pd.concat(means).iterrows():
                row |= {name: mean["value"]}
                row |= {f"{name}_{end}": mean[end] for end in ("ci_low", "ci_high")}
            rows.append(row)
    return pd.DataFrame(rows), [f"{engine}: {reason}" for engine, reason in missing.items()]


def measure_engines_like(
    run, sizes: list[int], engines: Mapping[str, int]
) -> tuple[pd.DataFrame, list[str]]:
    """`measure_engines` in galleries like a run's embeddings; without one, the stored description.

    Args:
        run: a `Run`, whose embeddings form the galleries up to their number, or None.
    """
    if run is None:
        return measure_engines(stored_description(), sizes, engines)
    return measure_engines(describe_embeddings(run.embeddings), sizes, engines, run.embeddings)


def recall(rows: np.ndarray, nearest: np.ndarray) -> np.ndarray:
    """(n_queries,) shares of the nearest images that are among as many results.

    Args:
        rows, nearest: (n_queries, k), of an engine and of `exact`, as from `measure_engine`.
    """
    return (nearest[:, :, None] == rows[:, None]).any(axis=2).mean(axis=1)


def _average_precision(rows: np.ndarray, sample: Sample) -> np.ndarray:
    """(n_queries,) AP of these results, as `metrics.average_precision` with k."""
    is_hit = (rows >= 0) & (sample.labels[rows] == sample.query_labels[:, None])
    n_relevant = np.bincount(sample.labels, minlength=sample.query_labels.max() + 1)
    n_relevant = n_relevant[sample.query_labels]
    precisions = is_hit.cumsum(axis=1) / np.arange(1, rows.shape[1] + 1)
    best = np.maximum(1, np.minimum(n_relevant, rows.shape[1]))
    return np.where(is_hit, precisions, 0).sum(axis=1) / best


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
        parts = {"queries": embeddings.query - mean, "gallery": embeddings.gallery - mean}
        with threadpool_limits(1):
            axes = np.linalg.svd(train - mean, full_matrices=False)[2]
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
