"""Architectures side by side: tables, paired differences, and sentences that claim no more."""

import itertools
import json
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cbir.cache import MANIFEST
from cbir.progress import duration
from cbir.results import Result, folder_of, value

# Rows of the table of architectures, and how many digits their numbers bear.
DIGITS = {
    "accuracy": 3,
    "mAP, unrestricted": 3,
    "mAP, predicted class": 3,
    "P@10, unrestricted": 3,
    "parameters (million)": 1,
    "embedding size": 0,
    "training (s)": 0,
    "embedding (images/s)": 0,
    "query (ms, median)": 1,
    "index (MB)": 1,
}


@dataclass(frozen=True)
class Difference:
    """How far one architecture is ahead of another, on the same queries.

    Attributes:
        ahead, behind: their names; `ahead` has the larger mean.
        mean: mean of the queries' differences in average precision.
        low, high: its 95 % interval over queries.
        n_queries: how many queries enter.
    """

    ahead: str
    behind: str
    mean: float
    low: float
    high: float
    n_queries: int

    @property
    def is_told_apart(self) -> bool:
        """Whether the interval lies wholly on one side of zero."""
        return self.low > 0


def architectures(results: dict[str, Result], missing: list[str] = ()) -> pd.DataFrame:
    """A column per architecture: how well it retrieves, and what it costs (rows of `DIGITS`).

    Those without results (`missing`, "name: reason") have a column of NaN.
    """
    columns = {each.partition(":")[0]: [float("nan")] * len(DIGITS) for each in missing}
    for name, result in results.items():
        rows, summary = result.metrics, result.summary
        columns[name] = [
            value(rows, "accuracy"),
            value(rows, "mean_average_precision", "unrestricted"),
            value(rows, "mean_average_precision", "predicted_class"),
            value(rows, "precision", "unrestricted", 10),
            summary["size"]["total"] / 1e6,
            summary["embedding_dim"],
            summary["training_seconds"],
            summary["speed"]["images_per_second"],
            summary["speed"]["query_milliseconds"],
            summary["index_bytes"] / 1e6,
        ]
    return pd.DataFrame(columns, index=list(DIGITS)).sort_index(axis="columns")


def leaders(table: pd.DataFrame) -> str:
    """Which architecture has the best number of each kind; nothing where there is but one.

    Args:
        table: from `architectures`.
    """
    table = table.dropna(axis="columns")
    if len(table.columns) < 2:
        return ""
    highest = ["mAP, unrestricted", "P@10, unrestricted", "accuracy", "embedding (images/s)"]
    lowest = ["training (s)", "query (ms, median)"]
    best = {row: table.loc[row].idxmax() for row in highest}
    best |= {row: table.loc[row].idxmin() for row in lowest}
    said = [
        f"{row}: {name} ({table.loc[row, name]:,.{DIGITS[row]}f})" for row, name in best.items()
    ]
    return "The best number of each kind, however small its lead: " + "; ".join(said) + "."


def states(results: dict[str, Result]) -> pd.DataFrame:
    """A row per measured state of an architecture: accuracy and mAP after how many epochs."""
    rows = []
    for name, result in results.items():
        epochs = result.metrics["epoch"].dropna().unique()
        for epoch in [*sorted(int(epoch) for epoch in epochs), None]:
            chosen = {"rows": result.metrics, "epoch": epoch}
            rows.append(
                {
                    "architecture": name,
                    "epochs": epoch or result.summary["epochs"],
                    "accuracy": value(metric="accuracy", **chosen),
                    "mAP, unrestricted": value(
                        metric="mean_average_precision", search="unrestricted", **chosen
                    ),
                }
            )
    return pd.DataFrame(rows)


def differences(results: dict[str, Result], search: str = "unrestricted") -> list[Difference]:
    """Every pair of architectures, compared query by query in average precision.

    The interval is mean ± 1.96 standard errors of the paired differences: how the mean would vary
    with other queries of the same kind, not with other seeds.
    """
    pairs = []
    for one, other in itertools.combinations(results, 2):
        scores = [results[name].per_query[search]["average_precision"] for name in (one, other)]
        each = (scores[0] - scores[1]).dropna().to_numpy()
        ahead, behind = (one, other) if each.mean() >= 0 else (other, one)
        each = each if ahead == one else -each
        error = 1.96 * each.std(ddof=1) / np.sqrt(len(each)) if len(each) > 1 else np.inf
        mean = float(each.mean())
        pairs.append(Difference(ahead, behind, mean, mean - error, mean + error, len(each)))
    return pairs


def table(pairs: list[Difference]) -> pd.DataFrame:
    """A row per pair of architectures: by how much one is ahead, with the interval."""
    rows = [
        {
            "ahead": pair.ahead,
            "behind": pair.behind,
            "difference in mAP": pair.mean,
            "95 % from": pair.low,
            "to": pair.high,
            "queries": pair.n_queries,
            "told apart": "yes" if pair.is_told_apart else "no",
        }
        for pair in pairs
    ]
    return pd.DataFrame(rows, columns=list(rows[0]) if rows else ["ahead", "behind"])


def rows_of(results: dict[str, Result]) -> pd.DataFrame:
    """The rows of metrics.csv of all runs."""
    return pd.concat([result.metrics for result in results.values()], ignore_index=True)


def answers(
    results: dict[str, Result], search: str = "unrestricted"
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Rankings and similarities by architecture, as `plots.results` takes them."""
    return {
        name: (result.rankings[search], result.similarities[search])
        for name, result in results.items()
    }


def dataset(results: dict[str, Result]) -> dict:
    """What the runs loaded their images with."""
    return next(iter(results.values())).summary["dataset"]["parameters"]


def verdict(pairs: list[Difference]) -> str:
    """The pairs in words, as far as the numbers go."""
    if not pairs:
        return "Only one architecture has results, so there is nothing to compare it with."
    lines = []
    for pair in pairs:
        interval = f"95 % interval {pair.low:+.3f} to {pair.high:+.3f}, {pair.n_queries} queries"
        if pair.is_told_apart:
            lines.append(
                f"- **{pair.ahead}** is ahead of {pair.behind} by {pair.mean:.3f} in mAP "
                f"({interval})."
            )
        else:
            lines.append(
                f"- {pair.ahead} and {pair.behind} are **not told apart**: they differ by "
                f"{pair.mean:.3f} in mAP ({interval})."
            )
    lines.append(
        "\nThe intervals cover the choice of queries, one seed each: another seed, other training "
        "settings or other images may order the architectures differently."
    )
    return "\n".join(lines)


def describe(name: str, result: Result) -> str:
    """A run in words, from its numbers."""
    summary, rows = result.summary, result.metrics
    images, speed = summary["dataset"], summary["speed"]
    accuracy = value(rows, "accuracy")
    everywhere = value(rows, "mean_average_precision", "unrestricted")
    in_class = value(rows, "mean_average_precision", "predicted_class")
    return (
        f"**{name}** predicts the right class for {accuracy:.1%} of {images['queries']:,} queries. "
        f"Ranking the whole gallery of {images['gallery']:,} images it reaches a mean average "
        f"precision of {everywhere:.3f}; searching only the predicted class, {in_class:.3f}. "
        f"A query takes {speed['query_milliseconds']:.0f} ms (median), the gallery's embeddings "
        f"{summary['index_bytes'] / 1e6:.1f} MB. "
        f"Training: {summary['epochs']} epoch{'s' if summary['epochs'] != 1 else ''}, "
        f"{duration(summary['training_seconds'])}."
    )


def describe_all(results: dict[str, Result]) -> str:
    """Every run in words, a paragraph each."""
    return "\n\n".join(describe(name, result) for name, result in results.items())


def without_results(missing: list[str]) -> str:
    """The architectures that have no results, with the reason; nothing where there are none."""
    return "\n".join(
        f"- **{each.partition(':')[0]}** has no results:{each.partition(':')[2]}"
        for each in missing
    )


def provenance(study: str) -> pd.DataFrame:
    """What a report was made from, as a table, from its manifest.json; empty without one."""
    manifest = folder_of(study) / MANIFEST
    if not manifest.exists():
        return pd.DataFrame({"value": []})
    content = json.loads(manifest.read_text("utf-8"))
    commit, machine = content["git"]["commit"] or "not under git", content["machine"]
    rows = {
        "command": content["command"],
        "commit": commit + (" (with uncommitted changes)" if not content["git"]["clean"] else ""),
        "processor": f"{machine['cpu']}, {machine['cores']} cores",
        "GPU": ", ".join(machine["gpus"]) or "none",
        "packages": ", ".join(f"{name} {version}" for name, version in content["versions"].items()),
        "data, SHA-256": content["data"]["fingerprint"],
    }
    for name, run in content["architectures"].items():
        rows[f"{name}, weights, SHA-256"] = run["weights"]["trained"]
        rows[f"{name}, seconds"] = ", ".join(
            f"{step} {seconds:.1f}" for step, seconds in run["seconds"].items()
        )
        rows[f"{name}, peak memory"] = f"{run['peak_memory_bytes'] / 1e9:.2f} GB"
    return pd.DataFrame({"value": rows})
