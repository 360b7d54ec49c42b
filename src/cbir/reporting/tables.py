"""Tables that compare the numbers of runs: quality, cost, differences, seeds, protocols."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pandas as pd

from cbir.images import protocols
from cbir.images.dataset import Dataset
from cbir.images.folders import group_by_reason
from cbir.networks.embeddings import Embeddings
from cbir.reporting.measurements import number, select
from cbir.reporting.numbers import Estimate, PValue, from_row, span
from cbir.reporting.runs import Run, networks, shared_dataset, training_place
from cbir.retrieval import uncertainty

# The order of columns in a table.
SEARCH_ORDER = ("unrestricted", "label_lookup", "predicted_class", "soft", "oracle_class")
# Does the embedding add to the class probabilities, and do further classes add to the first one?
COMPARED_SEARCHES = (("unrestricted", "label_lookup"), ("soft", "predicted_class"))
# The letters of the rows of `summary`; Unicode has no superscript q.
LETTERS = "abcdefghijklmnoprstuvwxyz"
SUPERSCRIPTS = dict(zip(LETTERS, "ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ", strict=True)) | {"": "*"}

# The costs of an architecture, with the number of digits after the decimal point.
COSTS = {
    "parameters (million)": 1,
    "embedding size": 0,
    "training (s)": 0,
    "embedding (images/s)": 0,
    "query (ms, median)": 1,
    "index (MB)": 1,
}
_MAP = {"metric": "mean_average_precision", "k": None}
# The measures of quality, with the selection of their rows in metrics.csv.
QUALITY = {
    "accuracy": {"metric": "accuracy"},
    "mAP, unrestricted": _MAP | {"search": "unrestricted"},
    "mAP, soft": _MAP | {"search": "soft"},
    "mAP, predicted class": _MAP | {"search": "predicted_class"},
    "mAP, label lookup": _MAP | {"search": "label_lookup"},
    "P@10, unrestricted": {"metric": "precision", "search": "unrestricted", "k": 10},
}
# The most important metrics come first.
METRICS = [
    "mean_average_precision", "precision", "recall", "ndcg", "hit_rate", "r_precision",
    "mean_average_precision_at_r", "mean_reciprocal_rank", "gallery_searched",
]  # fmt: skip
# The formulas of `map_definitions`, in which P(i) is the precision at rank i, and their users, as
# determined from the source code of the versions named here.
DEFINITION_TEXTS = {
    "AP@k by min(R, k)": {
        "formula": "sum of P(i) at the hits i <= k, / min(R, k): the best first k results score 1",
        "used_by": "this study; ml_metrics apk; recommenders 1.2.1 map_at_k; Google Landmarks "
        "retrieval, MeanAveragePrecision in tensorflow/models (k = 100)",
    },
    "AP@k by R": {
        "formula": "sum of P(i) at the hits i <= k, / R: at most k / R if k < R",
        "used_by": "trec_eval map_cut; ranx 0.3.21 map@k; TensorFlow Similarity 0.17.1 MapAtK; "
        "PyTorch Metric Learning 2.9.0 mean_average_precision with k; recommenders 1.2.1 map",
    },
    "AP@k by hits found": {
        "formula": "sum of P(i) at the hits i <= k, / number of those hits: one hit at rank 1 and "
        "none after it scores 1",
        "used_by": "torchmetrics 1.9.0 RetrievalMAP(top_k); Open Metric Learning 4.0.0 calc_map; "
        "DeepHash-pytorch CalcTopMap; HashNet's code, which excludes queries without a hit from "
        "the mean",
    },
    "MAP@R": {
        "formula": "sum of P(i) at the hits i <= R, / R; k is not used",
        "used_by": "Musgrave, Belongie, Lim, A Metric Learning Reality Check (2020); PyTorch "
        "Metric Learning 2.9.0 mean_average_precision_at_r; TensorFlow Similarity 0.17.1 MapAtK "
        "with clip_at_r",
    },
    "AP of the full ranking": {
        "formula": "sum of P(i) at all hits i, / R; k is not used",
        "used_by": "this study; scikit-learn average_precision_score (if no similarities are "
        "tied); trec_eval map; ranx 0.3.21 map; torchmetrics 1.9.0 RetrievalMAP and PyTorch "
        "Metric Learning 2.9.0 mean_average_precision without k",
    },
    "AP of the full ranking, trapezoids": {
        "formula": "sum over all hits i of the mean of the precisions before and at i, / R; the "
        "precision before rank 1 is 1; k is not used",
        "used_by": "revisitop compute_ap: Radenović et al., Revisiting Oxford and Paris (2018)",
    },
}

# Classes are uneven if one has more than this many times the queries of another. Up to then, the
# mean over queries and the mean over classes differ by at most a fifth of the standard deviation of
# the classes' means: sizes between 1 and r have a coefficient of variation of at most
# (r - 1) / (2 sqrt(r)).
UNEVEN = 1.5
# Sizes of galleries beyond those that are measured, and the memory of a machine that holds a part.
LARGER, MACHINE_BYTES = {"100 million": 10**8, "1 billion": 10**9}, 256 * 2**30
BY_CLASS = ", mean over classes"  # The suffix of the name of such a measure.


def files(dataset: Dataset) -> pd.DataFrame:
    """The numbers of files that are found, used and left out, by reason; empty if there is none."""
    groups = {"left out": dataset.left_out, "used, though": dataset.remarks}
    n_used, n_left_out = len(dataset.labels), sum(one.files for one in dataset.left_out)
    rows = [("found", n_used + n_left_out, ""), ("used", n_used, "")]
    for use, named in groups.items():
        rows += [(f"{use}: {row.reason}", row.files, row.name) for row in group_by_reason(named)]
    table = pd.DataFrame(rows, columns=["files", "number", "such as"])
    return table if len(table) > 2 else table[:0]


def named_files(dataset) -> pd.DataFrame:
    """A row per file that a `Dataset` or `galleries.Changes` leaves out, or uses with a remark."""
    groups = {"left out": dataset.left_out, "used": dataset.remarks}
    return pd.DataFrame(
        [(one.name, use, one.reason, one.files) for use, named in groups.items() for one in named],
        columns=["name", "use", "reason", "files"],
    )


def average_rows(runs: dict[str, Run]) -> pd.DataFrame:
    """Rows as in metrics.csv, of all runs, with each query's scores averaged over the seeds."""
    return pd.concat([run.averaged for run in runs.values()], ignore_index=True)


def first_protocol_rows(runs: dict[str, Run]) -> pd.DataFrame:
    """The rows of `average_rows` that were measured under the study's first protocol."""
    rows = average_rows(runs)
    return rows[rows["protocol"] == next(iter(runs.values())).protocol]


def quality(runs: dict[str, Run]) -> pd.DataFrame:
    """The estimates of each run under the first protocol, a column for each of `QUALITY`.

    A measure that a run lacks is a dash. If classes are uneven, the mean over classes follows.
    """
    rows, columns = first_protocol_rows(runs), {}
    parts = [rows[rows["architecture"] == name] for name in runs]
    is_uneven = are_uneven(class_sizes(rows))
    for measure, selection in QUALITY.items():
        columns[measure] = [number(select(part, **selection)) for part in parts]
        if is_uneven:
            columns[measure + BY_CLASS] = [class_mean(part, **selection) for part in parts]
    return pd.DataFrame(columns, pd.Index(runs, name="architecture"))


def class_sizes(rows: pd.DataFrame) -> pd.Series:
    """The number of queries of each class, by name, in rows of metrics.csv under one protocol."""
    return select(rows, by_class=True).groupby("class")["n_queries"].max()


def are_uneven(sizes: pd.Series) -> bool:
    """Whether the numbers of queries differ so much that means over classes are shown as well."""
    return sizes.max() > UNEVEN * sizes.min()


def class_mean(rows: pd.DataFrame, **selection) -> Estimate:
    """`mean_of_classes` of one number, in rows of metrics.csv with those of its classes."""
    classes = select(rows, by_class=True, **selection)
    return mean_of_classes([from_row(row) for _, row in classes.iterrows()])


def mean_of_classes(estimates: list[Estimate]) -> Estimate:
    """The mean over classes, in which each class counts the same, with its interval.

    The interval follows from those of the classes (Zou and Donner, Construction of Confidence
    Limits about Effect Measures, 2008), whose queries are independent, and covers only these
    classes. It is missing if a class has none; a class without a value is left out.
    """
    rows = [(mean.value, mean.low, mean.high) for mean in estimates if not math.isnan(mean.value)]
    if not rows:
        return Estimate(math.nan)
    value, low, high = np.array(rows).T
    mean, (below, above) = value.mean(), np.linalg.norm([value - low, high - value], axis=1)
    return Estimate(mean, mean - below / len(value), mean + above / len(value))


def costs(runs: dict[str, Run]) -> pd.DataFrame:
    """The costs of each run (columns of `COSTS`), on its machine; NaN if unknown."""
    rows = {}
    for name, run in runs.items():
        summary, speed = run.summary, run.summary["speed"]
        rows[name] = [
            summary.get("size", {}).get("total", math.nan) / 1e6,
            summary["embedding_dim"],
            summary.get("training_seconds", math.nan),
            speed["images_per_second"],
            speed["query_milliseconds"],
            summary["index_bytes"] / 1e6,
        ]
    return pd.DataFrame.from_dict(rows, "index", float, list(COSTS)).rename_axis("architecture")


def costs_table(costs: pd.DataFrame, runs: dict[str, Run]) -> pd.DataFrame:
    """The `costs` for readers; the training time on another machine is followed by its name."""
    texts = {name: costs[name].map(f"{{:,.{digits}f}}".format) for name, digits in COSTS.items()}
    table = pd.DataFrame(texts).where(costs.notna(), "–")
    places = [training_place(run.summary) for run in runs.values()]
    return table.assign(**{"training (s)": table["training (s)"] + places})


def quality_and_cost(runs: dict[str, Run]) -> pd.DataFrame:
    """A row per run: value, ci_low, ci_high, milliseconds, bytes, is_baseline.

    The value is the mAP of the unrestricted search under the first protocol; milliseconds are those
    to embed an image within a batch (NaN for vectors made elsewhere), bytes those of an image's
    embedding.
    """
    rows = select(first_protocol_rows(runs), **QUALITY["mAP, unrestricted"])
    table = rows.set_index("architecture").loc[list(runs), ["value", "ci_low", "ci_high"]]
    summaries = [run.summary for run in runs.values()]
    speeds = [summary["speed"]["images_per_second"] or math.nan for summary in summaries]
    return table.assign(
        milliseconds=[1000 / speed for speed in speeds],
        bytes=[summary["index_bytes"] / summary["dataset"]["gallery"] for summary in summaries],
        is_baseline=[run.is_baseline for run in runs.values()],
    )


def best_networks(points: pd.DataFrame) -> list[str]:
    """The networks with the highest mAP in `quality_and_cost`, or baselines without networks.

    Four, or three if there are many runs: their results and a chart of all runs fit on one screen.
    """
    ordered = points.sort_values("value", ascending=False, kind="stable")
    trained = ordered[~ordered["is_baseline"]]
    most = 3 if len(points) > 8 else 4
    return [*(ordered if trained.empty else trained).index[:most]]


def is_of_networks(pair) -> bool:
    """Whether the test of a pair, a row of `pairs`, covers these trained networks, but no seeds."""
    return not (pair.covers_seeds or math.isnan(pair.p))


def average_precision_by_seed(run: Run, search: str = "unrestricted") -> pd.DataFrame:
    """Average precision of each query (rows) and seed (columns) under the first protocol."""
    rows = select(run.per_query, search=search, protocol=run.protocol)
    return rows.pivot(index="query", columns="seed", values="average_precision")


def pairs(runs: dict[str, Run]) -> pd.DataFrame:
    """`uncertainty.compare` of all runs, query by query, in average precision (unrestricted)."""
    scores = {name: average_precision_by_seed(run) for name, run in runs.items()}
    baselines = [name for name, run in runs.items() if run.is_baseline]
    return uncertainty.compare(scores, baselines=baselines)


def unseen_class_means(runs: dict[str, Run]) -> pd.DataFrame:
    """mAP of each unseen class: a row per draw and label, a column per run that has any."""
    means = {}
    for name, run in runs.items():
        rows = select(run.per_query, search="unrestricted", protocol="unseen_classes")
        if len(rows):
            means[name] = rows.groupby(["draw", "label"])["average_precision"].mean()
    return pd.DataFrame(means)


def summary(runs: dict[str, Run], compared: pd.DataFrame) -> pd.DataFrame:
    """The main numbers of each run, the highest mAP first, with superscripts as ranx prints them.

    A row per run: a letter, architecture, mAP (with the letters of the runs that it is
    significantly ahead of, from `pairs`), P@10, accuracy.
    """
    measures = {"mAP": "mAP, unrestricted", "P@10": "P@10, unrestricted", "accuracy": "accuracy"}
    table = quality(runs)[list(measures.values())].set_axis([*measures], axis=1)
    order = table["mAP"].map(lambda estimate: -estimate.value).sort_values(kind="stable").index
    letters = dict(zip(order, itertools.chain(LETTERS, itertools.repeat("")), strict=False))
    outcomes = uncertainty.pair_outcomes(compared, order)
    for name in order:
        beaten = order[outcomes.loc[name, order] == "win"]
        superscripts = "".join(SUPERSCRIPTS[letters[other]] for other in beaten)
        marks = f" {superscripts}" if superscripts else ""
        table.at[name, "mAP"] = replace(table.at[name, "mAP"], marks=marks)
    table = table.loc[order].reset_index()
    table.insert(0, "letter", [letters[name] for name in order])
    return table


def search_pairs(runs: dict[str, Run]) -> pd.DataFrame:
    """Searches of each network compared with each other, all tests corrected together.

    Columns as in `uncertainty.compare`, and architecture. Runs without a classifier are left out.
    """
    compared = []
    for name, run in runs.items():
        for searches in COMPARED_SEARCHES if "label_lookup" in run.summary["searches"] else ():
            by_seed = {search: average_precision_by_seed(run, search) for search in searches}
            rows = uncertainty.compare(by_seed, same_networks=True)
            compared.append(rows.assign(architecture=name))
    compared = compared or [uncertainty.compare({}).assign(architecture="")]
    return uncertainty.corrected(pd.concat(compared, ignore_index=True))


def pairs_table(compared: pd.DataFrame) -> pd.DataFrame:
    """The pairs, from `pairs` or `search_pairs`, for readers."""
    differences = [
        Estimate(row.difference, row.ci_low, row.ci_high) for row in compared.itertuples()
    ]
    conditions = [compared["p"].isna(), compared["is_significant"]]
    columns = {
        "difference in mAP": differences,
        "p": compared["p"].map(PValue),
        "p, Holm": compared["p_holm"].map(PValue),
        "effect size": compared["effect_size"],
        "queries": compared["n_queries"],
        "significant": np.select(conditions, ["–", "yes"], "no"),
        "covers seeds": compared["covers_seeds"].map({True: "yes", False: "no"}),
    }
    return compared.filter(["architecture", "ahead", "behind"]).assign(**columns)


def lost_and_won_back(runs: dict[str, Run]) -> pd.DataFrame:
    """Queries by outcome under the first protocol, averaged over seeds; only with a classifier.

    A row per run: queries; predicted wrongly; won back (of these, the soft search includes the true
    class); mass (the total probability that this search reaches); searched (share of the gallery).
    """
    rows = {}
    for name, run in runs.items():
        if "soft" not in run.summary["searches"]:
            continue
        soft = select(run.per_query, protocol=run.protocol, search="soft")
        n_seeds, is_right = soft["seed"].nunique(), soft["correct"] == 1
        won = (~is_right & (soft["average_precision"] > 0)).sum() / n_seeds
        masses = [chosen["mass"] for chosen in run.summary["calibrations"].values()]
        rows[name] = {
            "queries": soft["query"].nunique(),
            "predicted wrongly": f"{(~is_right).sum() / n_seeds:,.3g}",
            "won back": f"{won:,.3g}",
            "mass": span(masses, 2),
            "searched": f"{100 * soft['searched'].mean():.1f} %",
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("architecture")


def definitions(scores: pd.DataFrame) -> pd.DataFrame:
    """The mAP by each definition, for readers; `scores` are from `compare_definitions`."""
    table = scores[["definition"]].join(pd.DataFrame(DEFINITION_TEXTS).T, "definition")
    return table.assign(mAP=scores.apply(from_row, axis=1))


def seeds(runs: dict[str, Run]) -> pd.DataFrame:
    """How the mAP of the unrestricted search differs between seeds, a row per architecture."""
    selected = QUALITY["mAP, unrestricted"]
    by_run = [select(run.metrics, protocol=run.protocol, **selected) for run in runs.values()]
    rows = pd.concat(by_run)
    rows["half"] = (rows["ci_high"] - rows["ci_low"]) / 2
    groups = rows.groupby("architecture", sort=False)
    columns = {"seeds": "size", "mean": "mean", "lowest": "min", "highest": "max"}
    table = groups["value"].agg(**columns, **{"standard deviation": "std"})
    table["half of the interval over queries"] = groups["half"].mean()
    return table.reset_index()


def classification(embeddings: Embeddings) -> pd.DataFrame:
    """How many queries of each class (rows), and of all, are classified correctly."""
    labels, classes = embeddings.dataset.query_labels, embeddings.dataset.classes
    right = pd.DataFrame({"right": embeddings.query_predictions == labels}, dtype=float)
    parts = [right[labels == label] for label in range(len(classes))] + [right]
    rows = [
        (len(part), int(part["right"].sum()), number(uncertainty.intervals(part))) for part in parts
    ]
    names = [*classes, "all"]  # a class may have one of the names of the last rows
    if are_uneven(right.groupby(labels).size()):
        rows.append((*rows[-1][:2], mean_of_classes([accuracy for *_, accuracy in rows[:-1]])))
        names.append("mean over classes")
    index = pd.Index(names, name="class")
    return pd.DataFrame(rows, index, ["queries", "right", "accuracy"])


def stages(history: pd.DataFrame) -> pd.DataFrame:
    """A row per stage of `Training.stages`: epochs, seconds, the accuracies of its last epoch."""
    accuracies = {name: (name, "last") for name in ("accuracy", "val_accuracy")}
    columns = {"epochs": ("stage", "size"), "seconds": ("seconds", "sum")} | accuracies
    return history.groupby("stage", sort=False).agg(**columns)


def states(runs: dict[str, Run]) -> pd.DataFrame:
    """A row per measured state of an architecture: number of epochs, accuracy and mAP."""
    rows = []
    for name, run in networks(runs).items():
        averaged = run.averaged[run.averaged["protocol"] == run.protocol]
        for epoch in [*sorted(averaged["epoch"].dropna().unique()), None]:
            row = {"architecture": name, "epochs": int(epoch or run.summary["epochs"])}
            for measure in ("accuracy", "mAP, unrestricted"):
                row[measure] = number(select(averaged, epoch=epoch, **QUALITY[measure]))
            rows.append(row)
    return pd.DataFrame(rows)


def by_protocol(runs: dict[str, Run]) -> pd.DataFrame:
    """mAP of the unrestricted search: a row per protocol and draw, a column per architecture."""
    rows = select(average_rows(runs), metric="mean_average_precision", search="unrestricted")
    # mAP over the whole ranking (k = 0 here), and at the depth that papers on hashing report.
    rows = rows.assign(k=rows["k"].fillna(0))
    rows = rows[(rows["k"] == 0) | ((rows["k"] == 1000) & (rows["protocol"] == "hashing_1k"))]
    rows["protocol"] = pd.Categorical(rows["protocol"], protocols.PROTOCOLS)
    groups, table = rows.groupby(["protocol", "draw", "k"], dropna=False, observed=True), {}
    for (protocol, draw, k), group in groups:
        unseen = "" if pd.isna(draw) else f": {', '.join(_unseen_classes(runs, int(draw)))}"
        label = f"{protocol}{unseen}" + (f", mAP@{k:.0f}" if k else "")
        table[label] = {name: number(group[group["architecture"] == name]) for name in runs}
    if len(means := unseen_class_means(runs)):
        tested = uncertainty.class_test(means, limits=(0, 1))
        label = f"unseen_classes{BY_CLASS} ({tested['n_classes'].iloc[0]}) of all draws"
        cells = tested.apply(from_row, axis=1).reindex(list(runs))
        table[label] = cells.where(cells.notna(), Estimate(float("nan"))).to_dict()
    return pd.DataFrame.from_dict(table, orient="index").rename_axis("protocol")


def _unseen_classes(runs: dict[str, Run], draw: int) -> list[str]:
    dataset = shared_dataset(runs)
    unseen = next(iter(runs.values())).summary["measurement"]["unseen"]
    view = protocols.view(dataset, "unseen_classes", unseen=unseen, draw=draw)
    return [dataset.classes[label] for label in protocols.unseen_labels(view)]


def with_and_without_leaks(runs: dict[str, Run], leaking: pd.DataFrame) -> pd.DataFrame:
    """mAP of the unrestricted search over all queries, and without those of `leaks.find_leaks`."""
    table, leaking_queries = {}, shared_dataset(runs).queries[leaking["query"].unique()]
    for name, run in runs.items():
        scores = average_precision_by_seed(run).mean(axis=1)
        clean = scores[~scores.index.isin(leaking_queries)]
        means = uncertainty.intervals(pd.DataFrame({"all": scores, "without": clean}))
        table[name] = {
            "mAP, all queries": number(means.loc[["all"]]),
            "mAP, without leaks": number(means.loc[["without"]]),
            "queries without leaks": len(clean),
        }
    return pd.DataFrame.from_dict(table, orient="index").rename_axis("architecture")


def relevant_ranks(run: Run) -> np.ndarray:
    """(n_queries, R) ranks of every query's relevant images in a run's unrestricted search."""
    from cbir.retrieval import ranking  # imports numba, which few tables need

    dataset, embeddings = run.dataset, run.embeddings
    queries, gallery = (embeddings.query, dataset.query_labels), embeddings.gallery
    blocks = ranking.relevant_ranks(
        *queries, gallery, dataset.gallery_labels, exclude=dataset.exclude
    )
    return np.concatenate([ranks for ranks, *_ in blocks])


def scores(run: Run) -> pd.DataFrame:
    """Metrics of the first seed and protocol: a row per metric and k, a column per search.

    If classes are uneven, the second row is the mean over classes of the average precision.
    """
    rows = run.first_rows()
    rows = select(rows[rows["search"].notna()])
    depth = rows["k"].map(lambda k: "all" if pd.isna(k) else f"{k:.0f}")
    rows = rows.assign(k=depth, cell=rows.apply(from_row, axis=1))
    wide = rows.set_index(["metric", "k", "search"])["cell"].unstack("search", sort=False)
    order = [name for name in SEARCH_ORDER if name in wide]
    measured = dict.fromkeys(wide.index.get_level_values("metric"))
    metrics = sorted(measured, key=[*METRICS, *measured].index)
    table = wide.loc[metrics, order].rename_axis(columns=None).reset_index()
    if are_uneven(class_sizes(run.first_rows())):
        of_classes = {name: class_mean(run.first_rows(), **_MAP, search=name) for name in order}
        row = {"metric": METRICS[0] + BY_CLASS, "k": "all"} | of_classes
        table = pd.concat([table.iloc[:1], pd.DataFrame([row]), table.iloc[1:]], ignore_index=True)
    return table


def confusions(runs: dict[str, Run]) -> dict[str, pd.DataFrame]:
    """`confusion_counts` of each run with a classifier: first seed, first protocol."""
    counts = {}
    for name, run in runs.items():
        selection = {"search": "unrestricted", "protocol": run.protocol, "seed": run.seed}
        scores = select(run.per_query, **selection)
        if scores["predicted"].ge(0).any():
            classes = run.summary["dataset"]["classes"]
            counts[name] = confusion_counts(scores["label"], scores["predicted"], classes)
    return counts


def confusion_counts(labels: np.ndarray, predicted: np.ndarray, classes: list[str]) -> pd.DataFrame:
    """How many queries of each true class (rows) are classified as which class (columns).

    `labels` and `predicted` are (n_queries,) int; -1 means no prediction and is not counted.
    """
    labels, predicted = np.asarray(labels, int), np.asarray(predicted, int)
    counts = np.zeros((len(classes), len(classes)), int)
    np.add.at(counts, (labels[predicted >= 0], predicted[predicted >= 0]), 1)
    return pd.DataFrame(counts, classes, classes)


def frequent_confusions(counts: pd.DataFrame, most: int = 5) -> pd.DataFrame:
    """The `most` frequent mistakes in `confusion_counts`, if there are any.

    A row per pair: class, predicted, queries (how many), share (of the class's queries).
    """
    pairs = counts.rename_axis("class").rename_axis(columns="predicted").stack().rename("queries")
    pairs = pairs.reset_index()
    pairs["share"] = pairs["queries"] / pairs["class"].map(counts.sum(axis=1))
    is_mistake = (pairs["class"] != pairs["predicted"]) & (pairs["queries"] > 0)
    mistakes = pairs[is_mistake].sort_values("queries", ascending=False, kind="stable")
    return mistakes.head(most).reset_index(drop=True)


def engines(costs: pd.DataFrame) -> pd.DataFrame:
    """What engines cost and find, from the rows of `scale.measure_engines`."""
    changes = [from_row(row, "mean_average_precision_change") for _, row in costs.iterrows()]
    return pd.DataFrame({
        "engine": costs["engine"],
        "images": costs["size"].map("{:,}".format),
        "recall@10": [from_row(row, "recall") for _, row in costs.iterrows()],
        "mAP@100": costs["mean_average_precision"].map("{:.3f}".format),
        "change of mAP@100": [f"{change:+}" for change in changes],
        "median (ms)": costs["p50"].map("{:.2f}".format),
        "99th percentile (ms)": costs["p99"].map("{:.2f}".format),
        "queries/s": costs["throughput"].map("{:,.0f}".format),
        "build (s)": costs["build"].map("{:,.1f}".format),
        "bytes per image": costs["bytes"].map("{:,.0f}".format),
    })  # fmt: skip


def larger_galleries(costs: pd.DataFrame) -> pd.DataFrame:
    """What `LARGER` galleries would need, computed from the largest one that was measured.

    Args:
        costs: from `scale.measure_engines`.
    """
    largest = costs[costs["size"] == costs["size"].max()]
    columns = {"engine": largest["engine"]}
    for name, size in LARGER.items():
        n_bytes, hours = size * largest["bytes"], largest["build"] / 3600 * size / largest["size"]
        columns[f"{name}: memory (GB)"] = (n_bytes / 1e9).map("{:,.0f}".format)
        columns[f"{name}: machines"] = np.ceil(n_bytes / MACHINE_BYTES).map("{:,.0f}".format)
        columns[f"{name}: build (hours)"] = hours.map("{:,.1f}".format)
    return pd.DataFrame(columns)
