"""Sentences of a report, generated from its numbers, that claim no more than the numbers show.

An architecture is called ahead of another one only if a paired test, corrected for the number of
tests, finds a significant difference.
"""

import math
from collections.abc import Iterable, Mapping

import pandas as pd

from cbir.images import leaks
from cbir.images.dataset import Dataset
from cbir.progress import duration
from cbir.reporting import measurements, numbers, tables
from cbir.reporting.numbers import Estimate, from_row
from cbir.reporting.runs import Run, networks, training_place
from cbir.retrieval import uncertainty
from cbir.retrieval.engines import EXACT
from cbir.retrieval.projections import Projection

# Above this mean cosine similarity of two images, a network has the same embedding for all.
COLLAPSED = 0.9999
# The share of the ten nearest images that an engine must find to be recommended.
LEAST_RECALL = 0.95

# What the numbers of a protocol mean, for readers of a report.
PROTOCOL_TEXTS = {
    "closed": "The protocol is `closed`, as in the paper: the gallery contains training images, "
    "and the queries are test images of the same classes. It shows how well a network retrieves "
    "images that it was trained on.",
    "held_out_gallery": "The protocol is `held_out_gallery`: gallery and queries are test images, "
    "none of which the network was trained on. A query is never among its own results.",
    "unseen_classes": "The protocol is `unseen_classes`: some classes are left out of training. "
    "The queries are test images of these classes, and the gallery contains the training images of "
    "all classes. It shows whether an embedding generalises to classes that it was not trained on.",
    "hashing_1k": "The protocol is `hashing_1k`, as in the deep-hashing literature: 100 queries "
    "per class, all other images as gallery, and 500 images per class for training, some of which "
    "are held out for validation.",
}
# What the vector of a baseline is, for readers of a report.
BASELINE_TEXTS = {
    "random": "Each image gets a random vector, independent of its content.",
    "raw_pixels": "The vector of an image consists of its pixel values, minus their mean.",
    "hand_crafted": "The vector of an image combines a colour histogram and histograms of oriented "
    "gradients (HOG), with equal weight.",
    "vectors": "Another program made the vector of each image; the study reads it from a file and "
    "matches it by the image's name. On which images that program was trained is unknown here.",
}
# mAP over the whole ranking of binary codes, as published. Each figure is shown only for the
# protocol under which it was measured.
PUBLISHED_MAP = {
    "closed": "GreedyHash .932 in DeepHash-pytorch, which quotes .944 from its paper (48 bits, "
    "10,000 queries, 50,000 training images as gallery).",
    "hashing_1k": "DSDH .790, GreedyHash .817 and ADSH .921, which trains on the gallery's labels, "
    "in DeepHash-pytorch, which quotes .820, .822 and .939 from their papers (48 bits, 1,000 "
    "queries, 5,000 training images, 59,000 in the gallery).",
}
# What the intervals of a protocol cover.
_SAME_CLASSES = (
    "Its intervals of single architectures cover other queries of the same classes, but neither "
    "other classes nor other seeds."
)
INTERVAL_TEXTS = {
    "closed": _SAME_CLASSES,
    "held_out_gallery": f"{_SAME_CLASSES} They hold the gallery fixed, although it consists of the "
    "queries: for new images they are too narrow (docs/evaluation.md shows by how much).",
    "unseen_classes": "Its intervals and tests over all draws cover other classes.",
    "hashing_1k": _SAME_CLASSES,
}
# What the tests of the comparison cover: all of them, those that cover seeds, and the others.
SCOPE = (
    "- p is corrected by Holm's method for all pairs of a table; pairs with fewer than "
    f"{uncertainty.MIN_QUERIES} queries are untested. The verdict is based on p; the interval is "
    "computed by another method and may include 0 for a significant difference.\n- With fewer than "
    "100 queries, interval and p may be too optimistic if architectures differ on few queries."
)
SEEDS_COVERED = (
    f"- If every trained architecture of a pair has {uncertainty.MIN_SEEDS} seeds or more, "
    "interval and p cover seeds and queries (t test), and the row is about the architectures."
)
SEEDS_NOT_COVERED = (
    f"- If a trained architecture of a pair has fewer than {uncertainty.MIN_SEEDS} seeds, they "
    "cover only the queries (paired permutation test), and the row is about these trained networks."
)
# How one of a pair compares with the other.
RELATIONS = {
    "win": "significantly ahead of",
    "tie": "not significantly different from",
    "loss": "significantly behind",
    "untested": "untested against",
}
# Pairs of searches: how a sentence about the first begins, and what it calls the second.
SEARCH_TEXTS = (
    ("label_lookup", "unrestricted", "Ranking by predicted class probabilities alone is",
     "ranking by embedding"),
    ("soft", "predicted_class", "Searching several probable classes is",
     "searching only the predicted class"),
)  # fmt: skip
# The kinds of copies that the search for copies misses.
LEAKS_MISSED = (
    "The search for copies misses most crops to less than "
    f"{100 * min(leaks.CROPS):.0f} % of the side, shifts by more than "
    f"{100 * leaks.SHIFT / leaks.WIDTH:.0f} % of it, rotations by other angles than multiples of "
    "90°, strong filters, edited content and, among faint, blurred or two-tone pictures, all "
    "copies that are not almost identical. It may take different drawings of one simple shape for "
    "copies."
)
# Said of a comparison that does not cover seeds.
NETWORKS_ONLY = "these trained networks only"


def protocol(name: str) -> str:
    """The explanation of a protocol, and of its intervals, for readers of a report."""
    return f"{PROTOCOL_TEXTS[name]} {INTERVAL_TEXTS[name]}"


def intervals(runs: dict[str, Run]) -> str:
    """What the intervals of each protocol of the study cover, a line each."""
    measured = [name for name in INTERVAL_TEXTS if name in _protocols(runs)]
    return "\n".join(f"- `{name}`: {INTERVAL_TEXTS[name]}" for name in measured)


def _protocols(runs: dict[str, Run]) -> set[str]:
    """The names of the protocols under which runs were measured."""
    return {name for run in runs.values() for name in run.summary["measurement"]["protocols"]}


def frozen(runs: dict[str, Run]) -> str:
    """Which networks have a frozen backbone; empty if none or all of them have one.

    The sentence begins with a space, to follow another one.
    """
    is_frozen = {
        name: run.summary["parameters"]["train"] == "head" for name, run in networks(runs).items()
    }
    if len(set(is_frozen.values())) < 2:
        return ""
    names = join(name for name, frozen in is_frozen.items() if frozen)
    return f" Frozen, with only a head trained: {names}."


def uneven_classes(runs: dict[str, Run]) -> str:
    """A note that classes are uneven and means over classes are shown; empty if they are even."""
    sizes = tables.class_sizes(tables.first_protocol_rows(runs))
    if not tables.are_uneven(sizes):
        return ""
    return (
        f"Classes are uneven: they have {sizes.min():,} to {sizes.max():,} queries. (They count as "
        f"even up to {tables.UNEVEN:g} times as many in one as in another.) A mean over queries "
        "gives large classes more weight. The mean over classes, in which all count the same, is "
        "shown beside it."
    )


def collapsed(runs: dict[str, Run]) -> str:
    """Collapsed networks, and how this shows; empty if there are none."""
    reason_by_name = {}
    for name, run in networks(runs).items():
        final = measurements.select(run.per_query, search="unrestricted")
        for (seed, _, _), rows in final.groupby(["seed", "protocol", "draw"], dropna=False):
            if rows["label"].nunique() > 1 and rows["predicted"].nunique() == 1:
                label = rows["predicted"].iloc[0]
                if label >= 0:
                    classes = run.summary["dataset"]["classes"]
                    reason = f"predicts {classes[label]} for every query (seed {seed})"
                    reason_by_name[name] = reason
        similarity = run.summary.get("mean_similarity", 0)
        if similarity > COLLAPSED:
            reason_by_name[name] = (
                f"gives all images nearly the same embedding (mean similarity: {similarity:.5f})"
            )
    if not reason_by_name:
        return ""
    reasons = "; ".join(f"{name} {reason}" for name, reason in reason_by_name.items())
    return (
        f"**Collapsed:** {reasons}. The scores of such a network say nothing about its "
        "architecture; more epochs or another learning rate may help."
    )


def between_seeds(runs: dict[str, Run]) -> str:
    """The largest difference in mAP between two seeds of one network, for use in a sentence."""
    spreads = {}
    for name, run in networks(runs).items():
        means = tables.average_precision_by_seed(run).mean()
        if len(means) > 1:
            spreads[name] = (means.max() - means.min(), len(means))
    if not spreads:
        return "no architecture here has several seeds, so the variation between seeds is unknown"
    name = max(spreads, key=spreads.get)
    spread, n_seeds = spreads[name]
    return f"the {n_seeds} seeds of {name} alone differ by up to {spread:.3f} in mAP"


def answer(points: pd.DataFrame, pairs: pd.DataFrame) -> str:
    """The highest mAP, its uncertainty and its cost, from `quality_and_cost` and `pairs`."""
    trained = points[~points["is_baseline"]].sort_values("value", ascending=False, kind="stable")
    if trained.empty:
        return "No architecture has results; only baselines do."
    first, *others = trained.index
    outcomes = uncertainty.pair_outcomes(pairs, points.index).loc[first]
    unbeaten = [name for name in points.index[points["is_baseline"]] if outcomes[name] != "win"]
    relations = _relations(outcomes[others], "all other architectures")
    relations += [f"{part} (baseline)" for part in _relations(outcomes[unbeaten])]
    highest = numbers.from_row(trained.iloc[0])
    is_behind = points.loc[points["is_baseline"], "value"].max() > highest.value
    text = f"**{first}** reaches a mean average precision (mAP) of {highest}"
    if others:
        which = " of the networks" if is_behind else ""
        text = f"**{first}** has the highest mean average precision (mAP){which}, {highest}"
    text += f": {'; '.join(relations)}." if relations else "."
    text += "" if others else " No other architecture has results."
    pairs_of_first = pairs[pairs["ahead"].eq(first) | pairs["behind"].eq(first)]
    if any(map(tables.is_of_networks, pairs_of_first.itertuples())):
        text += " With other seeds, the order may differ."
    tied = [name for name in others if outcomes[name] == "tie"]
    milliseconds = trained["milliseconds"]
    fastest = milliseconds[[first, *tied]].idxmin()
    two_names = list(dict.fromkeys([first, fastest, *others]))[:2]
    costs = " and ".join(f"{milliseconds[name]:.3g} ms with {name}" for name in two_names)
    leader = f"Among the statistically tied leaders, {fastest} embeds fastest. " if tied else ""
    return f"{text}\n\n{leader}Embedding an image takes {costs}."


def _relations(outcomes: pd.Series, whole: str = "") -> list[str]:
    """How an architecture compares with others, from its row of `uncertainty.pair_outcomes`.

    `whole` is what more than two others are called if all have the same outcome.
    """
    groups = outcomes.index.groupby(outcomes) if len(outcomes) else {}
    is_whole = whole and len(outcomes) > 2 and len(groups) == 1
    return [
        f"{relation} {whole if is_whole else join(groups[outcome])}"
        for outcome, relation in RELATIONS.items()
        if outcome in groups
    ]


def join(names: Iterable[str]) -> str:
    """Names as in a sentence: `a`, `a and b`, `a, b and c`."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def verdict(pairs: pd.DataFrame, runs: dict[str, Run]) -> str:
    """How many pairs of architectures differ significantly, and how they compare with baselines."""
    architectures = networks(runs)
    if len(architectures) < 2:
        number = "Only one" if architectures else "No"
        return f"{number} architecture has results, so no two can be compared."
    is_pair = pairs["ahead"].isin(architectures) & pairs["behind"].isin(architectures)
    of_architectures = pairs[is_pair]
    n_different = of_architectures["is_significant"].sum()
    n_pairs = len(of_architectures)
    text = f"Of {n_pairs} pairs of architectures, {n_different} differ significantly in mAP"
    outcomes = uncertainty.pair_outcomes(pairs, list(runs)).loc[[*architectures]]
    parts = [
        f"{name} is not significantly ahead of {join(unbeaten)}"
        for name, row in outcomes.drop(columns=[*architectures]).iterrows()
        if (unbeaten := [*row.index[row != "win"]])
    ]
    if not parts and len(runs) > len(architectures):
        parts = ["every architecture is significantly ahead of every baseline in mAP"]
    is_trained = pairs["ahead"].isin(architectures) | pairs["behind"].isin(architectures)
    is_limited = any(map(tables.is_of_networks, pairs[is_trained].itertuples()))
    return f"{'; '.join([text, *parts])}{f' ({NETWORKS_ONLY})' if is_limited else ''}."


def scope(pairs: pd.DataFrame, runs: dict[str, Run]) -> str:
    """What the tests of the pairs, from `tables.pairs`, cover, as a list."""
    scopes = {True: SEEDS_COVERED, False: SEEDS_NOT_COVERED}
    # Seeds hardly matter between two baselines.
    is_trained = pairs["ahead"].isin(networks(runs)) | pairs["behind"].isin(networks(runs))
    covered = pairs[is_trained]["covers_seeds"].unique()
    lines = [SCOPE, *(scopes[is_covered] for is_covered in covered)]
    if False in covered:
        lines.append(f"- With other seeds, the order may differ: {between_seeds(runs)}.")
    return "\n".join(lines)


def hardest_class(rows: pd.DataFrame, runs: dict[str, Run]) -> str:
    """Which class has the lowest mAP in `tables.first_protocol_rows`, a mean over the networks."""
    network_rows = rows[rows["architecture"].isin(networks(runs) or runs)]
    selection = tables.QUALITY["mAP, unrestricted"]
    class_rows = measurements.select(network_rows, by_class=True, **selection)
    means = class_rows.groupby("class")["value"].mean()
    return (
        f"The class with the lowest mAP is {means.idxmin()} ({means.min():.2f}), and that with the "
        f"highest is {means.idxmax()} ({means.max():.2f}), on average over the architectures."
    )


def extremes(queries: pd.DataFrame, name: str) -> str:
    """The range of a run's average precision, from `examples.extremes`, in a sentence."""
    scores = queries.groupby("case")["average_precision"]
    return (
        f"The average precision (AP) of {name} ranges from {scores.min()['worst']:.2f} to "
        f"{scores.max()['best']:.2f}, with a median of {scores.first()['median']:.2f}."
    )


def definitions(scores: pd.DataFrame, run: Run) -> str:
    """How far definitions of mAP@k differ for one ranking, from `compare_definitions`."""
    return (
        f"The mAP of **{run.architecture}** (first seed, protocol `{run.protocol}`) ranges from "
        f"{scores['value'].min():.3f} to {scores['value'].max():.3f}, depending on the definition."
    )


def disagreement(queries: pd.DataFrame, dataset: Dataset) -> str:
    """On which query architectures disagree most, from `examples.disagreements`; may be empty."""
    if queries.empty:
        return ""
    widest = queries.iloc[0]
    name = dataset.classes[dataset.query_labels[widest["query"]]]
    return (
        f"The architectures disagree most on a query of the class {name}: its average precision "
        f"(AP) with {widest['highest']} is {widest['spread']:.2f} above that with "
        f"{widest['lowest']}."
    )


def costliest_confusion(confusions: pd.DataFrame) -> str:
    """Which of `examples.costly_confusions` costs most mAP; empty without any."""
    if confusions.empty:
        return ""
    worst = confusions.loc[confusions["mAP lost"].idxmax()]
    return (
        f"The largest loss attributed to a confusion is that of {worst['architecture']}, which "
        f"returns {worst['returned']} for {worst['class']}: {worst['mAP lost']:.4f} of the mAP."
    )


def largest_hub(hubs: pd.DataFrame) -> str:
    """How often the most frequently returned image is returned, from `examples.hub_table`."""
    name = hubs["most often returned"].idxmax()
    count, wrongly = hubs.loc[name, ["most often returned", "of these wrongly"]]
    return (
        f"The image that is returned most often is among the first ten results of {count:,} "
        f"queries with {name}; it is a miss for {wrongly:,} of them."
    )


def cheapest(costs: pd.DataFrame, runs: dict[str, Run]) -> str:
    """Which trained architecture has the lowest of each of `tables.costs`; empty if fewer than two.

    Training times are compared only if all networks were trained on one machine.
    """
    trained = costs.loc[list(networks(runs))]
    if len(trained) < 2:
        return ""
    measures = [
        (1000 / trained["embedding (images/s)"], "embeds an image fastest ({:.3g} ms)"),
        (trained["query (ms, median)"], "answers a query fastest ({:.3g} ms)"),
    ]
    training_places = {training_place(runs[name].summary) for name in trained.index}
    if len(training_places) == 1:
        text = "trains in the shortest time ({:,.0f} s)"
        measures.insert(0, (trained["training (s)"], text))
    texts_by_name = {}
    for values, text in measures:
        texts_by_name.setdefault(values.idxmin(), []).append(text.format(values.min()))
    parts = [f"**{name}** {join(texts)}" for name, texts in texts_by_name.items()]
    return f"{'; '.join(parts)}."


def describe_run(run: Run) -> str:
    """A run in words, from its numbers: its mAP, and a list of the others."""
    name, summary = run.architecture, run.summary
    speed = summary["speed"]
    quality = tables.quality({name: run}).loc[name]
    rows = tables.first_protocol_rows({name: run})
    n_scored = measurements.select(rows, **tables.QUALITY["mAP, unrestricted"])["n_queries"].iloc[0]
    seeds = summary["measurement"]["seeds"]
    of_seeds = f" (means of {len(seeds)} seeds)" if len(seeds) > 1 else ""
    text = (
        f"**{name}** ranks the whole gallery with a mean average precision (mAP) of "
        f"{quality['mAP, unrestricted']}{of_seeds}."
    )
    lines = []
    if not math.isnan(quality["accuracy"].value):
        lines.append(f"It classifies the queries with an accuracy of {quality['accuracy']}.")
        if not run.is_baseline:
            training_accuracy = numbers.from_row(summary["training_accuracy"])
            lines.append(f"Its accuracy on its training images is {training_accuracy}.")
    if n_left_out := summary["dataset"]["queries"] - n_scored:
        lines.append(
            f"Queries without a relevant image in the gallery were left out: {n_left_out:,}."
        )
    size = f"{summary['index_bytes'] / 1e6:.1f} MB"
    lines.append(
        f"A query takes {milliseconds:.1f} ms (median), and the embeddings of the gallery take "
        f"{size}."
        if (milliseconds := speed["query_milliseconds"])
        else f"The embeddings of the gallery take {size}; the time to make them is unknown."
    )
    if not run.is_baseline:
        seconds = duration(summary["training_seconds"]) + training_place(summary)
        lines.append(f"Training took {seconds}; epochs: {len(run.history)}.")
    return "\n- ".join([f"{text}\n", *lines])


def retrieval_or_classification(pairs: pd.DataFrame) -> str:
    """For which architectures classification is ahead, from `tables.search_pairs`, if any."""
    return "\n\n".join(
        f"{text} {_compare_searches(pairs, one, other, whom)}."
        for one, other, text, whom in SEARCH_TEXTS
        if len(pairs)
    )


def _compare_searches(pairs: pd.DataFrame, one: str, other: str, whom: str) -> str:
    """For which architectures a search is ahead of another one, which is called `whom`."""
    groups, of_networks = {}, []
    for name, compared in pairs.groupby("architecture", sort=False):
        outcome = uncertainty.pair_outcomes(compared, [one, other]).loc[one, other]
        groups.setdefault(outcome, []).append(name)
        if tables.is_of_networks(pair_of(compared, one, other)):
            of_networks.append(name)
    n_all = sum(map(len, groups.values()))
    parts = [
        f"{RELATIONS[outcome]} {'it' if place else whom} for "
        f"{'all architectures' if len(groups[outcome]) == n_all > 2 else join(groups[outcome])}"
        for place, outcome in enumerate(key for key in RELATIONS if key in groups)
    ]
    which = "" if len(of_networks) == n_all else f": {join(of_networks)}" if of_networks else ""
    return "; ".join(parts) + (f" ({NETWORKS_ONLY}{which})" if of_networks else "")


def unseen(runs: dict[str, Run]) -> str:
    """Does an embedding generalise to classes it was not trained on? A line per architecture."""
    means = tables.unseen_class_means(runs)
    architectures = [name for name in means if not runs[name].is_baseline]
    if not architectures:
        return ""
    baselines = [name for name in means if runs[name].is_baseline]
    pairs, lines = uncertainty.compare_classes(means), []
    tested = uncertainty.class_test(means, limits=(0, 1))
    outcomes = uncertainty.pair_outcomes(pairs, [*means])
    for name in architectures:
        relations = "; ".join(_relations(outcomes.loc[name, baselines]))
        comparison = f"; it is {relations}" if relations else ""
        lines.append(
            f"- **{name}** reaches an mAP of {numbers.from_row(tested.loc[name])} on classes "
            f"that it was not trained on{comparison}."
        )
    n_classes, n_draws = tested["n_classes"].iloc[0], len(means.index.unique("draw"))
    lines.append(f"\nClasses: {n_classes}, draws: {n_draws}.")
    if tested["ci_low"].isna().all():
        lines.append(
            "\nThat is too few for an interval or a verdict, which need "
            f"{uncertainty.MIN_CLASSES} classes and {uncertainty.MIN_DRAWS} draws."
        )
    else:
        lines[-1] += (
            " Each mean is over the classes. There are two t tests: over the classes, and over the "
            "draws, each of which trained another network. The interval reaches from the lower of "
            "their low ends to the higher of their high ends; p is the larger one, after Holm's "
            "correction."
        )
    return "\n".join(lines)


def published(runs: dict[str, Run]) -> pd.DataFrame:
    """mAPs from the literature that were measured under a protocol of this study, if any."""
    measured = _protocols(runs)
    dataset = next(iter(runs.values())).summary["dataset"]["parameters"]["dataset"]
    rows = [row for row in PUBLISHED_MAP.items() if dataset == "cifar10" and row[0] in measured]
    return pd.DataFrame(rows, columns=["protocol", "mAP on CIFAR-10"])


def without_results(missing: list[str]) -> str:
    """The architectures without results, a line per reason; empty if there are none."""
    names: dict[str, list[str]] = {}
    for line in missing:
        name, _, reason = line.partition(":")
        names.setdefault(reason, []).append(f"**{name}**")
    return "\n".join(f"- No results for {join(names[reason])}:{reason}" for reason in names)


def describe_leaks(audit: leaks.Audit) -> str:
    """How many queries have copies in the gallery, in one sentence."""
    if audit.leaks.empty:
        return f"No copy of a query was found in the gallery ({audit.n_queries:,} queries)."
    leaking = _share(audit.leaks["query"].nunique(), audit.n_queries)
    return f"Queries with a copy in the gallery: {leaking}."


def leak_details(audit: leaks.Audit) -> str:
    """The kinds of copies, those with another label, and which copies are not found, as a list.

    A query with identical and with near-duplicate copies counts as identical.
    """
    n_leaking, identical = audit.leaks["query"].nunique(), audit.leaks["kind"] == "identical"
    n_identical = audit.leaks.loc[identical, "query"].nunique()
    lines = [
        f"Leaks with identical pixels: {n_identical:,}, near-duplicates: "
        f"{n_leaking - n_identical:,}.",
        "Label conflicts, which have a copy with another label: queries: "
        f"{_n_conflicts(audit.leaks):,}, validation images: "
        f"{_n_conflicts(audit.validation_copies):,}; images of the whole data set, with identical "
        f"pixels: {audit.n_identical_conflicts:,}.",
        "Validation images with a copy in the training images: "
        f"{_share(audit.validation_copies['query'].nunique(), audit.n_validation)}.",
        LEAKS_MISSED,
    ]
    return "\n".join(f"- {line}" for line in lines)


def _n_conflicts(pairs: pd.DataFrame) -> int:
    return pairs.loc[pairs["is_conflict"], "query"].nunique()


def _share(count: int, total: int) -> str:
    share = count / total
    text = "less than 0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"
    return f"{count:,} of {total:,} ({text})"


def pair_of(pairs: pd.DataFrame, one: str, other: str):
    """The row of a pair, whichever of the two is ahead."""
    names = [one, other]
    return next(pairs[pairs["ahead"].isin(names) & pairs["behind"].isin(names)].itertuples())


def relation(pairs: pd.DataFrame, name: str, other: str) -> str:
    """How one of a pair, from `uncertainty.compare`, compares with the other, and by how much."""
    pair = pair_of(pairs, name, other)
    outcome = uncertainty.pair_outcomes(pairs, [name, other]).loc[name, other]
    few = f", fewer than {uncertainty.MIN_QUERIES} queries" if outcome == "untested" else ""
    difference = Estimate(pair.difference, pair.ci_low, pair.ci_high)
    scope = f"; {NETWORKS_ONLY}" if tables.is_of_networks(pair) else ""
    return f"{RELATIONS[outcome]} {other} (difference {difference}{few}{scope})"


def describe_projections(projections: Mapping[str, Projection]) -> str:
    """Whose map of `project_all` preserves neighbourhoods best; empty without any."""
    trustworthiness = {
        name: projection.trustworthiness
        for name, projection in projections.items()
        if not math.isnan(projection.trustworthiness)
    }
    if not trustworthiness:
        return ""
    name = max(trustworthiness, key=trustworthiness.get)
    return (
        f"The map of {name} has the highest trustworthiness, {trustworthiness[name]:.2f} (at "
        "most 1): among these maps, it preserves the neighbourhoods of its embedding best."
    )


def engines(costs: pd.DataFrame, missing: list[str]) -> str:
    """Which engine answers fastest from which size on, of those that find enough.

    Args:
        costs, missing: from `scale.measure_engines`.
    """
    enough = costs[costs["recall"] >= LEAST_RECALL]
    fastest = enough.loc[enough.groupby("size")["p50"].idxmin()].set_index("size")
    winners = fastest["engine"].map("**{}**".format).reindex(sorted(set(costs["size"])))
    winners = winners.fillna("none")
    winners = winners[winners != winners.shift()]
    place = "in the smallest gallery" if len(winners) > 1 else "at every size"
    changes = [f"from {size:,} images on: {name}" for size, name in winners.iloc[1:].items()]
    paragraphs = [f"The fastest engine {place}: {'; '.join([winners.iloc[0], *changes])}."]
    for size, best in fastest.tail(1).iterrows():
        exact = costs.loc[(costs["engine"] == EXACT) & (costs["size"] == size), "p50"]
        text = (
            f"With {size:,} images, {best['engine']} takes {_milliseconds(best['p50'])} per query"
        )
        if best["engine"] != EXACT:
            text += "".join(f" instead of {_milliseconds(value)} with exact" for value in exact)
            text += f", and its recall@10 is {from_row(best, 'recall')}"
        paragraphs.append(f"{text}.")
    paragraphs.append(
        f"Only engines that find at least {100 * LEAST_RECALL:.0f} % of the ten nearest images "
        "count. Times are medians of single queries on the machine named below. Measuring took at "
        f"most {costs['peak_bytes'].max() / 1e9:.1f} GB of memory."
    )
    return "\n\n".join([*paragraphs, *(f"Not measured: {reason}" for reason in missing)])


def larger_galleries(runs: dict[str, Run]) -> str:
    """How long the first network would take to embed `tables.LARGER` galleries; empty if none."""
    speeds = {name: run.summary["speed"]["images_per_second"] for name, run in runs.items()}
    for name, speed in speeds.items():
        if speed:
            hours = (f"{size / speed / 3600:,.0f}" for size in tables.LARGER.values())
            return (
                f"At the speed of {name} on this machine, embedding them would take "
                f"{' and '.join(hours)} hours."
            )
    return ""


def _milliseconds(value: float) -> str:
    return f"{value:.2g} ms" if value < 99.5 else f"{value:,.0f} ms"
