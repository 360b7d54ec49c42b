"""Which queries and gallery images are worth looking at: chosen by the scores, never by hand.

All of it looks at what a report's pictures show: the first ten results of the first seed, under
the first protocol. Positions are those of `Dataset.queries` and `Dataset.gallery`.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from cbir.images.dataset import Dataset
from cbir.reporting import tidy
from cbir.reporting.runs import Run


def query_scores(result: Run, search: str = "unrestricted") -> pd.DataFrame:
    """The rows of per_query.parquet that belong to `result.rankings`, a row a query in its order.

    Returns:
        A frame whose index is the query's position; its columns are those of per_query.parquet.
    """
    chosen = tidy.select(
        result.per_query,
        search=search,
        protocol=result.protocol,
        seed=result.summary["measurement"]["seeds"][0],
    )
    return chosen.reset_index(drop=True)


def extremes(
    result: Run, dataset: Dataset, each: int = 3, search: str = "unrestricted"
) -> pd.DataFrame:
    """The queries with the highest, the median and the lowest average precision.

    Of each kind it takes one query a class, as far as there are classes, so that one hard class
    does not fill the gallery; equals stand by position.

    Args:
        dataset: as the first protocol sees it.
        each: how many of each kind.

    Returns:
        A row a query: case ("best", "median" or "worst"), query, average_precision, note (what to
        say beside it).
    """
    values = query_scores(result, search)["average_precision"].dropna()
    orders = {
        "best": -values,
        "median": (values - values.median()).abs(),
        "worst": values,
    }
    labels = dataset.query_labels
    rows = []
    for case, order in orders.items():
        sorted_queries = order.sort_values(kind="stable").index
        for query in _of_different_classes(sorted_queries, labels, each):
            note = f"{case}\nAP {values[query]:.2f}"
            rows.append((case, query, values[query], note))
    return pd.DataFrame(rows, columns=["case", "query", "average_precision", "note"])


def disagreements(
    results: dict[str, Run], most: int = 4, search: str = "unrestricted"
) -> pd.DataFrame:
    """The queries whose average precision differs most between architectures.

    Baselines are left out: that a network is ahead of raw pixels surprises nobody. One query a
    class, as far as there are classes.

    Args:
        results: of one study, so that all have the same queries.
        most: how many queries.

    Returns:
        A row a query, the widest spread first: query, spread (highest less lowest average
        precision), highest, lowest (names of the architectures), note (by name, what to say).
        Empty with fewer than two architectures.
    """
    columns = ["query", "spread", "highest", "lowest", "note"]
    found = {
        name: query_scores(each, search) for name, each in results.items() if not each.is_baseline
    }
    if len(found) < 2:
        return pd.DataFrame(columns=columns)
    values = pd.DataFrame({name: each["average_precision"] for name, each in found.items()})
    # A query that not all of them have a score for says nothing of the others.
    values = values.dropna()
    spread = values.max(axis=1) - values.min(axis=1)
    labels = next(iter(found.values()))["label"].to_numpy()
    order = (-spread[spread > 0]).sort_values(kind="stable").index
    rows = []
    for query in _of_different_classes(order, labels, most):
        own = values.loc[query]
        note = {name: f"AP {value:.2f}" for name, value in own.items()}
        rows.append((query, spread[query], own.idxmax(), own.idxmin(), note))
    table = pd.DataFrame(rows, columns=columns)
    return table.sort_values("spread", ascending=False, kind="stable", ignore_index=True)


def costly_confusions(
    result: Run, dataset: Dataset, most: int = 5, search: str = "unrestricted"
) -> pd.DataFrame:
    """Which classes are returned for which, by how much mAP it costs.

    A query loses 1 - AP. The loss is laid at the door of the classes of the misses among its first
    ten results, in proportion to their number. Divided by the number of queries, the losses of all
    pairs of classes, and of queries whose first ten are hits (which are no pair), add up to
    1 - mAP. Example: a query with AP 0.4 and two cats and a truck among its misses, one of 100
    queries, adds 0.4 / 100 to its class and cat, 0.2 / 100 to its class and truck. Later results
    are not looked at, so that this is a share, not a cause.

    Args:
        dataset: as the first protocol sees it.
        most: how many pairs.

    Returns:
        A row a pair, the costliest first: class, returned (names), mAP lost, queries (how many have
        such a miss), query (the one that adds most), note (what to say beside it).
    """
    losses = 1 - query_scores(result, search)["average_precision"].to_numpy(float)
    scored = ~np.isnan(losses)
    found, labels = np.asarray(result.rankings[search]), dataset.query_labels
    returned = dataset.gallery_labels[found]
    misses = (found >= 0) & (returned != labels[:, None])
    counts = np.zeros((len(labels), len(dataset.classes)))
    np.add.at(counts, (np.nonzero(misses)[0], returned[misses]), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    lost = np.where(scored, losses, 0)[:, None] * shares / max(scored.sum(), 1)
    rows = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        totals = lost[members].sum(axis=0)
        for other in np.flatnonzero(totals > 0):
            own, name = lost[members, other], dataset.classes[other]
            n_queries, example = np.count_nonzero(own), members[own.argmax()]
            note = f"{name} for\n{dataset.classes[label]}"
            rows.append((dataset.classes[label], name, totals[other], n_queries, example, note))
    columns = ["class", "returned", "mAP lost", "queries", "query", "note"]
    table = pd.DataFrame(rows, columns=columns)
    return table.sort_values("mAP lost", ascending=False, kind="stable", ignore_index=True)[:most]


def confusions_of_all(
    results: dict[str, Run], dataset: Dataset, most: int = 3, search: str = "unrestricted"
) -> pd.DataFrame:
    """`costly_confusions` of each architecture, with its name; baselines are left out."""
    tables = [
        costly_confusions(result, dataset, most, search).assign(architecture=name)
        for name, result in results.items()
        if not result.is_baseline
    ]
    columns = ["architecture", "class", "returned", "mAP lost", "queries", "query", "note"]
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)
    return table[columns]


def hubs(result: Run, dataset: Dataset, search: str = "unrestricted") -> pd.DataFrame:
    """How often each gallery image is among the first ten results (N_10), and how often wrongly.

    In many dimensions some images come near to everything: hubs. Source: Radovanović, Nanopoulos,
    Ivanović, Hubs in Space: Popular Nearest Neighbors in High-Dimensional Data (2010).

    Args:
        dataset: as the first protocol sees it.

    Returns:
        A row a gallery image, in the gallery's order: returned, wrongly (both int64).
    """
    found = np.asarray(result.rankings[search])
    shown = found >= 0
    misses = shown & (dataset.gallery_labels[found] != dataset.query_labels[:, None])
    n_gallery = len(dataset.gallery)
    return pd.DataFrame(
        {
            "returned": np.bincount(found[shown], minlength=n_gallery),
            "wrongly": np.bincount(found[misses], minlength=n_gallery),
        }
    )


def hubs_of_all(results: dict[str, Run], dataset: Dataset) -> dict[str, pd.DataFrame]:
    """`hubs` of each architecture and baseline, by its name."""
    return {name: hubs(result, dataset) for name, result in results.items()}


def skewness(counts: np.ndarray) -> float:
    """Third standardised moment, as the source of `hubs` measures hubness; NaN if all are equal.

    0: few are returned often where few are returned seldom; the higher, the more the results come
    from few images.
    """
    away = np.asarray(counts, float) - np.mean(counts)
    spread = np.sqrt(np.mean(away**2))
    return float(np.mean(away**3) / spread**3) if spread else float("nan")


def hub_table(results: dict[str, Run], dataset: Dataset) -> pd.DataFrame:
    """Hubness of each architecture and baseline, and what chance alone would give.

    By chance each gallery image would be among a query's first ten with the same probability, and
    its count binomial.

    Returns:
        A row a run, and one called "by chance": skewness, never returned (share of the gallery),
        most often returned (of all gallery images, the highest count), of these wrongly.
    """
    table = {}
    for name, counts in hubs_of_all(results, dataset).items():
        top = counts.loc[counts["returned"].idxmax()]
        table[name] = {
            "skewness": skewness(counts["returned"]),
            "never returned": (counts["returned"] == 0).mean(),
            "most often returned": top["returned"],
            "of these wrongly": top["wrongly"],
        }
    n_queries, n_gallery = len(dataset.queries), len(dataset.gallery)
    shown = max((each.rankings["unrestricted"].shape[1] for each in results.values()), default=0)
    chance = min(shown / n_gallery, 1)
    if 0 < chance < 1:
        spread = np.sqrt(n_queries * chance * (1 - chance))
        table["by chance"] = {
            "skewness": (1 - 2 * chance) / spread,
            "never returned": (1 - chance) ** n_queries,
        }
    whole = {"most often returned": "Int64", "of these wrongly": "Int64"}
    frame = pd.DataFrame.from_dict(table, orient="index").rename_axis("architecture")
    return frame.astype(whole)


def predicted(results: dict[str, Run]) -> dict[str, np.ndarray]:
    """(n_queries,) the predicted class of every query by run; -1 where nothing predicts."""
    return {name: query_scores(result)["predicted"].to_numpy() for name, result in results.items()}


def _of_different_classes(order: Iterable[int], labels: np.ndarray, most: int) -> list[int]:
    """The first of `order` of each class, then, where classes run out, the first of the rest."""
    order, first = list(order), {}
    for query in order:
        first.setdefault(labels[query], query)
    chosen = list(first.values())[:most]
    left = most - len(chosen)
    taken = {*chosen}
    return chosen + [query for query in order if query not in taken][:left]
