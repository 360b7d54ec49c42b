"""Speed of metrics of full rankings, compared with other libraries.

`make bench` runs it: 10,000 queries, a gallery of 50,000, 512 dimensions, 10 classes. Every
repetition times each method once, one after the other, so that other load of the machine affects
all of them. Slow methods take some of the queries, and their seconds are scaled to all. PML is
PyTorch Metric Learning's AccuracyCalculator, once on full rankings and once at its fastest, which
finds the first R results and ranks no others. Exact searches for the first 10 results are compared
among themselves.
"""

import argparse
import gc
import importlib.metadata
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from cbir.retrieval import metrics, ranking

CLASSES = 10
BLOCK = 256
OURS, PRODUCT, TOP = "cbir", "matrix product", "cbir, first 10"
FASTER, SLOWER, MEMORY = 5, 3, 1000


class Data(NamedTuple):
    """Queries and gallery: float32 embeddings of unit length, and int64 class ids."""

    query: np.ndarray
    query_labels: np.ndarray
    gallery: np.ndarray
    gallery_labels: np.ndarray

    def first(self, n: int) -> "Data":
        """The same gallery with only the first n queries."""
        return self._replace(query=self.query[:n], query_labels=self.query_labels[:n])


def make_data(n_queries: int, n_gallery: int, dimensions: int, seed: int = 0) -> Data:
    """Embeddings distributed like those of a trained classifier after its last ReLU.

    Each class has a direction. An image shows its class more or less clearly, and a part of
    another class with it; noise is added, negative values become 0, rows get length 1. So some
    images are close to their class and some between two, as in a network of medium accuracy.
    """
    random = np.random.default_rng(seed)
    directions = random.normal(size=(CLASSES, dimensions)).astype(np.float32)

    def embed(n: int) -> tuple[np.ndarray, np.ndarray]:
        labels, others = random.integers(0, CLASSES, (2, n))
        clear = random.beta(3, 1.3, (n, 1)).astype(np.float32)
        vectors = clear * directions[labels] + (1 - clear) * directions[others]
        vectors += 0.5 * random.standard_normal(vectors.shape, np.float32)
        np.maximum(vectors, 0, out=vectors)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), labels

    return Data(*embed(n_queries), *embed(n_gallery))


def matrix_product(data: Data) -> None:
    """The bare float32 product, block by block into the same memory, which is discarded."""
    similarity = np.empty((BLOCK, len(data.gallery)), np.float32)
    for start in range(0, len(data.query), BLOCK):
        block = data.query[start : start + BLOCK]
        np.matmul(block, data.gallery.T, out=similarity[: len(block)])


def cbir(data: Data) -> pd.DataFrame:
    return metrics.evaluate_retrieval(*data)


def scikit_learn(data: Data) -> float:
    from sklearn.metrics import average_precision_score

    similarity = data.query @ data.gallery.T
    relevant = data.query_labels[:, None] == data.gallery_labels
    return float(np.mean([*map(average_precision_score, relevant, similarity)]))


def torchmetrics(data: Data) -> float:
    import torch
    from torchmetrics.functional.retrieval import retrieval_average_precision

    query, labels, gallery, gallery_labels = map(torch.from_numpy, data)
    similarity = query @ gallery.T
    relevant = labels[:, None] == gallery_labels
    return float(np.mean([*map(retrieval_average_precision, similarity, relevant)]))


def metric_learning(data: Data, name="mean_average_precision", k: int | str | None = None) -> float:
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import CustomKNN

    # As fast as its default search with FAISS, which needs one more library.
    nearest = CustomKNN(CosineSimilarity(), batch_size=BLOCK)
    calculator = AccuracyCalculator((name,), k=k or len(data.gallery), knn_func=nearest)
    query, labels, gallery, gallery_labels = data
    return calculator.get_accuracy(query, labels, gallery, gallery_labels)[name]


def metric_learning_at_r(data: Data) -> float:
    return metric_learning(data, "mean_average_precision_at_r", "max_bin_count")


def first_10(data: Data) -> np.ndarray:
    """(n, 10) the similarities of the first results, like the two functions below."""
    return ranking.search(data.query, data.gallery, 10)[1]


def faiss(data: Data) -> np.ndarray:
    import faiss

    index = faiss.IndexFlatIP(data.gallery.shape[1])
    index.add(data.gallery)
    return index.search(data.query, 10)[0]


def usearch(data: Data) -> np.ndarray:
    from usearch.index import MetricKind, search

    return 1 - search(data.gallery, data.query, 10, MetricKind.IP, exact=True).distances


class Method(NamedTuple):
    run: Callable[[Data], object]
    computes: str
    package: str
    agrees_on: str | None = None  # The column of ours whose mean it returns.


METHODS = {
    PRODUCT: Method(matrix_product, "similarities, which are discarded", "numpy"),
    OURS: Method(cbir, "all 30 columns, full rankings", "numba"),
    "scikit-learn": Method(scikit_learn, "AP, full rankings", "scikit-learn", "average_precision"),
    "torchmetrics": Method(torchmetrics, "AP, full rankings", "torchmetrics", "average_precision"),
    "PML": Method(
        metric_learning, "AP, full rankings", "pytorch-metric-learning", "average_precision"
    ),
    "PML at R": Method(
        metric_learning_at_r,
        "AP at R, first R results only",
        "pytorch-metric-learning",
        "average_precision_at_r",
    ),
    TOP: Method(first_10, "first 10 results", "numba"),
    "faiss": Method(faiss, "first 10 results", "faiss-cpu"),
    "usearch": Method(usearch, "first 10 results", "usearch"),
}
OTHERS = [name for name, method in METHODS.items() if method.agrees_on]
SEARCHES = ["faiss", "usearch"]


def timed_queries(name: str, data: Data, sample: int) -> Data:
    """The queries that a method is timed with."""
    return data.first(sample) if name in OTHERS else data


def assert_agreement(data: Data) -> None:
    """All methods find the same means and results; rounding swaps a few neighbours of 50,000."""
    ours = cbir(data).mean()
    for name in OTHERS:
        method = METHODS[name]
        theirs, expected = method.run(data), ours[method.agrees_on]
        assert abs(theirs - expected) < 1e-5, (name, theirs, expected)
        print(f"  {name}: {method.agrees_on} {theirs:.7f}, ours {expected:.7f}")
    similarities = first_10(data)
    for name in SEARCHES:
        np.testing.assert_allclose(METHODS[name].run(data), similarities, atol=1e-5)


def time_all(data: Data, sample: int, repeat: int) -> pd.DataFrame:
    """Seconds for all queries, one row per repetition and one column per method."""
    rows = []
    for number in range(1, repeat + 1):
        row = {}
        for name, method in METHODS.items():
            timed_data = timed_queries(name, data, sample)
            gc.collect()
            started = time.perf_counter()
            method.run(timed_data)
            seconds = time.perf_counter() - started
            row[name] = seconds * len(data.query) / len(timed_data.query)
        rows.append(row)
        print(f"  repetition {number} of {repeat}", flush=True)
    return pd.DataFrame(rows)


def peak_megabytes(name: str, folder: Path, sample: int) -> float:
    """Peak memory of a method in MB above libraries and inputs, in a separate process."""
    command = [sys.executable, __file__, "--peak", name, "--inputs", folder]
    process = subprocess.run(
        [*command, "--sample", str(sample)], capture_output=True, text=True, check=True
    )
    return float(process.stdout.split()[-1])


def print_peak(name: str, folder: Path, sample: int) -> None:
    """Run a method once and print its peak; `peak_megabytes` starts this."""
    data = Data(*(np.load(folder / f"{field}.npy") for field in Data._fields))
    method = METHODS[name]
    # Libraries are loaded and compiled, and the BLAS library takes its buffers.
    method.run(
        data.first(8)._replace(gallery=data.gallery[:999], gallery_labels=data.gallery_labels[:999])
    )
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # Reset the peak.
    before = resident("VmRSS")
    method.run(timed_queries(name, data, sample))
    print(resident("VmHWM") - before)


def resident(field: str) -> float:
    """Memory of this process in MB, in a field of Linux's status file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return int(kilobytes) * 1024 / 1e6


def all_peaks(data: Data, sample: int) -> pd.Series:
    """Peak of each method; NaN where the system is not Linux."""
    if not Path("/proc/self/clear_refs").exists():
        return pd.Series(np.nan, METHODS)
    with tempfile.TemporaryDirectory() as folder:
        for field, array in data._asdict().items():
            np.save(Path(folder) / f"{field}.npy", array)
        return pd.Series({name: peak_megabytes(name, Path(folder), sample) for name in METHODS})


def tabulate(seconds: pd.DataFrame, peaks: pd.Series, data: Data, sample: int) -> pd.DataFrame:
    """One row per method. Ratios are medians of those within each repetition.

    Searches are compared with our search, all other methods with our metrics.
    """
    ours = seconds[[TOP if name in [TOP, *SEARCHES] else OURS for name in METHODS]]
    return pd.DataFrame(
        {
            "computes": {name: method.computes for name, method in METHODS.items()},
            "queries timed": {
                name: len(timed_queries(name, data, sample).query) for name in METHODS
            },
            "seconds": seconds.median().round(2),
            "least": seconds.min().round(2),
            "most": seconds.max().round(2),
            "x product": seconds.div(seconds[PRODUCT], axis=0).median().round(2),
            "x cbir": (seconds[[*METHODS]] / ours.to_numpy()).median().round(2),
            "peak MB": peaks.round().astype("Int64"),
        }
    ).loc[list(METHODS)]


def print_goals(table: pd.DataFrame) -> None:
    """Print each goal, and whether the numbers of the table reach it."""
    goals = {
        f"{FASTER} times faster than {name}: {ratio:.1f} times": ratio >= FASTER
        for name, ratio in table.loc[OTHERS, "x cbir"].items()
    }
    product, peak = table.loc[OURS, "x product"], table.loc[OURS, "peak MB"]
    goals[f"{SLOWER} times the matrix product at most: {product:.2f} times"] = product <= SLOWER
    if not pd.isna(peak):
        goals[f"{MEMORY} MB above the inputs at most: {peak} MB"] = peak <= MEMORY
    for goal, reached in goals.items():
        print("  reached:    " if reached else "  not reached:", goal)
    beyond = table.loc[OTHERS, "x product"] < FASTER
    for name in beyond.index[beyond]:
        print(f"  {name} takes less than {FASTER} matrix products, which all methods begin with.")


def machine() -> str:
    information = Path("/proc/cpuinfo")
    model = platform.processor() or platform.machine()
    if information.exists():
        lines = information.read_text().splitlines()
        model = next(
            (line.split(": ")[1] for line in lines if line.startswith("model name")), model
        )
    return (
        f"{model}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    )


def versions() -> str:
    names = ["torch", *dict.fromkeys(method.package for method in METHODS.values())]
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in sorted(names))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--gallery", type=int, default=50_000)
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--sample", type=int, default=500, help="queries for the slow methods")
    parser.add_argument("--peak", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--inputs", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print_peak(arguments.peak, arguments.inputs, arguments.sample)
        return
    print(machine())
    print(versions())
    data = make_data(arguments.queries, arguments.gallery, arguments.dimensions)
    sizes = f"{len(data.query):,} queries, {len(data.gallery):,} images"
    print(f"{sizes}, {arguments.dimensions} dimensions")
    n_checked = min(arguments.sample, arguments.queries)
    print(f"the same metrics from all methods, of {n_checked} queries:")
    assert_agreement(data.first(arguments.sample))
    print("timing, every method in turn:")
    seconds = time_all(data, arguments.sample, arguments.repeat)
    table = tabulate(seconds, all_peaks(data, arguments.sample), data, arguments.sample)
    print(f"\nseconds for all queries, medians of {arguments.repeat} repetitions:\n")
    print(table.to_string(), "\n\ngoals:")
    print_goals(table)


if __name__ == "__main__":
    main()
