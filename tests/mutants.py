"""Seeds mistakes one at a time, and checks that the quick tests notice each (`make mutants`).

A row of `MUTANTS` is a file in src/cbir/, a text in it that occurs once, the mistake in its place,
and the file of tests that must fail. Every mistake would give wrong numbers without an error.
Arguments are parts of rows: `tests/mutants.py ranking` tries the mistakes in ranking.py.
"""

import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

# Each process of tests is a fork, so that what is imported here is imported once.
import hypothesis  # noqa: F401
import matplotlib.pyplot as plt  # noqa: F401
import numba  # noqa: F401
import pandas as pd  # noqa: F401
import pyarrow.parquet  # noqa: F401
import pytest
import scipy.stats  # noqa: F401
import seaborn as sns  # noqa: F401
import sklearn.decomposition  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent
FORK, CORES = multiprocessing.get_context("fork"), min(2, os.cpu_count() or 1)
QUICK = "not browser and not slow and not faults"


class Mutant(NamedTuple):
    """A mistake: `new` instead of `old` in a file, noticed by a file of tests."""

    file: str
    old: str
    new: str
    tests: str


# fmt: off
MUTANTS = [Mutant(*row) for row in [
    # Metrics.
    ("retrieval/metrics.py", "ranks[:, :k] <= k", "ranks[:, :k] < k", "metrics"),
    ("retrieval/metrics.py", "_hits(ranks, k) / k", "_hits(ranks, k) / (k + 1)", "metrics"),
    ("retrieval/metrics.py", "_divide(_hits(ranks, k), n_relevant(ranks))",
     "_divide(_hits(ranks, k), np.minimum(n_relevant(ranks), k))", "metrics"),
    ("retrieval/metrics.py", "    ranks = ranks[:, :k]\n    return _divide(_precisions",
     "    return _divide(_precisions", "metrics"),
    ("retrieval/metrics.py", "ranks <= relevant[:, None]", "ranks < relevant[:, None]", "metrics"),
    ("retrieval/metrics.py", "_up_to(ranks, k).astype(np.float64) + 1",
     "_up_to(ranks, k).astype(np.float64) + 2", "metrics"),
    ("retrieval/metrics.py", "1 / ranks[:, 0]", "1 / ranks[:, -1]", "metrics"),
    ("retrieval/metrics.py", "np.arange(1, ranks.shape[1] + 1, dtype",
     "np.arange(0, ranks.shape[1], dtype", "metrics"),
    # Rankings.
    ("retrieval/ranking.py", "moved[n_relevant] = place + 1", "moved[n_relevant] = place",
     "ranking"),
    ("retrieval/ranking.py", "    if exclude >= 0:\n", "    if exclude > 0:\n", "ranking"),
    ("retrieval/ranking.py", "n_relevant -= np.append(codes, -2)[exclude] == query_codes",
     "pass", "ranking"),
    ("retrieval/ranking.py", "_sort(values[first:place], positions[first:place])",
     "positions[first:place] = positions[first:place][::-1].copy()", "ranking"),
    ("retrieval/ranking.py", "\nTIE = 1e-12", "\nTIE = 1e-4", "ranking"),
    ("retrieval/ranking.py", "np.bincount(codes), 0)[query_codes]",
     "np.bincount(codes), 0)[query_codes] + 1", "ranking"),
    # Searches.
    ("retrieval/searches.py", "embeddings.dataset.query_labels[:, None] == classes",
     "embeddings.query_predictions[:, None] == classes", "searches"),
    ("retrieval/searches.py", "axis=1) - falling < mass", "axis=1) < mass", "searches"),
    ("retrieval/searches.py", "gallery_labels[order]]", "gallery_labels]", "searches"),
    ("retrieval/searches.py", "(scores[str(mass)], -mass)", "(-scores[str(mass)], -mass)",
     "searches"),
    ("retrieval/searches.py",
     "ranking.prepare(embeddings.vectors[dataset.train])",
     "ranking.prepare(embeddings.vectors[dataset.validation])", "searches"),
    # Evaluation.
    ("retrieval/evaluation.py", "inputs.order[rankings])", "rankings)", "evaluation"),
    ("retrieval/evaluation.py", "-1, place[dataset.exclude])", "-1, -1)", "evaluation"),
    ("retrieval/evaluation.py", "query_predictions == labels", "query_predictions != labels",
     "evaluation"),
    ("retrieval/evaluation.py", "embed_view(view, seed,", "embed_view(view, seeds[0],",
     "evaluation"),
    ("retrieval/evaluation.py", "states.append(State(seed, epoch,",
     "states.append(State(seed, None,", "evaluation"),
    ("retrieval/evaluation.py", "restrict_to=inputs.restrict_to,", "restrict_to=None,",
     "evaluation"),
    # Images and their roles.
    ("images/dataset.py", "np.unique(pictures.labels[rows],",
     "np.unique(np.random.default_rng(0).permutation(pictures.labels[rows]),", "dataset"),
    ("images/dataset.py", "np.setdiff1d(np.arange(len(labels)), second), second",
     "np.arange(len(labels)), second", "dataset"),
    ("images/dataset.py", "gallery=np.arange(n_train)", "gallery=np.arange(len(labels))",
     "dataset"),
    ("images/dataset.py", "== self.queries, places, -1)", "== self.queries, -1, -1)", "protocols"),
    ("images/dataset.py", "    random = np.random.default_rng(seed)\n",
     "    random = np.random.default_rng(0)\n", "dataset"),
    ("images/protocols.py", "train=select(dataset.train, is_unseen=False)", "train=dataset.train",
     "protocols"),
    ("images/protocols.py", "queries=select(dataset.queries, is_unseen=True)",
     "queries=select(dataset.queries, is_unseen=False)", "protocols"),
    ("images/protocols.py", "np.setdiff1d(np.arange(len(dataset.labels)), queries)",
     "np.arange(len(dataset.labels))", "protocols"),
    # Networks and embeddings.
    ("networks/embeddings.py", "vectors / np.where(lengths > 0, lengths, 1)", "vectors",
     "embeddings"),
    ("networks/embeddings.py", '(vectors - whitening["mean"])', "vectors", "embeddings"),
    ("networks/embeddings.py", "take_rows(self.vectors, self.dataset.queries)",
     "take_rows(self.vectors, self.dataset.gallery)", "evaluation"),
    ("networks/inference.py", "model.predict_on_batch(np.asarray(inputs, np.float32))",
     "keras.tree.map_structure(np.asarray, model(np.asarray(inputs, np.float32), training=True))",
     "architecture"),
    ("networks/models.py", "    if was_frozen or first:\n", "    if first and not was_frozen:\n",
     "models"),
    ("networks/models.py", ".preprocess_input(pixels)", ".preprocess_input(pixels / 127.5 - 1)",
     "weights"),
    ("networks/training.py", "passes, [seed, epoch])",
     "passes, [epoch, epoch])", "training"),
    ("networks/training.py", "batches(positions=dataset.validation)",
     "batches(positions=dataset.queries)", "training"),
    ("networks/training.py", "1 + accuracies.index(max(accuracies))", "len(history)", "training"),
    # Statistics.
    ("retrieval/uncertainty.py", "tail = (1 - level) / 2", "tail = 1 - level", "uncertainty"),
    ("retrieval/uncertainty.py", "means = (sums + extra * limit[others])",
     "means = (sums + extra * highest[others])", "uncertainty"),
    ("retrieval/uncertainty.py", "np.arange(len(order), 0, -1)", "len(order)", "uncertainty"),
    ("retrieval/uncertainty.py", "(1 + count) / (1 + permutations)", "count / permutations",
     "uncertainty"),
    ("retrieval/uncertainty.py", "is_significant=p_holm < ALPHA",
     'is_significant=tests["p"] < ALPHA', "uncertainty"),
    ("retrieval/uncertainty.py", "error = np.sqrt(by_query + by_seed)", "error = np.sqrt(by_query)",
     "uncertainty"),
    ("retrieval/uncertainty.py", "ahead = names[np.where(is_turned, other, one)]",
     "ahead = names[np.where(is_turned, one, other)]", "uncertainty"),
    # Tables and figures.
    ("reporting/numbers.py", 'name, f"{prefix}ci_low", f"{prefix}ci_high"',
     'name, f"{prefix}ci_high", f"{prefix}ci_low"', "numbers"),
    ("reporting/measurements.py", "else classes[label]", "else classes[label - 1]", "measurements"),
    ("reporting/measurements.py", "sort=False).mean()", "sort=False).max()", "measurements"),
    ("reporting/tables.py", "number(select(part, **selection)) for part in parts]",
     "number(select(part, **selection)) for part in parts[::-1]]",
     "tables"),
    ("reporting/tables.py", "labels[predicted >= 0], predicted[predicted >= 0]",
     "predicted[predicted >= 0], labels[predicted >= 0]", "charts"),
    ("reporting/tables.py", 'speed["images_per_second"],\n            speed["query_milliseconds"],',
     'speed["query_milliseconds"],\n            speed["images_per_second"],', "tables"),
    ("reporting/tables.py", "scores[~scores.index.isin(leaking_queries)]",
     "scores[scores.index.isin(leaking_queries)]", "tables"),
    ("reporting/charts.py", "nsmallest(MOST_ROWS)", "nlargest(MOST_ROWS)", "charts"),
    ("reporting/charts.py", "gain = Estimate(pair.difference, pair.ci_low, pair.ci_high)",
     "gain = Estimate(pair.difference, pair.ci_high, pair.ci_low)", "charts"),
]]
# fmt: on


def copy_project(folder: Path) -> Path:
    """A copy of the code and its tests; everything else is linked."""
    folder.mkdir()
    for path in ROOT.iterdir():
        if path.name in ("src", "tests"):
            shutil.copytree(path, folder / path.name)
        elif path.name != ".git":
            (folder / path.name).symlink_to(path)
    return folder


def run_tests(folder: Path, *tests: str) -> tuple[int, str]:
    """The exit status and the output of quick tests, which stop at a failure."""

    def run() -> None:
        os.chdir(folder)
        sys.path.insert(0, str(folder / "src"))
        os.environ["PYTHONPATH"] = str(folder / "src")
        with (folder / "output").open("w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        options = ["-q", "-x", "-p", "no:cacheprovider", "-m", QUICK, "-rf"]
        os._exit(pytest.main([*options, *tests]))

    process = FORK.Process(target=run)
    process.start()
    process.join()
    return process.exitcode, (folder / "output").read_text("utf-8", "replace")


def failing_test(mutant: Mutant, project: Path) -> str:
    """The first test that fails because of a mistake; empty if none does."""
    with tempfile.TemporaryDirectory() as parent:
        folder = shutil.copytree(project, Path(parent, "project"), symlinks=True)
        path = folder / "src" / "cbir" / mutant.file
        path.write_text(path.read_text("utf-8").replace(mutant.old, mutant.new), "utf-8")
        _, output = run_tests(folder, f"tests/test_{mutant.tests}.py")
    # An error while tests are collected is no failure of a test.
    failure = re.search(r"^FAILED (\S+?\.py::.+?)(?: - .*)?$", output, re.MULTILINE)
    return failure[1] if failure else ""


def misplaced() -> Iterator[Mutant]:
    """The rows whose text does not occur exactly once in its file."""
    for mutant in MUTANTS:
        text = (ROOT / "src" / "cbir" / mutant.file).read_text("utf-8")
        if text.count(mutant.old) != 1:
            yield mutant


def main(words: list[str]) -> int:
    if wrong := list(misplaced()):
        print(*(f"not exactly once in {row.file}: {row.old!r}" for row in wrong), sep="\n")
        return 1
    chosen = [mutant for mutant in MUTANTS if all(word in str(mutant) for word in words)]
    started, n_survivors = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as parent, ThreadPoolExecutor(CORES) as threads:
        project = copy_project(Path(parent, "project"))
        failures = threads.map(failing_test, chosen, [project] * len(chosen))
        noticed_by = set()
        for mutant, failure in zip(chosen, failures, strict=True):
            old, new = (" ".join(text.split()) for text in (mutant.old, mutant.new))
            print(f"{failure or 'SURVIVES'}  {mutant.file}: {old} -> {new}")
            n_survivors += not failure
            noticed_by.add(failure)
        # The same tests pass without a mistake: otherwise, their failures prove nothing.
        status, output = run_tests(project, *sorted(noticed_by - {""}))
        if status:
            print(f"these tests fail without a mistake:\n{output[-2000:]}")
    minutes = (time.monotonic() - started) / 60
    print(f"{len(chosen) - n_survivors} of {len(chosen)} mistakes noticed in {minutes:.1f} minutes")
    return int(n_survivors > 0 or status != 0)


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)
    sys.exit(main(sys.argv[1:]))
