"""Sentences of a report, made from its numbers, that claim no more than the numbers do.

Something is said to be ahead of something else only where a paired test, corrected for the number
of pairs, tells them apart.
"""

import pandas as pd

from cbir.progress import duration
from cbir.reporting import estimates, tables, tidy
from cbir.reporting.estimates import Estimate, PValue
from cbir.reporting.runs import Run
from cbir.retrieval import uncertainty

# What the numbers of a protocol mean, for whoever reads them.
PROTOCOL_TEXTS = {
    "closed": "The protocol is `closed`, the paper's: the gallery is the training images, on "
    "which the network was taught its classes, and the queries are test images of the same "
    "classes. It shows how well the network finds again what it was trained to tell apart.",
    "held_out_gallery": "The protocol is `held_out_gallery`: gallery and queries are test "
    "images, none of which was trained on; a query is not searched for in itself.",
    "hashing_1k": "The protocol is `hashing_1k`, that of the deep-hashing literature: 100 "
    "queries a class, all other images as gallery, 500 images a class to learn from (of which "
    "the validation images are a part).",
}
# mAP over the whole ranking of binary codes, as their own tables give it. Never beside another
# protocol than the one that they were measured with.
PUBLISHED_MAP = {
    "closed": "GreedyHash .944 in its paper, .932 in DeepHash-pytorch's run (10,000 queries, "
    "50,000 training images as gallery).",
    "hashing_1k": "DSDH .790, GreedyHash .817, ADSH .92, which trains on the gallery's labels "
    "(1,000 queries, 5,000 training images, 59,000 in the gallery).",
}


def verdict(compared: pd.DataFrame, results: dict[str, Run]) -> str:
    """The pairs of architectures in words; the baselines in one sentence each.

    Args:
        compared: from `comparison.pairs`.
    """
    baselines = [name for name, result in results.items() if result.is_baseline]
    if not (n_architectures := len(results) - len(baselines)):
        lines = ["No architecture has results, so there is nothing to compare."]
    elif n_architectures == 1:
        lines = ["Only one architecture has results, so there is nothing to compare it with."]
    else:
        of_two = ~(compared["ahead"].isin(baselines) | compared["behind"].isin(baselines))
        lines = [_pair(row) for row in compared[of_two].itertuples()]
    lines += [_baseline(name, compared, baselines) for name in baselines]
    lines.append(
        "\nIntervals are 95 % percentile bootstraps over the queries; p is that of a paired "
        "permutation test on them, after Holm's correction for all pairs of the table. Both cover "
        "the choice of queries, not that of the seed: other seeds, training settings or images may "
        "order the architectures differently."
    )
    return "\n".join(line for line in lines if line)


def _pair(row) -> str:
    tested = f"{_tested(row)}, {row.n_queries:,} queries"
    if row.is_significant:
        return f"- **{row.ahead}** is ahead of {row.behind} in mAP by {tested}."
    return f"- {row.ahead} and {row.behind} are **not told apart**: they differ in mAP by {tested}."


def _baseline(name: str, compared: pd.DataFrame, baselines: list[str]) -> str:
    """Which architectures are ahead of a baseline, and which are not."""
    of_it = (compared["ahead"] == name) | (compared["behind"] == name)
    rivals = compared[of_it & ~(compared["ahead"] + compared["behind"]).isin(_both(baselines))]
    told = rivals["is_significant"]
    ahead = sorted(rivals[told & (rivals["behind"] == name)]["ahead"])
    behind = sorted(rivals[told & (rivals["ahead"] == name)]["behind"])
    tied = rivals[~told]
    tied = sorted({*tied["ahead"], *tied["behind"]} - {name})
    said = [f"ahead of it: {', '.join(ahead)}"] if ahead else []
    said += [f"not told apart from it: {', '.join(tied)}"] if tied else []
    said += [f"behind it: {', '.join(behind)}"] if behind else []
    return f"- The baseline {name}: {'; '.join(said)}." if said else ""


def _both(names: list[str]) -> list[str]:
    return [one + other for one in names for other in names]


def cheapest(costs: pd.DataFrame) -> str:
    """Which architecture costs least, of each kind; nothing where there is but one.

    Args:
        costs: from `comparison.costs`; baselines, which are not trained, are left out.
    """
    trained = costs.loc[:, costs.loc["training (s)"].notna()]
    if len(trained.columns) < 2:
        return ""
    said = []
    for row, best in (
        ("training (s)", trained.loc["training (s)"].idxmin()),
        ("embedding (images/s)", trained.loc["embedding (images/s)"].idxmax()),
        ("query (ms, median)", trained.loc["query (ms, median)"].idxmin()),
    ):
        said.append(f"{row}: {best} ({trained.loc[row, best]:,.{tables.COSTS[row]}f})")
    return "The least cost of each kind, as measured once: " + "; ".join(said) + "."


def describe(name: str, result: Run) -> str:
    """A run in words, from its numbers."""
    summary = result.summary
    rows = tables.headline(result.averaged, {name: result})
    images, speed = summary["dataset"], summary["speed"]
    numbers = tables.quality(rows, [name])[name]
    n_seeds = len(summary["measurement"]["seeds"])
    said = f"**{name}** "
    if not result.is_baseline:
        said += (
            f"predicts the right class for {numbers['accuracy']} of {images['queries']:,} queries. "
            "It "
        )
    said += (
        f"ranks the whole gallery of {images['gallery']:,} images with a mean average precision of "
        f"{numbers['mAP, unrestricted']}"
    )
    said += f" (means of {n_seeds} seeds). " if n_seeds > 1 else ". "
    scored = tidy.select(rows, **tables.QUALITY["mAP, unrestricted"])["n_queries"].iloc[0]
    if left_out := images["queries"] - scored:
        said += f"Left out: {left_out:,} queries that have no relevant image in the gallery. "
    said += (
        f"A query takes {speed['query_milliseconds']:.1f} ms (median), the gallery's embeddings "
        f"{summary['index_bytes'] / 1e6:.1f} MB."
    )
    if not result.is_baseline:
        n_epochs = len(result.history)
        epochs = f"{n_epochs} epoch{'s' if n_epochs != 1 else ''}"
        said += f" Training: {epochs}, {duration(summary['training_seconds'])}."
    return said


def describe_all(results: dict[str, Run]) -> str:
    """Every run in words, a paragraph each."""
    return "\n\n".join(describe(name, result) for name, result in results.items())


def retrieval_or_classification(results: dict[str, Run]) -> str:
    """Is it retrieval or just classification? An answer for each architecture, from its numbers.

    All its tests are corrected together.
    """
    found = {n: each for n, each in results.items() if "label_lookup" in each.summary["searches"]}
    ways = (("unrestricted", "label_lookup"), ("soft", "predicted_class"))
    if not found:
        return ""
    compared = pd.concat(
        [_compare(result, *way) for result in found.values() for way in ways], ignore_index=True
    )
    rows = iter(uncertainty.corrected(compared).itertuples())
    return "\n".join(
        f"- **{name}**: {_beyond_the_label(result, next(rows))} "
        f"{_lost_and_won_back(result, next(rows))}"
        for name, result in found.items()
    )


def _beyond_the_label(result: Run, row) -> str:
    """What the embedding knows beyond the classifier's word."""
    means = {
        name: tidy.number(uncertainty.intervals(_scores(result, name).to_frame()))
        for name in ("unrestricted", "label_lookup")
    }
    said = (
        f"ranking the whole gallery by embedding gives a mAP of {means['unrestricted']}, by the "
        f"classifier's word on the label alone {means['label_lookup']}. "
    )
    if not row.is_significant:
        return said + f"The two are not told apart ({_tested(row)})."
    if row.ahead == "unrestricted":
        return said + f"The embedding knows more than the label: {_tested(row)}."
    return said + f"The embedding knows less than the label: {_tested(row)}."


def _lost_and_won_back(result: Run, row) -> str:
    """Queries lost to a wrong prediction, and what the soft search makes good."""
    counts = tables.lost_and_won_back(result)
    digits = 0 if counts["seeds"] == 1 else 1
    per_seed = "" if counts["seeds"] == 1 else ", a mean over seeds"
    lost = f"{counts['lost'] + counts['won back']:,.{digits}f}"
    masses = sorted({each["mass"] for each in result.summary["calibrations"].values()})
    mass = " to ".join(f"{each:g}" for each in dict.fromkeys((masses[0], masses[-1])))
    said = (
        f"Searching the predicted class alone loses {lost} of {counts['queries']:,} queries "
        f"({share(1 - counts['right'] / counts['queries'])}{per_seed}), whose class is predicted "
        f"wrongly. Searching all classes up to a probability of {mass} "
        f"({share(counts['searched'])} of the gallery on average) reaches the true class of "
        f"{counts['won back']:,.{digits}f} of them"
    )
    if not row.is_significant:
        return f"{said}; in mAP the two are not told apart ({_tested(row)})."
    way = "a gain" if row.ahead == "soft" else "a loss"
    return f"{said}: {way} in mAP of {_tested(row)}."


def _compare(result: Run, one: str, other: str) -> pd.DataFrame:
    """Two ways of searching, query by query."""
    return uncertainty.compare(pd.DataFrame({name: _scores(result, name) for name in (one, other)}))


def _scores(result: Run, search: str) -> pd.Series:
    return tables.average_precision(result, search, result.protocol)


def _tested(row) -> str:
    return f"{Estimate(row.difference, row.ci_low, row.ci_high)}, {chance(row.p_holm)}"


def chance(p: float) -> str:
    """A p-value as it stands in a sentence."""
    said = str(PValue(p))
    return f"p {said}" if said.startswith("<") else f"p = {said}"


def share(part: float) -> str:
    """A share in per cent."""
    return f"{100 * part:.1f} %"


def without_results(missing: list[str]) -> str:
    """The architectures that have no results, with the reason; nothing where there are none."""
    return "\n".join(
        f"- **{each.partition(':')[0]}** has no results:{each.partition(':')[2]}"
        for each in missing
    )


def unseen(results: dict[str, Run]) -> str:
    """Does an embedding know more than the classes it was taught? An answer for each."""
    scores = {
        name: tables.average_precision(result, "unrestricted", "unseen_classes")
        for name, result in results.items()
        if "unseen_classes" in result.summary["measurement"]["protocols"]
    }
    compared = uncertainty.compare(pd.DataFrame(scores))
    baselines = [name for name in scores if results[name].is_baseline]
    lines = []
    for name, values in scores.items():
        if name in baselines:
            continue
        found = uncertainty.intervals(values.to_frame()).assign(search="unrestricted")
        said = [
            f"{'ahead of' if row.ahead == name else 'behind'} {other} by {_tested(row)}"
            if row.is_significant
            else f"not told apart from {other} ({_tested(row)})"
            for row, other in _against(name, compared, baselines)
        ]
        draws = values.groupby(level="draw").mean()
        lines.append(
            f"- **{name}**, asked for classes that it was never taught, reaches a mAP of "
            f"{tidy.number(found)} over all draws ({draws.min():.3f} to {draws.max():.3f} by draw; "
            "the interval does not cover the choice of classes)"
            + (": " + "; ".join(said) if said else "")
            + "."
        )
    return "\n".join(lines)


def _against(name: str, compared: pd.DataFrame, baselines: list[str]) -> list[tuple]:
    """The pairs of one architecture with each baseline, and the baseline's name."""
    return [
        (row, other)
        for row in compared.itertuples()
        for other in baselines
        if {row.ahead, row.behind} == {name, other}
    ]


def published(results: dict[str, Run]) -> str:
    """Figures from the literature that were measured under a protocol of this study, if any."""
    measured = {
        protocol
        for result in results.values()
        for protocol in result.summary["measurement"]["protocols"]
    }
    dataset = next(iter(results.values())).summary["dataset"]["parameters"]["dataset"]
    lines = [
        f"- {name} on CIFAR-10: {figures}"
        for name, figures in PUBLISHED_MAP.items()
        if dataset == "cifar10" and name in measured
    ]
    return "\n".join(
        ["Published under the same protocol: mAP over the whole ranking of binary codes:\n", *lines]
    ) * (len(lines) > 0)


def protocol(name: str) -> str:
    """What a protocol means for whoever reads its numbers."""
    return PROTOCOL_TEXTS[name]


def in_short(table: pd.DataFrame, pairs: pd.DataFrame) -> str:
    """Who comes first, or who is not told apart at the top; what learning brought; what it costs.

    A sentence each.

    Args:
        table: from `cost_plots.points`.
        pairs: from `comparison.pairs` of the same runs.
    """
    networks = table[~table["is_baseline"]].sort_values("value", ascending=False, kind="stable")
    baselines = table[table["is_baseline"]].sort_values("value", ascending=False, kind="stable")
    if networks.empty:
        return "No architecture has results: there are baselines alone."
    first = networks.index[0]
    told = {name: _between(first, name, pairs) for name in networks.index[1:]}
    tied = [name for name, row in told.items() if not row.is_significant]
    said = [_who_is_first(networks, told, tied)]
    if len(baselines):
        said.append(_against_baseline(first, baselines.index[0], pairs))
    said.append(_what_it_costs(networks, tied))
    return " ".join(said)


def _who_is_first(networks: pd.DataFrame, told: dict, tied: list[str]) -> str:
    first, *others = networks.index
    said = f"**{first}** has the highest mAP, {estimates.of(networks.loc[first])}"
    if not others:
        return f"{said}; no other architecture has results."
    if not tied:
        lead = f"ahead of {others[0]}, the next, by {_apart(told[others[0]])}"
        return f"{said}, {lead}; the test tells it apart from {_all(others)}."
    parts = [f"{name} (by {_apart(told[name])})" for name in tied]
    said += f", but is not told apart from {_list(parts)}"
    if len(tied) < len(others):
        nearest = next(name for name in others if name not in tied)
        said += f"; the nearest that is told apart from it, {nearest}, is behind by "
        said += _apart(told[nearest])
    return f"{said}."


def _against_baseline(first: str, baseline: str, pairs: pd.DataFrame) -> str:
    row = _between(first, baseline, pairs)
    said = f"Of the baselines, which learnt nothing, {baseline} has the highest mAP"
    if not row.is_significant:
        return f"{said}, and {first} is not told apart from it (by {_apart(row)})."
    return f"{said}, {_side(row, first)} {first} by {_apart(row)}."


def _what_it_costs(networks: pd.DataFrame, tied: list[str]) -> str:
    """The first against the next; where several are first, the one that embeds fastest of them."""
    first, *others = networks.index
    said = f"{first} takes {_costs(networks.loc[first])}"
    if tied:
        fastest = networks.loc[[first, *tied], "milliseconds"].idxmin()
        said = f"Of those that are not told apart at the top, {fastest} embeds fastest; {said}"
        others = [fastest] if fastest != first else tied
    if others:
        said += f", {others[0]} {_costs(networks.loc[others[0]])}"
    return f"{said}."


def _between(one: str, other: str, pairs: pd.DataFrame):
    """The row of a pair, whoever of the two is ahead."""
    is_it = [{row.ahead, row.behind} == {one, other} for row in pairs.itertuples()]
    return next(pairs[is_it].itertuples())


def _apart(row) -> str:
    """A difference, what it lies between, and how sure it is."""
    return f"{Estimate(row.difference, row.ci_low, row.ci_high)}, {chance(row.p_holm)}"


def _side(row, name: str) -> str:
    """On which side of an architecture the other one of its pair lies."""
    return "below" if row.ahead == name else "above"


def _costs(row: pd.Series) -> str:
    return (
        f"{row['milliseconds']:.3g} ms to embed an image and {row['bytes']:,.0f} bytes to keep it"
    )


def _all(others: list[str]) -> str:
    return "all others" if len(others) > 1 else others[0]


def _list(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} or {parts[-1]}"
