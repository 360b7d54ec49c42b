"""Sentences of a report, made from its numbers, that claim no more than the numbers do.

An architecture is said to be ahead of another one only where a paired test, corrected for the
number of tests, finds a significant difference.
"""

from collections.abc import Iterator

import pandas as pd

from cbir.images import leaks
from cbir.progress import duration
from cbir.reporting import estimates, tables, tidy
from cbir.reporting.estimates import Estimate, PValue
from cbir.reporting.runs import Run, networks
from cbir.retrieval import uncertainty

# What the numbers of a protocol mean, for readers of a report.
PROTOCOL_TEXTS = {
    "closed": "The protocol is `closed`, the paper's: the gallery holds the training images, and "
    "the queries are test images of the same classes. It shows how well the network retrieves "
    "images that it was trained on.",
    "held_out_gallery": "The protocol is `held_out_gallery`: gallery and queries are test images, "
    "none of which the network was trained on. A query is never among its own results.",
    "unseen_classes": "The protocol is `unseen_classes`: some classes are left out of training. "
    "The queries are test images of these classes, and the gallery holds the training images of "
    "all classes. It shows whether an embedding knows more than the classes of its training.",
    "hashing_1k": "The protocol is `hashing_1k`, that of the deep-hashing literature: 100 queries "
    "per class, all other images as gallery, and 500 images per class for training, of which some "
    "are kept for validation.",
}
# What the vector of a baseline is, for readers of a report.
BASELINE_TEXTS = {
    "random": "A random vector for each image, whatever it shows.",
    "raw_pixels": "The pixel values themselves, minus their mean in the image.",
    "hand_crafted": "A colour histogram and histograms of oriented gradients (HOG), half each.",
}
# mAP over the whole ranking of binary codes, as their own tables give it. Each figure is shown only
# beside the protocol that it was measured under.
PUBLISHED_MAP = {
    "closed": "GreedyHash .944 in its paper, .932 in DeepHash-pytorch's run (10,000 queries, "
    "50,000 training images as gallery).",
    "hashing_1k": "DSDH .790, GreedyHash .817, ADSH .92, which trains on the gallery's labels "
    "(1,000 queries, 5,000 training images, 59,000 in the gallery).",
}
# What the tests of the comparison cover.
SCOPE = (
    "Intervals are 95 % percentile bootstraps over the queries. p is that of a paired permutation "
    "test on the queries, after Holm's correction for all pairs of the table. Both cover the "
    "choice of queries, not that of the seed: other seeds, training settings or images may order "
    "the architectures differently."
)


def protocol(name: str) -> str:
    """What a protocol means for whoever reads its numbers."""
    return PROTOCOL_TEXTS[name]


def in_short(points: pd.DataFrame, pairs: pd.DataFrame) -> str:
    """The answer in short: who has the highest mAP, what training brought, what images cost.

    Args:
        points: from `tables.quality_and_cost`.
        pairs: from `tables.pairs` of the same runs.
    """
    ordered = points.sort_values("value", ascending=False, kind="stable")
    trained, baselines = ordered[~ordered["is_baseline"]], ordered[ordered["is_baseline"]]
    if trained.empty:
        return "No architecture has results, only baselines have."
    first, *others = trained.index
    rivals = {name: _pair_of(pairs, first, name) for name in others}
    sentences = [f"**{first}** has the highest mAP, {estimates.from_row(trained.loc[first])}."]
    sentences += _against_rivals(first, rivals)
    if len(baselines):
        baseline = baselines.index[0]
        relation = _relation(baseline, first, _pair_of(pairs, first, baseline))
        sentences.append(f"The baseline with the highest mAP, {baseline}, is {relation}.")
    tied = [name for name, pair in rivals.items() if not pair.is_significant]
    sentences += _costs(trained, tied)
    return " ".join(sentences)


def _against_rivals(first: str, rivals: dict) -> Iterator[str]:
    """How the architecture of the highest mAP compares with the others, the nearest first."""
    if not rivals:
        yield "No other architecture has results."
        return
    different = [name for name, pair in rivals.items() if pair.is_significant]
    tied = [f"{name} ({_difference(rivals[name])})" for name in rivals if name not in different]
    if tied:
        yield f"It is not significantly different from {_join(tied, 'or')}."
    if different:
        nearest = different[0]
        sentence = f"It is {_relation(first, nearest, rivals[nearest])}"
        if others := different[1:]:
            sentence += f", and significantly different from {_join(others, 'and')} too"
        yield f"{sentence}."


def _costs(trained: pd.DataFrame, tied: list[str]) -> Iterator[str]:
    """What images cost with the first and the next, or with the fastest of those tied with it."""
    first, *others = trained.index
    if tied:
        fastest = trained.loc[[first, *tied], "milliseconds"].idxmin()
        yield f"Among the statistically tied leaders, {fastest} is the fastest."
        others = [fastest] if fastest != first else tied
    costs = [
        f"{row['milliseconds']:.3g} ms and {row['bytes']:,.0f} bytes with {name}"
        for name, row in trained.loc[[first, *others[:1]]].iterrows()
    ]
    yield f"Embedding and storing an image takes {', '.join(costs)}."


def verdict(pairs: pd.DataFrame, runs: dict[str, Run]) -> str:
    """The pairs of architectures in words, a line each, and a line for each baseline.

    Args:
        pairs: from `tables.pairs`.
    """
    baselines = [name for name in runs if name not in networks(runs)]
    n_architectures = len(runs) - len(baselines)
    if n_architectures == 0:
        lines = ["No architecture has results, so there is nothing to compare."]
    elif n_architectures == 1:
        lines = ["Only one architecture has results, so there is nothing to compare it with."]
    else:
        with_baseline = pairs["ahead"].isin(baselines) | pairs["behind"].isin(baselines)
        lines = [_verdict_on_pair(pair) for pair in pairs[~with_baseline].itertuples()]
    lines += [_verdict_on_baseline(name, pairs, baselines) for name in baselines]
    return "\n".join([*filter(None, lines), f"\n{SCOPE}"])


def _verdict_on_pair(pair) -> str:
    numbers = f"{_difference(pair)}, {pair.n_queries:,} queries"
    if pair.is_significant:
        return f"- **{pair.ahead}** is significantly ahead of {pair.behind} in mAP: {numbers}."
    return (
        f"- {pair.ahead} and {pair.behind} are **not significantly different** in mAP: {numbers}."
    )


def _verdict_on_baseline(name: str, pairs: pd.DataFrame, baselines: list[str]) -> str:
    """Which architectures are ahead of a baseline, and which are not."""
    others = [other for other in baselines if other != name]
    with_other = pairs["ahead"].isin(others) | pairs["behind"].isin(others)
    is_ahead, is_behind = pairs["ahead"] == name, pairs["behind"] == name
    is_significant = pairs["is_significant"]
    rivals = pairs["ahead"].where(is_behind, pairs["behind"])
    groups = {
        "significantly ahead of it": is_behind & is_significant,
        "not significantly different from it": (is_ahead | is_behind) & ~is_significant,
        "significantly behind it": is_ahead & is_significant,
    }
    parts = [
        f"{relation}: {', '.join(sorted(rivals[chosen & ~with_other]))}"
        for relation, chosen in groups.items()
        if (chosen & ~with_other).any()
    ]
    return f"- The baseline {name}: {'; '.join(parts)}." if parts else ""


def cheapest(costs: pd.DataFrame) -> str:
    """Which trained architecture has the lowest cost of each kind; empty with fewer than two.

    Args:
        costs: from `tables.costs`.
    """
    trained = costs.loc[:, costs.loc["training (s)"].notna()]
    if len(trained.columns) < 2:
        return ""
    best = {
        "training (s)": trained.loc["training (s)"].idxmin(),
        "embedding (images/s)": trained.loc["embedding (images/s)"].idxmax(),
        "query (ms, median)": trained.loc["query (ms, median)"].idxmin(),
    }
    parts = [
        f"{row}: {name} ({trained.loc[row, name]:,.{tables.COSTS[row]}f})"
        for row, name in best.items()
    ]
    return f"The lowest cost of each kind, measured once: {'; '.join(parts)}."


def describe_runs(runs: dict[str, Run]) -> str:
    """Every run in words, a paragraph each."""
    return "\n\n".join(describe_run(run) for run in runs.values())


def describe_run(run: Run) -> str:
    """A run in words, from its numbers."""
    name, summary = run.architecture, run.summary
    images, speed = summary["dataset"], summary["speed"]
    numbers = tables.quality({name: run}, [name])[name]
    n_seeds = len(summary["measurement"]["seeds"])
    subject, accuracy = f"**{name}**", ""
    if not run.is_baseline:
        accuracy = (
            f"**{name}** classifies {images['queries']:,} queries with an accuracy of "
            f"{numbers['accuracy']}, and its training images with one of "
            f"{estimates.from_row(summary['training_accuracy'])}. "
        )
        subject = "It"
    text = (
        f"{accuracy}{subject} ranks the whole gallery of {images['gallery']:,} images with a mean "
        f"average precision of {numbers['mAP, unrestricted']}"
    )
    text += f" (means of {n_seeds} seeds). " if n_seeds > 1 else ". "
    rows = tables.first_protocol_rows({name: run})
    n_scored = tidy.select(rows, **tables.QUALITY["mAP, unrestricted"])["n_queries"].iloc[0]
    if n_left_out := images["queries"] - n_scored:
        text += (
            f"{n_left_out:,} queries are left out, since they have no relevant image in the "
            "gallery. "
        )
    text += (
        f"A query takes {speed['query_milliseconds']:.1f} ms (median), and the embeddings of the "
        f"gallery take {summary['index_bytes'] / 1e6:.1f} MB."
    )
    if not run.is_baseline:
        n_epochs = len(run.history)
        epochs = f"{n_epochs} epoch{'s' if n_epochs != 1 else ''}"
        text += f" Training: {epochs}, {duration(summary['training_seconds'])}."
    return text


def retrieval_or_classification(runs: dict[str, Run]) -> str:
    """Is it retrieval or just classification? A line for each architecture, from its numbers.

    All tests of these lines are corrected together.
    """
    comparisons = [("unrestricted", "label_lookup"), ("soft", "predicted_class")]
    classifiers = {
        name: run for name, run in runs.items() if "label_lookup" in run.summary["searches"]
    }
    if not classifiers:
        return ""
    tests = {
        (name, searches): _compare_searches(run, *searches)
        for name, run in classifiers.items()
        for searches in comparisons
    }
    corrected = uncertainty.corrected(pd.concat(tests.values(), ignore_index=True))
    pairs = dict(zip(tests, corrected.itertuples(), strict=True))
    embedding, soft = comparisons
    return "\n".join(
        f"- **{name}**: {_embedding_against_label(run, pairs[name, embedding])} "
        f"{_soft_against_predicted_class(run, pairs[name, soft])}"
        for name, run in classifiers.items()
    )


def _embedding_against_label(run: Run, pair) -> str:
    """What the embedding adds to the predicted class probabilities."""
    means = {
        search: tidy.number(uncertainty.intervals(_scores(run, search).to_frame()))
        for search in ("unrestricted", "label_lookup")
    }
    return (
        f"ranking the whole gallery by embedding gives an mAP of {means['unrestricted']}, ranking "
        f"it by predicted class probabilities alone {means['label_lookup']}. "
        f"{_compared('The embedding', pair, 'unrestricted')}"
    )


def _soft_against_predicted_class(run: Run, pair) -> str:
    """Queries lost to a wrong prediction, and what the soft search wins back."""
    counts = tables.lost_and_won_back({run.architecture: run})[run.architecture]
    digits, of_seeds = (0, "") if counts["seeds"] == 1 else (1, ", a mean over seeds")
    n_wrong = f"{counts['lost'] + counts['won back']:,.{digits}f}"
    masses = sorted({chosen["mass"] for chosen in run.summary["calibrations"].values()})
    mass = " to ".join(f"{bound:g}" for bound in dict.fromkeys((masses[0], masses[-1])))
    return (
        f"Searching only the predicted class loses {n_wrong} of {counts['queries']:,} queries "
        f"({percentage(1 - counts['right'] / counts['queries'])}{of_seeds}), whose class is "
        f"predicted wrongly. The soft search takes the likeliest classes up to a total probability "
        f"of {mass} ({percentage(counts['searched'])} of the gallery on average) and reaches the "
        f"true class of {counts['won back']:,.{digits}f} of these queries. "
        f"{_compared('The soft search', pair, 'soft')}"
    )


def _compared(subject: str, pair, search: str) -> str:
    """How the first search of a pair compares with the second one."""
    if not pair.is_significant:
        return f"The two are not significantly different in mAP ({_difference(pair)})."
    direction = "higher" if pair.ahead == search else "lower"
    return f"{subject} has a significantly {direction} mAP: {_difference(pair)}."


def _compare_searches(run: Run, one: str, other: str) -> pd.DataFrame:
    """Two searches, compared query by query."""
    return uncertainty.compare(pd.DataFrame({name: _scores(run, name) for name in (one, other)}))


def _scores(run: Run, search: str) -> pd.Series:
    return tables.average_precision(run, search, run.protocol)


def unseen(runs: dict[str, Run]) -> str:
    """Does an embedding know more than the classes it was trained on? A line per architecture."""
    scores = {
        name: tables.average_precision(run, "unrestricted", "unseen_classes")
        for name, run in runs.items()
        if "unseen_classes" in run.summary["measurement"]["protocols"]
    }
    pairs = uncertainty.compare(pd.DataFrame(scores))
    baselines = [name for name in scores if runs[name].is_baseline]
    lines = []
    for name in (name for name in scores if name not in baselines):
        mean = tidy.number(uncertainty.intervals(scores[name].to_frame()))
        draws = scores[name].groupby(level="draw").mean()
        line = (
            f"- **{name}** reaches an mAP of {mean} on classes that it was not trained on "
            f"({draws.min():.3f} to {draws.max():.3f} by draw; the interval does not cover the "
            "choice of classes)."
        )
        if baselines:
            relations = [
                _relation(name, baseline, _pair_of(pairs, name, baseline)) for baseline in baselines
            ]
            line += f" It is {'; '.join(relations)}."
        lines.append(line)
    return "\n".join(lines)


def published(runs: dict[str, Run]) -> str:
    """Figures from the literature that were measured under a protocol of this study, if any."""
    protocols = {name for run in runs.values() for name in run.summary["measurement"]["protocols"]}
    dataset = next(iter(runs.values())).summary["dataset"]["parameters"]["dataset"]
    if dataset != "cifar10" or not protocols & {*PUBLISHED_MAP}:
        return ""
    lines = [
        f"- {name} on CIFAR-10: {figures}"
        for name, figures in PUBLISHED_MAP.items()
        if name in protocols
    ]
    heading = "Published under the same protocol: mAP over the whole ranking of binary codes:\n"
    return "\n".join([heading, *lines])


def without_results(missing: list[str]) -> str:
    """The architectures that have no results, with the reason; empty where there are none."""
    lines = [line.partition(":")[::2] for line in missing]
    return "\n".join(f"- **{name}** has no results:{reason}" for name, reason in lines)


def _pair_of(pairs: pd.DataFrame, one: str, other: str):
    """The row of a pair, whichever of the two is ahead."""
    both = [one, other]
    return next(pairs[pairs["ahead"].isin(both) & pairs["behind"].isin(both)].itertuples())


def _relation(name: str, other: str, pair) -> str:
    """Where one of a pair stands beside the other."""
    if not pair.is_significant:
        return f"not significantly different from {other} ({_difference(pair)})"
    side = "ahead of" if pair.ahead == name else "behind"
    return f"significantly {side} {other} ({_difference(pair)})"


def _difference(pair) -> str:
    """By how much the mAP of a pair differs, with the interval and the p-value."""
    difference = Estimate(pair.difference, pair.ci_low, pair.ci_high)
    return f"difference {difference}, {p_value(pair.p_holm)}"


def p_value(p: float) -> str:
    """A p-value as it stands in a sentence."""
    text = str(PValue(p))
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def percentage(share: float) -> str:
    """A share in per cent."""
    return f"{100 * share:.1f} %"


def _join(parts: list[str], word: str) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {word} {parts[-1]}"


def describe_leaks(pairs: pd.DataFrame, n_queries: int) -> str:
    """How many queries are in the gallery too; a query with pairs of both kinds is identical.

    Args:
        pairs: from `leaks.audit`.
        n_queries: the number of queries that were looked for.
    """
    n_leaking = pairs["query"].nunique()
    queries = f"{n_queries:,} {'query' if n_queries == 1 else 'queries'}"
    limit = f"Limit: a pixel distance of {leaks.PIXEL_DISTANCE:g} (0: the same, 1.41: unrelated)."
    if not n_leaking:
        return f"None of {queries} is in the gallery, too. {limit}"
    n_identical = pairs.loc[pairs["kind"] == "identical", "query"].nunique()
    n_near = n_leaking - n_identical
    kinds = []
    if n_identical:
        kinds.append(f"{n_identical:,} with identical pixels")
    if n_near:
        kinds.append(f"{n_near:,} as {'a near-duplicate' if n_near == 1 else 'near-duplicates'}")
    leaking_share = n_leaking / n_queries
    share = percentage(leaking_share) if leaking_share >= 0.0005 else "less than 0.1 %"
    verb = "is" if n_leaking == 1 else "are"
    count = f"{n_leaking:,} of {queries} ({share}) {verb} in the gallery, too"
    return f"{count}: {', '.join(kinds)}. {limit}"
