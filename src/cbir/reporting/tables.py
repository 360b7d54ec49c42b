"""Architectures side by side: the tables of the comparison, with their uncertainty."""

import numpy as np
import pandas as pd

from cbir import project_root
from cbir.images import protocols
from cbir.images.dataset import Dataset, load_dataset
from cbir.networks.embeddings import Embeddings
from cbir.reporting import tidy
from cbir.reporting.display import SEARCH_COLOURS
from cbir.reporting.estimates import Estimate, PValue
from cbir.reporting.runs import Run
from cbir.retrieval import ranking, uncertainty

# What an architecture costs, and how many digits these numbers bear.
COSTS = {
    "parameters (million)": 1,
    "embedding size": 0,
    "training (s)": 0,
    "embedding (images/s)": 0,
    "query (ms, median)": 1,
    "index (MB)": 1,
}
_MAP = {"metric": "mean_average_precision", "k": None}
QUALITY = {
    "accuracy": {"metric": "accuracy"},
    "mAP, unrestricted": _MAP | {"search": "unrestricted"},
    "mAP, soft": _MAP | {"search": "soft"},
    "mAP, predicted class": _MAP | {"search": "predicted_class"},
    "mAP, label lookup": _MAP | {"search": "label_lookup"},
    "P@10, unrestricted": {"metric": "precision", "search": "unrestricted", "k": 10},
}


def rows_of(results: dict[str, Run]) -> pd.DataFrame:
    """Rows as in metrics.csv, of all runs, the seeds averaged for each query."""
    return pd.concat([result.averaged for result in results.values()], ignore_index=True)


def headline(rows: pd.DataFrame, results: dict[str, Run]) -> pd.DataFrame:
    """The rows of the study's first protocol."""
    return rows[rows["protocol"] == next(iter(results.values())).protocol]


def quality(rows: pd.DataFrame, architectures: list[str]) -> pd.DataFrame:
    """How well each architecture retrieves: a value with its 95 % interval in each cell.

    Args:
        rows: from `headline`.
        architectures: the columns; those without results are left empty.
    """
    columns = {}
    for name in architectures:
        own = rows[rows["architecture"] == name]
        columns[name] = [tidy.number(tidy.select(own, **wanted)) for wanted in QUALITY.values()]
    return pd.DataFrame(columns, index=list(QUALITY))


def costs(results: dict[str, Run]) -> pd.DataFrame:
    """What each architecture costs on the machine of the run (rows of `COSTS`)."""
    columns = {}
    for name, result in results.items():
        summary, speed = result.summary, result.summary["speed"]
        columns[name] = [
            summary["size"]["total"] / 1e6 if "size" in summary else float("nan"),
            summary["embedding_dim"],
            summary.get("training_seconds", float("nan")),
            speed["images_per_second"],
            speed["query_milliseconds"],
            summary["index_bytes"] / 1e6,
        ]
    return pd.DataFrame(columns, index=list(COSTS))


def pairs(results: dict[str, Run], search: str = "unrestricted") -> pd.DataFrame:
    """Every pair of architectures and baselines, compared query by query in average precision.

    The seeds are averaged for each query first: see `uncertainty.compare` for the columns.
    """
    scores = {
        name: average_precision(result, search, result.protocol) for name, result in results.items()
    }
    return uncertainty.compare(pd.DataFrame(scores))


def average_precision(result: Run, search: str, protocol: str) -> pd.Series:
    """Average precision of each (draw and) query in the final state, averaged over the seeds."""
    chosen = tidy.select(result.per_query, search=search, protocol=protocol)
    place = "query" if chosen["draw"].isna().all() else ["draw", "query"]
    return chosen.groupby(place)["average_precision"].mean()


def lost_and_won_back(result: Run) -> dict[str, float]:
    """What becomes of the queries under the first protocol, means over the seeds.

    Returns:
        right: predicted rightly; won back: predicted wrongly, but the soft search reaches the true
        class; lost: it does not; queries, seeds: how many; searched: share of the gallery that the
        soft search searched.
    """
    soft = tidy.select(result.per_query, protocol=result.protocol, search="soft")
    n_seeds, is_right = soft["seed"].nunique(), soft["correct"] == 1
    won = (~is_right & (soft["average_precision"] > 0)).sum() / n_seeds
    right, n_queries = is_right.sum() / n_seeds, soft["query"].nunique()
    return {
        "right": right, "won back": won, "lost": n_queries - right - won,
        "queries": n_queries, "seeds": n_seeds, "searched": soft["searched"].mean(),
    }  # fmt: skip


def all_lost_and_won_back(results: dict[str, Run]) -> dict[str, dict[str, float]]:
    """`lost_and_won_back` by architecture; baselines, which predict nothing, are left out."""
    found = {name: each for name, each in results.items() if "soft" in each.summary["searches"]}
    return {name: lost_and_won_back(each) for name, each in found.items()}


def pairs_table(compared: pd.DataFrame) -> pd.DataFrame:
    """The pairs as a reader sees them."""
    return pd.DataFrame(
        {
            "ahead": compared["ahead"],
            "behind": compared["behind"],
            "difference in mAP": [
                Estimate(row.difference, row.ci_low, row.ci_high) for row in compared.itertuples()
            ],
            "p": compared["p"].map(PValue),
            "p, Holm": compared["p_holm"].map(PValue),
            "effect size": compared["effect_size"],
            "queries": compared["n_queries"],
            "told apart": compared["is_significant"].map({True: "yes", False: "no"}),
        }
    )


def seeds(results: dict[str, Run]) -> pd.DataFrame:
    """How the mAP of the unrestricted search differs from seed to seed, a row an architecture."""
    rows = []
    for name, result in results.items():
        wanted = QUALITY["mAP, unrestricted"] | {"protocol": result.protocol}
        own = tidy.select(result.metrics, **wanted)
        values = own["value"]
        rows.append(
            {
                "architecture": name,
                "seeds": len(values),
                "mean": values.mean(),
                "lowest": values.min(),
                "highest": values.max(),
                "standard deviation": values.std(ddof=1),
                "half of the interval over queries": (own["ci_high"] - own["ci_low"]).mean() / 2,
            }
        )
    return pd.DataFrame(rows)


def classification(embeddings: Embeddings) -> pd.DataFrame:
    """How many queries of each class (rows) the classifier gets right, and the share."""
    dataset = embeddings.dataset
    right = pd.DataFrame({"right": embeddings.query_predictions == dataset.query_labels})
    groups = [
        (name, right[dataset.query_labels == label]) for label, name in enumerate(dataset.classes)
    ]
    rows = {
        name: {
            "queries": len(group),
            "right": group["right"].sum(),
            "accuracy": tidy.number(uncertainty.intervals(group.astype(float))),
        }
        for name, group in [*groups, ("all", right)]
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("class")


def histories(results: dict[str, Run]) -> dict[str, pd.DataFrame]:
    """A row per epoch of the first seed, by architecture."""
    return {name: each.history for name, each in results.items() if not each.is_baseline}


def states(results: dict[str, Run]) -> pd.DataFrame:
    """A row per measured state of an architecture: accuracy and mAP after how many epochs."""
    rows = []
    for name, result in results.items():
        if result.is_baseline:
            continue
        averaged = result.averaged[result.averaged["protocol"] == result.protocol]
        epochs = averaged["epoch"].dropna().unique()
        for epoch in [*sorted(int(epoch) for epoch in epochs), None]:
            wanted = QUALITY["accuracy"], QUALITY["mAP, unrestricted"]
            accuracy, mean_ap = (tidy.select(averaged, epoch=epoch, **each) for each in wanted)
            rows.append(
                {
                    "architecture": name,
                    "epochs": epoch or result.summary["epochs"],
                    "accuracy": tidy.number(accuracy),
                    "mAP, unrestricted": tidy.number(mean_ap),
                }
            )
    return pd.DataFrame(rows)


def by_protocol(rows: pd.DataFrame, results: dict[str, Run], dataset: Dataset) -> pd.DataFrame:
    """mAP of the unrestricted search, a row a protocol (and draw), a column an architecture."""
    chosen = tidy.select(rows, **QUALITY["mAP, unrestricted"])
    unseen = next(iter(results.values())).summary["measurement"]["unseen"]
    table = {}
    for protocol in protocols.PROTOCOLS:
        of_protocol = chosen[chosen["protocol"] == protocol]
        for draw, group in of_protocol.groupby("draw", dropna=False):
            label = protocol
            if not pd.isna(draw):
                view = protocols.view(dataset, protocol, unseen=unseen, draw=int(draw))
                apart = [dataset.classes[each] for each in protocols.unseen_labels(view)]
                label = f"{protocol}: {', '.join(apart)}"
            table[label] = _cells(group, results)
        if protocol == "hashing_1k" and len(of_protocol):
            at_1000 = QUALITY["mAP, unrestricted"] | {"protocol": protocol, "k": 1000}
            table[f"{protocol}, mAP@1000"] = _cells(tidy.select(rows, **at_1000), results)
    return pd.DataFrame.from_dict(table, orient="index").rename_axis("protocol")


def _cells(rows: pd.DataFrame, results: dict[str, Run]) -> dict[str, Estimate]:
    return {name: tidy.number(rows[rows["architecture"] == name]) for name in results}


def with_and_without_leaks(
    results: dict[str, Run], dataset: Dataset, leaking: pd.DataFrame
) -> pd.DataFrame:
    """mAP of the unrestricted search over all queries, and over those that leak nothing.

    Args:
        dataset: from `load_images`.
        leaking: from `leaks.of`.
    """
    table, leaking = {}, dataset.queries[leaking["query"].unique()]
    for name, result in results.items():
        scores = average_precision(result, "unrestricted", result.protocol)
        clean = scores[~scores.index.isin(leaking)]
        found = uncertainty.intervals(pd.DataFrame({"all": scores, "without": clean}))
        table[name] = {
            "mAP, all queries": tidy.number(found.loc[["all"]]),
            "mAP, without leaks": tidy.number(found.loc[["without"]]),
            "queries without leaks": len(clean),
        }
    return pd.DataFrame.from_dict(table, orient="index").rename_axis("architecture")


def answers(
    results: dict[str, Run], search: str = "unrestricted"
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Rankings and similarities by architecture, as `plots.results` takes them."""
    return {
        name: (result.rankings[search], result.similarities[search])
        for name, result in results.items()
    }


def relevant_ranks(result: Run, dataset: Dataset) -> np.ndarray:
    """(n_queries, R) ranks of every query's relevant images in a run's unrestricted search.

    Args:
        dataset: from `load_images`.
    """
    folder = project_root() / result.summary["artifacts"]["embeddings"]
    vectors = Embeddings.open(folder, dataset).vectors
    blocks = ranking.relevant_ranks(
        vectors[dataset.queries],
        dataset.query_labels,
        vectors[dataset.gallery],
        dataset.gallery_labels,
        exclude=dataset.exclude,
    )
    found = [ranks for _, ranks in blocks]
    width = max(ranks.shape[1] for ranks in found)
    return np.concatenate(
        [
            np.pad(ranks, ((0, 0), (0, width - ranks.shape[1])), constant_values=np.nan)
            for ranks in found
        ]
    )


def load_images(results: dict[str, Run]) -> Dataset:
    """The images of the runs, as the study's first protocol sees them."""
    result = next(iter(results.values()))
    dataset = load_dataset(**result.summary["dataset"]["parameters"])
    return protocols.view(dataset, result.protocol)


# In the order of their importance.
METRICS = [
    "mean_average_precision", "precision", "recall", "ndcg", "hit_rate", "r_precision",
    "mean_average_precision_at_r", "mean_reciprocal_rank", "gallery_searched",
]  # fmt: skip


def scores(rows: pd.DataFrame) -> pd.DataFrame:
    """Retrieval metrics over all queries: a row per metric and k, a column per search.

    Args:
        rows: of metrics.csv, one architecture's, of one seed and protocol.
    """
    chosen = tidy.select(rows[rows["search"].notna()])
    depth = chosen["k"].map(lambda k: "all" if pd.isna(k) else f"{k:.0f}")
    cells = [tidy.number(chosen.loc[[row]]) for row in chosen.index]
    chosen = chosen.assign(depth=depth, cell=cells).set_index(["metric", "depth", "search"])
    wide = chosen["cell"].unstack("search", sort=False)
    order = [name for name in SEARCH_COLOURS if name in wide]
    metrics = [name for name in METRICS if name in wide.index]
    return wide.loc[metrics, order].rename_axis(index={"depth": "k"}, columns=None).reset_index()


def quality_and_cost(rows: pd.DataFrame, results: dict[str, Run]) -> pd.DataFrame:
    """The mAP of each run, and what it costs an image.

    Args:
        rows: from `comparison.headline`.

    Returns:
        A row a run: value, ci_low, ci_high (mAP of the unrestricted search), milliseconds
        (embedding an image, one batch after the other), bytes (an image's embedding in the index),
        is_baseline.
    """
    table = {}
    for name, result in results.items():
        own = tidy.select(rows[rows["architecture"] == name], **QUALITY["mAP, unrestricted"])
        summary = result.summary
        table[name] = own[["value", "ci_low", "ci_high"]].iloc[0].to_dict() | {
            "milliseconds": 1000 / summary["speed"]["images_per_second"],
            "bytes": summary["index_bytes"] / summary["dataset"]["gallery"],
            "is_baseline": result.is_baseline,
        }
    return pd.DataFrame.from_dict(table, orient="index").rename_axis("architecture")


def confusion_counts(scores: pd.DataFrame, classes: list[str]) -> pd.DataFrame:
    """How many queries of each class (rows) were taken for which class (columns).

    Args:
        scores: rows of per_query.parquet, a row a query: label and predicted, which is -1 where
            nothing was predicted.
    """
    counts = np.zeros((len(classes), len(classes)), int)
    predicted = scores[scores["predicted"] >= 0]
    np.add.at(counts, (predicted["label"].to_numpy(int), predicted["predicted"].to_numpy(int)), 1)
    return pd.DataFrame(counts, classes, classes)
