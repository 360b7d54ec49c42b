"""Sentences of a report, generated from its numbers, that claim no more than the numbers show.

An architecture is called ahead of another one only if a paired test, corrected for the number of
tests, finds a significant difference.
"""

import math

import pandas as pd

from cbir.images import leaks
from cbir.progress import duration
from cbir.reporting import estimates, tables, tidy
from cbir.reporting.estimates import Estimate, PValue
from cbir.reporting.runs import Run, networks, training_place
from cbir.retrieval import uncertainty

# What the numbers of a protocol mean, for readers of a report.
PROTOCOL_TEXTS = {
    "closed": "The protocol is `closed`, as in the paper: the gallery contains training images, "
    "and the queries are test images of the same classes. It shows how well the network retrieves "
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
_SAME_CLASSES = "Its intervals cover other queries of the same classes, but no other classes."
INTERVAL_TEXTS = {
    "closed": _SAME_CLASSES,
    "held_out_gallery": f"{_SAME_CLASSES} They hold the gallery fixed, although it consists of the "
    "queries: for new images they are too narrow (docs/evaluation.md shows by how much).",
    "unseen_classes": "Its intervals and tests over all draws cover other classes.",
    "hashing_1k": _SAME_CLASSES,
}
# What the tests of the comparison cover: all of them, those that cover seeds, and the others.
SCOPE = (
    "Values in brackets are 95 % intervals. p is corrected by Holm's method for all pairs of the "
    f"table; pairs with fewer than {uncertainty.MIN_QUERIES} queries are untested. The verdict "
    "is based on p; the interval is computed by another method, so that of a significant "
    "difference may include 0. With fewer than 100 queries, both may be too optimistic "
    "if two architectures differ on few queries."
)
SEEDS_COVERED = (
    f"If each trained side has {uncertainty.MIN_SEEDS} seeds or more, interval and p cover seeds "
    "and queries (t test), and the line is about architectures."
)
SEEDS_NOT_COVERED = (
    f"If a trained side has fewer than {uncertainty.MIN_SEEDS} seeds, they cover only the queries "
    "(paired permutation test), and the line is about these trained networks."
)
# Said of a comparison that does not cover seeds.
NETWORKS_ONLY = "these trained networks only"
# How architectures compare with a baseline, by the outcome of the test.
OUTCOMES = {
    "win": "significantly ahead of it",
    "tie": "not significantly different from it",
    "loss": "significantly behind it",
    "untested": "untested against it",
}


def protocol(name: str) -> str:
    """The explanation of a protocol, and of its intervals, for readers of a report."""
    return f"{PROTOCOL_TEXTS[name]} {INTERVAL_TEXTS[name]}"


def intervals(runs: dict[str, Run]) -> str:
    """What the intervals of each protocol of the study cover, a line each."""
    measured = {name for run in runs.values() for name in run.summary["measurement"]["protocols"]}
    return "\n".join(
        f"- `{name}`: {INTERVAL_TEXTS[name]}" for name in INTERVAL_TEXTS if name in measured
    )


def uneven_classes(runs: dict[str, Run]) -> str:
    """That classes are uneven, so that means over classes are shown; empty if they are not."""
    sizes = tables.class_sizes(tables.first_protocol_rows(runs))
    if not tables.are_uneven(sizes):
        return ""
    return (
        f"Classes are uneven: they have {sizes.min():,} to {sizes.max():,} queries (even: up to "
        f"{tables.UNEVEN:g} times as many in one as in another). A mean over queries is "
        "dominated by the large classes. The mean over classes, in which all count the same, is "
        "shown beside it."
    )


def other_seeds(runs: dict[str, Run], pairs: pd.DataFrame) -> str:
    """The sentence about other seeds; empty if the tests of all pairs cover seeds."""
    if not any(map(tables.is_of_networks, pairs.itertuples())):
        return ""
    return f"With other seeds, the order may differ: {between_seeds(runs)}."


def between_seeds(runs: dict[str, Run]) -> str:
    """How large a difference in mAP between seeds is known to be, for use in a sentence.

    This is the largest difference between two seeds of one network, over all networks.
    """
    spreads = {}
    for name, run in networks(runs).items():
        means = tables.average_precision_by_seed(run, "unrestricted", run.protocol).mean()
        if len(means) > 1:
            spreads[name] = (means.max() - means.min(), len(means))
    if not spreads:
        return "no architecture here has several seeds, so how much seeds differ is unknown"
    name = max(spreads, key=spreads.get)
    spread, n_seeds = spreads[name]
    return f"the {n_seeds} seeds of {name} alone differ by up to {spread:.3f} in mAP"


def in_short(points: pd.DataFrame, pairs: pd.DataFrame, runs: dict[str, Run]) -> str:
    """The answer in short: the highest mAP, the gain over the baselines, and the cost per image.

    Args:
        points: from `tables.quality_and_cost`.
        pairs: from `tables.pairs` of the same runs.
    """
    ordered = points.sort_values("value", ascending=False, kind="stable")
    trained, baselines = ordered[~ordered["is_baseline"]], ordered[ordered["is_baseline"]]
    if trained.empty:
        return "No architecture has results; only baselines do."
    first, *others = trained.index
    outcomes = uncertainty.pair_outcomes(pairs, trained.index).loc[first]
    tied, untested = ([*outcomes.index[outcomes == name]] for name in ("tie", "untested"))
    different = [name for name in others if name not in (*tied, *untested)]
    relations = [relation(pairs, first, name) for name in [*tied, *untested, *different[:1]]]
    if further := different[1:]:
        relations.append(f"significantly different from {_names(pairs, further, first)}")
    rivals = f"It is {'; '.join(relations)}."
    if not others:
        rivals = "No other architecture has results."
    sentences = [f"**{first}** has the highest mAP, {estimates.from_row(trained.iloc[0])}.", rivals]
    for baseline in baselines.index[:1]:
        text = relation(pairs, baseline, first)
        sentences.append(f"The baseline with the highest mAP, {baseline}, is {text}.")
    is_shown = pairs["ahead"].eq(first) | pairs["behind"].eq(first)
    sentences.append(other_seeds(runs, pairs[is_shown]))
    fastest = trained.loc[[first, *tied], "milliseconds"].idxmin()
    if tied:
        sentences.append(f"Among the statistically tied leaders, {fastest} is the fastest.")
    shown = list(dict.fromkeys([first, fastest, *others]))[:2]
    costs = [
        f"{row['milliseconds']:.3g} ms and {row['bytes']:,.0f} bytes with {name}"
        for name, row in trained.loc[shown].iterrows()
    ]
    sentences.append(f"Embedding and storing an image takes {'; '.join(costs)}.")
    return " ".join(filter(None, sentences))


def verdict(pairs: pd.DataFrame, runs: dict[str, Run]) -> str:
    """The pairs of architectures in words, a line each, and a line for each baseline.

    Args:
        pairs: from `tables.pairs`.
    """
    architectures = networks(runs)
    baselines = [name for name in runs if name not in architectures]
    is_pair = pairs["ahead"].isin(architectures) & pairs["behind"].isin(architectures)
    lines = [
        f"- **{pair.ahead}** is {relation(pairs, pair.ahead, pair.behind)}."
        for pair in pairs[is_pair].itertuples()
    ]
    if len(architectures) < 2:
        number = "Only one" if architectures else "No"
        lines = [f"{number} architecture has results, so there is nothing to compare."]
    outcomes = uncertainty.pair_outcomes(pairs, list(runs))
    for baseline in baselines if architectures else []:
        groups = {}
        for name in architectures:
            groups.setdefault(outcomes.loc[name, baseline], []).append(name)
        parts = [
            f"{text}: {_names(pairs, groups[outcome], baseline)}"
            for outcome, text in OUTCOMES.items()
            if outcome in groups
        ]
        lines.append(f"- The baseline {baseline}: {'; '.join(parts)}.")
    scopes = {True: SEEDS_COVERED, False: SEEDS_NOT_COVERED}
    # Seeds hardly matter between two baselines.
    of_trained = pairs[pairs["ahead"].isin(architectures) | pairs["behind"].isin(architectures)]
    scope = [SCOPE, *(scopes[covered] for covered in of_trained["covers_seeds"].unique())]
    scope = " ".join(filter(None, [*scope, other_seeds(runs, pairs)]))
    return "\n".join([*lines, f"\n{scope}"])


def cheapest(costs: pd.DataFrame, runs: dict[str, Run]) -> str:
    """Which trained architecture has the lowest cost of each kind; empty with fewer than two.

    Training times are compared only if all networks were trained on one machine.

    Args:
        costs: from `tables.costs` of the same runs.
    """
    trained = costs[list(networks(runs))]
    if len(trained.columns) < 2:
        return ""
    best = {
        "training (s)": trained.loc["training (s)"].idxmin(),
        "embedding (images/s)": trained.loc["embedding (images/s)"].idxmax(),
        "query (ms, median)": trained.loc["query (ms, median)"].idxmin(),
    }
    places = {training_place(runs[name].summary) for name in trained}
    if len(places) > 1:
        del best["training (s)"]
    parts = [
        f"{row}: {name} ({trained.loc[row, name]:,.{tables.COSTS[row]}f})"
        for row, name in best.items()
    ]
    text = f"The lowest costs, each measured once: {'; '.join(parts)}."
    if len(places) > 1:
        text += " Training times are not comparable, because machines differ."
    return text


def describe_run(run: Run) -> str:
    """A run in words, from its numbers."""
    name, summary = run.architecture, run.summary
    images, speed = summary["dataset"], summary["speed"]
    quality = tables.quality({name: run}, [name])[name]
    rows = tables.first_protocol_rows({name: run})
    n_scored = tidy.select(rows, **tables.QUALITY["mAP, unrestricted"])["n_queries"].iloc[0]
    seeds = summary["measurement"]["seeds"]
    of_seeds = f" (means of {len(seeds)} seeds)" if len(seeds) > 1 else ""
    sentences = [
        f"**{name}** ranks the whole gallery of {images['gallery']:,} images with a mean average "
        f"precision of {quality['mAP, unrestricted']}{of_seeds}."
    ]
    if not math.isnan(quality["accuracy"].value):
        of_training = ""
        if not run.is_baseline:
            training_accuracy = estimates.from_row(summary["training_accuracy"])
            of_training = f", and its training images with an accuracy of {training_accuracy}"
        sentences.append(
            f"It classifies {images['queries']:,} queries with an accuracy of "
            f"{quality['accuracy']}{of_training}."
        )
    if n_left_out := images["queries"] - n_scored:
        sentences.append(
            f"Queries without a relevant image in the gallery were left out: {n_left_out:,}."
        )
    size = f"{summary['index_bytes'] / 1e6:.1f} MB"
    sentences.append(
        f"A query takes {milliseconds:.1f} ms (median), and the embeddings of the gallery take "
        f"{size}."
        if (milliseconds := speed["query_milliseconds"])
        else f"The embeddings of the gallery take {size}; the time to make them is unknown."
    )
    if not run.is_baseline:
        seconds = duration(summary["training_seconds"]) + training_place(summary)
        sentences.append(f"Training took {seconds}; epochs: {len(run.history)}.")
    return " ".join(sentences)


def retrieval_or_classification(runs: dict[str, Run]) -> str:
    """Is it retrieval or just classification? The answer, and a line for each architecture.

    All tests of these lines are corrected together.
    """
    comparisons = [["unrestricted", "label_lookup"], ["soft", "predicted_class"]]
    scores, tests = {}, {}
    for name, run in runs.items():
        if "label_lookup" in run.summary["searches"]:
            searches = [search for comparison in comparisons for search in comparison]
            scores[name] = pd.DataFrame(
                {search: tables.average_precision(run, search, run.protocol) for search in searches}
            )
            by_seed = {
                search: tables.average_precision_by_seed(run, search, run.protocol)
                for search in searches
            }
            compared = [
                uncertainty.compare(
                    {search: by_seed[search] for search in pair}, same_networks=True
                )
                for pair in comparisons
            ]
            tests[name] = pd.concat(compared)
    if not tests:
        return ""
    pairs = uncertainty.corrected(pd.concat(tests))
    lines = [
        f"- **{name}**: {_embedding_against_label(scores[name], pairs.loc[name])} "
        f"{_soft_against_predicted_class(runs[name], pairs.loc[name])}"
        for name in tests
    ]
    answer = _lookup_against_embedding({name: pairs.loc[name] for name in tests})
    return "\n".join([f"{answer}\n", *lines, f"\n{other_seeds(runs, pairs)}"]).rstrip()


def _lookup_against_embedding(tests: dict[str, pd.DataFrame]) -> str:
    """For which architectures a search without embeddings is ahead, in a sentence."""
    groups, of_networks = {}, []
    for name, pairs in tests.items():
        outcomes = uncertainty.pair_outcomes(pairs, ["label_lookup", "unrestricted"])
        groups.setdefault(outcomes.loc["label_lookup", "unrestricted"], []).append(name)
        if tables.is_of_networks(pair_of(pairs, "label_lookup", "unrestricted")):
            of_networks.append(name)
    parts = [
        f"{text} for {_with_scope(groups[outcome], of_networks)}"
        for outcome, text in OUTCOMES.items()
        if outcome in groups
    ]
    return (
        f"Predicted class probabilities alone, compared with the embedding, are {'; '.join(parts)}."
    )


def _embedding_against_label(scores: pd.DataFrame, pairs: pd.DataFrame) -> str:
    """What the embedding adds to the predicted class probabilities."""
    means = uncertainty.intervals(scores).apply(estimates.from_row, axis=1)
    return (
        f"ranking the whole gallery by embedding gives an mAP of {means['unrestricted']}, and "
        f"ranking it by predicted class probabilities {means['label_lookup']}: unrestricted is "
        f"{relation(pairs, 'unrestricted', 'label_lookup')}."
    )


def _soft_against_predicted_class(run: Run, pairs: pd.DataFrame) -> str:
    """Queries lost to a wrong prediction, and what the soft search wins back."""
    counts = tables.lost_and_won_back({run.architecture: run})[run.architecture]
    digits, of_seeds = (0, "") if counts["seeds"] == 1 else (1, ", a mean over seeds")
    n_wrong = f"{counts['lost'] + counts['won back']:,.{digits}f}"
    mass = estimates.span([chosen["mass"] for chosen in run.summary["calibrations"].values()], 2)
    return (
        f"Searching only the predicted class loses {n_wrong} of {counts['queries']:,} queries "
        f"({percentage(1 - counts['right'] / counts['queries'])}{of_seeds}), because their class "
        f"is predicted wrongly. The soft search includes the most probable classes up to a total "
        f"probability of {mass} ({percentage(counts['searched'])} of the gallery on average), "
        f"which contain the true class of {counts['won back']:,.{digits}f} of these queries: soft "
        f"is {relation(pairs, 'soft', 'predicted_class')}."
    )


def unseen(runs: dict[str, Run]) -> str:
    """Does an embedding generalise to classes it was not trained on? A line per architecture."""
    means = tables.unseen_class_means(runs)
    architectures = [name for name in means if not runs[name].is_baseline]
    if not architectures:
        return ""
    baselines = [name for name in means if runs[name].is_baseline]
    pairs, lines = uncertainty.compare_classes(means), []
    tested = uncertainty.class_test(means, limits=(0, 1))
    for name in architectures:
        by_draw = estimates.span(means[name].groupby(level="draw").mean(), 3)
        line = (
            f"- **{name}** reaches an mAP of {estimates.from_row(tested.loc[name])} on classes "
            f"that it was not trained on ({by_draw} by draw)."
        )
        if baselines:
            relations = [relation(pairs, name, baseline) for baseline in baselines]
            line += f" It is {'; '.join(relations)}."
        lines.append(line)
    n_classes, n_draws = tested["n_classes"].iloc[0], len(means.index.unique("draw"))
    counts = f"Classes: {n_classes}, draws: {n_draws}."
    if tested["ci_low"].isna().all():
        scope = (
            f"{counts} That is too few for an interval or a verdict, which need "
            f"{uncertainty.MIN_CLASSES} classes and {uncertainty.MIN_DRAWS} draws."
        )
    else:
        scope = (
            f"{counts} Each mean is over the classes. Two t tests, over the classes and over the "
            "draws, each of which trained another network, give the interval (the wider one) and p "
            "(the larger one, after Holm's correction)."
        )
    return "\n".join([*lines, f"\n{scope}"])


def published(runs: dict[str, Run]) -> str:
    """Figures from the literature that were measured under a protocol of this study, if any."""
    protocols = {name for run in runs.values() for name in run.summary["measurement"]["protocols"]}
    dataset = next(iter(runs.values())).summary["dataset"]["parameters"]["dataset"]
    lines = [
        f"- {name} on CIFAR-10: {figures}"
        for name, figures in PUBLISHED_MAP.items()
        if dataset == "cifar10" and name in protocols
    ]
    heading = "Published mAP over the whole ranking of binary codes, under the same protocol:\n"
    return "\n".join([heading, *lines]) if lines else ""


def without_results(missing: list[str]) -> str:
    """The architectures without results, with the reason; empty if there are none."""
    lines = [line.partition(":")[::2] for line in missing]
    return "\n".join(f"- **{name}** has no results:{reason}" for name, reason in lines)


def describe_leaks(audit: leaks.Audit) -> str:
    """How many images have copies, how many copies have another label, and what is not found.

    A query with identical and with near-duplicate copies counts as identical.
    """
    pairs = audit.leaks
    n_leaking = pairs["query"].nunique()
    n_identical = pairs.loc[pairs["kind"] == "identical", "query"].nunique()
    found = f"none found among {audit.n_queries:,}"
    if n_leaking:
        found = (
            f"{_share(n_leaking, audit.n_queries)}; with identical pixels: {n_identical:,}, "
            f"near-duplicates: {n_leaking - n_identical:,}"
        )
    crop, shift = 100 * min(leaks.CROPS), 100 * leaks.SHIFT / leaks.WIDTH
    return (
        f"Queries that are also in the gallery: {found}; the search misses most crops to less than "
        f"{crop:.0f} % of the side, shifts by more than {shift:.0f} % of it, rotations by "
        "other angles than multiples of 90°, strong filters, edited content and, among faint, "
        "blurred or two-tone pictures, all copies that are not almost identical. "
        f"Label conflicts, copies with another label: {_n_conflicts(pairs):,} of these queries, "
        f"{_n_conflicts(audit.validation_copies):,} validation images, and, with identical pixels, "
        f"{audit.n_identical_conflicts:,} images of the whole data set. "
        "Validation images with a copy in the training images: "
        f"{_share(audit.validation_copies['query'].nunique(), audit.n_validation)}."
    )


def _n_conflicts(pairs: pd.DataFrame) -> int:
    return pairs.loc[pairs["is_conflict"], "query"].nunique()


def _share(count: int, total: int) -> str:
    share = count / total
    text = "less than 0.1 %" if 0 < share < 0.0005 else percentage(share)
    return f"{count:,} of {total:,} ({text})"


def p_value(p: float) -> str:
    """A p-value, or why there is none, for use in a sentence."""
    if math.isnan(p):
        return f"fewer than {uncertainty.MIN_QUERIES} queries"
    text = str(PValue(p))
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def percentage(share: float) -> str:
    """A share in per cent."""
    return f"{100 * share:.1f} %"


def pair_of(pairs: pd.DataFrame, one: str, other: str):
    """The row of a pair, whichever of the two is ahead."""
    both = [one, other]
    return next(pairs[pairs["ahead"].isin(both) & pairs["behind"].isin(both)].itertuples())


def relation(pairs: pd.DataFrame, name: str, other: str, label: str = "") -> str:
    """How one of a pair compares with the other, with the difference and its p-value.

    Args:
        pairs: from `uncertainty.compare`.
        label: what the other one is called; its name by default.
    """
    pair = pair_of(pairs, name, other)
    outcome, evidence = "not significantly different from", p_value(pair.p_holm)
    if pair.is_significant:
        outcome = f"significantly {'ahead of' if pair.ahead == name else 'behind'}"
    if math.isnan(pair.p):
        outcome = "untested against"
        evidence = "too few classes" if "n_classes" in pairs else evidence
    difference = Estimate(pair.difference, pair.ci_low, pair.ci_high)
    numbers = f"difference {difference}, {evidence}"
    scope = f"; {NETWORKS_ONLY}" if tables.is_of_networks(pair) else ""
    return f"{outcome} {label or other} ({numbers}{scope})"


def _names(pairs: pd.DataFrame, names: list[str], other: str) -> str:
    """Names with one outcome against another architecture; marks those about networks only."""
    of_networks = [name for name in names if tables.is_of_networks(pair_of(pairs, name, other))]
    return _with_scope(names, of_networks)


def _with_scope(names: list[str], of_networks: list[str]) -> str:
    """Names, with a mark of those whose comparison is about the trained networks only."""
    text, marked = ", ".join(names), [name for name in names if name in of_networks]
    if not marked:
        return text
    which = "" if len(marked) == len(names) else f" for {', '.join(marked)}"
    return f"{text} ({NETWORKS_ONLY}{which})"
