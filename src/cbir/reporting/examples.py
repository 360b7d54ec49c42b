"""Queries and gallery images that are worth looking at, selected only by their scores.

All functions use what a report's pictures show: the first ten results with the first seed and under
the first protocol. Positions refer to `Dataset.queries` and `Dataset.gallery`.
"""

import numpy as np
import pandas as pd
from scipy import stats

from cbir.reporting import measurements
from cbir.reporting.runs import Run, networks

UNRESTRICTED = "unrestricted"
QUANTILES = {"easy": 0.9, "typical": 0.5, "hard": 0.1}


def query_scores(run: Run) -> pd.DataFrame:
    """The rows of per_query.parquet that belong to `run.rankings`; row i is the i-th query."""
    rows = measurements.select(
        run.per_query, search=UNRESTRICTED, protocol=run.protocol, seed=run.seed
    )
    return rows.reset_index(drop=True)


def neighbours(runs: dict[str, Run]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Rankings and similarities by architecture, (n_queries, 10) each."""
    return {
        name: (run.rankings[UNRESTRICTED], run.similarities[UNRESTRICTED])
        for name, run in runs.items()
    }


def predicted_labels(runs: dict[str, Run]) -> dict[str, np.ndarray]:
    """(n_queries,) the predicted class of every query by run; -1 if nothing is predicted."""
    return {name: query_scores(run)["predicted"].to_numpy() for name, run in runs.items()}


def extremes(run: Run, most: int = 3) -> pd.DataFrame:
    """The queries with the highest, the median and the lowest average precision, `most` of each.

    For each kind, it selects one query per class as long as there are classes, so that one hard
    class does not fill the figure. Ties are broken by position.

    A row per query: case ("best", "median" or "worst"), query, average_precision, note (a text).
    """
    scores = query_scores(run)
    values = scores["average_precision"].dropna()
    orders = {"best": -values, "median": (values - values.median()).abs(), "worst": values}
    rows = []
    for case, order in orders.items():
        queries = order.sort_values(kind="stable").index
        for query in _of_different_classes(queries, scores["label"].to_numpy(), most):
            rows.append((case, query, values[query], f"{case}\nAP {values[query]:.2f}"))
    return pd.DataFrame(rows, columns=["case", "query", "average_precision", "note"])


def at_quantiles(runs: dict[str, Run]) -> dict[str, int]:
    """The query at each of `QUANTILES` of average precision (the mean over the networks)."""
    scores = [query_scores(run)["average_precision"] for run in (networks(runs) or runs).values()]
    order = pd.concat(scores, axis=1).mean(axis=1).dropna().sort_values(kind="stable").index
    return {name: order[round(level * (len(order) - 1))] for name, level in QUANTILES.items()}


def disagreements(runs: dict[str, Run], most: int = 4) -> pd.DataFrame:
    """The `most` queries whose average precision differs most between networks of one study.

    It selects one query per class as long as there are classes.

    A row per query, the widest spread first: query, spread (highest minus lowest average
    precision), highest, lowest (names of the architectures), note (its text, by these names).
    """
    columns, rows = ["query", "spread", "highest", "lowest", "note"], []
    scores = {name: query_scores(run) for name, run in networks(runs).items()}
    if not scores:
        return pd.DataFrame(columns=columns)
    values = pd.DataFrame({name: frame["average_precision"] for name, frame in scores.items()})
    # A query without a score for one of the architectures cannot be compared.
    values = values.dropna()
    spread = values.max(axis=1) - values.min(axis=1)
    order = (-spread[spread > 0]).sort_values(kind="stable").index
    labels = next(iter(scores.values()))["label"].to_numpy()
    for query in _of_different_classes(order, labels, most):
        by_name = values.loc[query]
        ends = by_name.idxmax(), by_name.idxmin()
        note = {name: f"AP {by_name[name]:.2f}" for name in ends}
        rows.append((query, spread[query], *ends, note))
    table = pd.DataFrame(rows, columns=columns)
    return table.sort_values("spread", ascending=False, kind="stable", ignore_index=True)


def costly_confusions(runs: dict[str, Run], most: int = 3) -> pd.DataFrame:
    """The `most` classes that each network returns for another at the highest loss of mAP.

    A query loses 1 - AP, attributed to the classes of the misses among its first ten results, in
    proportion to their number. Example: one of 100 queries has an AP of 0.4 and two cats and a
    truck as misses: 0.4 / 100 for its class and cat, 0.2 / 100 for its class and truck.

    A row per pair, the costliest first: architecture, class, returned (names), mAP lost, queries
    (how many have such a miss), query (the one that adds most), note (its text).
    """
    columns = ["architecture", "class", "returned", "mAP lost", "queries", "query", "note"]
    rows = []
    for name, run in networks(runs).items():
        dataset, (ranking, is_miss) = run.dataset, _misses(run)
        losses = (1 - query_scores(run)["average_precision"]).dropna()
        queries, other_labels = np.nonzero(is_miss)[0], dataset.gallery_labels[ranking[is_miss]]
        # A query's loss, in equal parts to each of its misses.
        parts = losses.reindex(queries) / np.bincount(queries)[queries] / len(losses)
        lost = parts.groupby([dataset.query_labels[queries], other_labels, queries]).sum()
        pairs = lost[lost > 0].groupby(level=[0, 1])
        for (label, other), total in pairs.sum().nlargest(most).items():
            of_pair = pairs.get_group((label, other))
            true_name, other_name = dataset.classes[label], dataset.classes[other]
            note, query = f"{other_name} for\n{true_name}", of_pair.idxmax()[-1]
            rows.append((name, true_name, other_name, total, len(of_pair), query, note))
    return pd.DataFrame(rows, columns=columns)


def hubs(runs: dict[str, Run]) -> dict[str, pd.DataFrame]:
    """How often each gallery image is among the first ten results (N_10), and how often wrongly.

    In high-dimensional spaces, some images are close to many others: hubs. Source: Radovanović,
    Nanopoulos, Ivanović, Hubs in Space: Popular Nearest Neighbors in High-Dimensional Data (2010).

    By run, a row per gallery image, in the gallery's order: returned, wrongly (both int64).
    """
    counts = {}
    for name, run in runs.items():
        ranking, is_miss = _misses(run)
        columns = {"returned": ranking[ranking >= 0], "wrongly": ranking[is_miss]}
        n_gallery = len(run.dataset.gallery)
        counts[name] = pd.DataFrame(
            {key: np.bincount(images, minlength=n_gallery) for key, images in columns.items()}
        )
    return counts


def _misses(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """(n_queries, 10) the gallery position of each result, or -1, and whether it is a miss."""
    ranking, dataset = np.asarray(run.rankings[UNRESTRICTED]), run.dataset
    is_other = dataset.gallery_labels[ranking] != dataset.query_labels[:, None]
    return ranking, (ranking >= 0) & is_other


def hub_table(runs: dict[str, Run]) -> pd.DataFrame:
    """Hubness of each run, and "by chance" (a binomial count for each gallery image).

    The source of `hubs` measures hubness by skewness, the third standardised moment.

    A row per run: skewness (NaN if all counts are equal), never returned (share of the gallery),
    most often returned (the highest count), of these wrongly.
    """
    table = {}
    for name, counts in hubs(runs).items():
        top = counts.loc[counts["returned"].idxmax()]
        is_constant = counts["returned"].nunique() == 1  # SciPy warns of it
        table[name] = {
            "skewness": np.nan if is_constant else stats.skew(counts["returned"]),
            "never returned": (counts["returned"] == 0).mean(),
            "most often returned": top["returned"],
            "of these wrongly": top["wrongly"],
        }
    for run in [*runs.values()][:1]:
        n_queries, n_gallery = len(run.dataset.queries), len(run.dataset.gallery)
        n_shown = max(other.rankings[UNRESTRICTED].shape[1] for other in runs.values())
        chance = stats.binom(n_queries, min(n_shown / n_gallery, 1))
        if n_shown < n_gallery:
            table["by chance"] = {
                "skewness": float(chance.stats(moments="s")),
                "never returned": chance.pmf(0),
            }
    frame = pd.DataFrame.from_dict(table, orient="index").rename_axis("architecture")
    return frame.astype({"most often returned": "Int64", "of these wrongly": "Int64"})


def _of_different_classes(order: pd.Index, labels: np.ndarray, most: int) -> pd.Index:
    """The first query of each class in `order`, then, if these are too few, the first others."""
    is_repeated = pd.Series(labels[order]).duplicated()
    return order[is_repeated.argsort(kind="stable")][:most]
