"""Sentences of a report, made from its numbers, that claim no more than the numbers do.

Something is said to be ahead of something else only where a paired test, corrected for the number
of pairs, tells them apart.
"""

import pandas as pd

from cbir.images import protocols
from cbir.progress import duration
from cbir.reporting import comparison, tidy
from cbir.reporting.estimates import Estimate, PValue
from cbir.reporting.results import Result
from cbir.retrieval import uncertainty


def verdict(compared: pd.DataFrame, results: dict[str, Result]) -> str:
    """The pairs of architectures in words; the controls in one sentence each.

    Args:
        compared: from `comparison.pairs`.
    """
    controls = [name for name, result in results.items() if result.is_control]
    if not (n_architectures := len(results) - len(controls)):
        lines = ["No architecture has results, so there is nothing to compare."]
    elif n_architectures == 1:
        lines = ["Only one architecture has results, so there is nothing to compare it with."]
    else:
        of_two = ~(compared["ahead"].isin(controls) | compared["behind"].isin(controls))
        lines = [_pair(row) for row in compared[of_two].itertuples()]
    lines += [_control(name, compared, controls) for name in controls]
    lines.append(
        "\nIntervals are 95 % percentile bootstraps over the queries; p is that of a paired "
        "permutation test on them, after Holm's correction for all pairs of the table. Both cover "
        "the choice of queries, not that of the seed: other seeds, training settings or images may "
        "order the architectures differently."
    )
    return "\n".join(line for line in lines if line)


def _pair(row) -> str:
    tested = f"{_tested(row)}, {row.n_queries:,} queries"
    if row.is_told_apart:
        return f"- **{row.ahead}** is ahead of {row.behind} in mAP by {tested}."
    return f"- {row.ahead} and {row.behind} are **not told apart**: they differ in mAP by {tested}."


def _control(name: str, compared: pd.DataFrame, controls: list[str]) -> str:
    """Which architectures are ahead of a control, and which are not."""
    of_it = (compared["ahead"] == name) | (compared["behind"] == name)
    rivals = compared[of_it & ~(compared["ahead"] + compared["behind"]).isin(_both(controls))]
    told = rivals["is_told_apart"]
    ahead = sorted(rivals[told & (rivals["behind"] == name)]["ahead"])
    behind = sorted(rivals[told & (rivals["ahead"] == name)]["behind"])
    tied = rivals[~told]
    tied = sorted({*tied["ahead"], *tied["behind"]} - {name})
    said = [f"ahead of it: {', '.join(ahead)}"] if ahead else []
    said += [f"not told apart from it: {', '.join(tied)}"] if tied else []
    said += [f"behind it: {', '.join(behind)}"] if behind else []
    return f"- The control {name}: {'; '.join(said)}." if said else ""


def _both(names: list[str]) -> list[str]:
    return [one + other for one in names for other in names]


def cheapest(costs: pd.DataFrame) -> str:
    """Which architecture costs least, of each kind; nothing where there is but one.

    Args:
        costs: from `comparison.costs`; controls, which are not trained, are left out.
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
        said.append(f"{row}: {best} ({trained.loc[row, best]:,.{comparison.COSTS[row]}f})")
    return "The least cost of each kind, as measured once: " + "; ".join(said) + "."


def describe(name: str, result: Result) -> str:
    """A run in words, from its numbers."""
    summary = result.summary
    rows = comparison.headline(result.averaged, {name: result})
    images, speed = summary["dataset"], summary["speed"]
    numbers = comparison.quality(rows, [name])[name]
    n_seeds = len(summary["asked"]["seeds"])
    said = f"**{name}** "
    if not result.is_control:
        said += (
            f"predicts the right class for {numbers['accuracy']} of {images['queries']:,} queries. "
            "It "
        )
    said += (
        f"ranks the whole gallery of {images['gallery']:,} images with a mean average precision of "
        f"{numbers['mAP, unrestricted']}"
    )
    said += f" (means of {n_seeds} seeds). " if n_seeds > 1 else ". "
    scored = tidy.select(rows, **comparison.QUALITY["mAP, unrestricted"])["n_queries"].iloc[0]
    if left_out := images["queries"] - scored:
        said += f"Left out: {left_out:,} queries that have no relevant image in the gallery. "
    said += (
        f"A query takes {speed['query_milliseconds']:.1f} ms (median), the gallery's embeddings "
        f"{summary['index_bytes'] / 1e6:.1f} MB."
    )
    if not result.is_control:
        n_epochs = len(result.history)
        epochs = f"{n_epochs} epoch{'s' if n_epochs != 1 else ''}"
        said += f" Training: {epochs}, {duration(summary['training_seconds'])}."
    return said


def describe_all(results: dict[str, Result]) -> str:
    """Every run in words, a paragraph each."""
    return "\n\n".join(describe(name, result) for name, result in results.items())


def retrieval_or_classification(results: dict[str, Result]) -> str:
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


def _beyond_the_label(result: Result, row) -> str:
    """What the embedding knows beyond the classifier's word."""
    means = {
        name: tidy.number(uncertainty.intervals(_scores(result, name).to_frame()))
        for name in ("unrestricted", "label_lookup")
    }
    said = (
        f"ranking the whole gallery by embedding gives a mAP of {means['unrestricted']}, by the "
        f"classifier's word on the label alone {means['label_lookup']}. "
    )
    if not row.is_told_apart:
        return said + f"The two are not told apart ({_tested(row)})."
    if row.ahead == "unrestricted":
        return said + f"The embedding knows more than the label: {_tested(row)}."
    return said + f"The embedding knows less than the label: {_tested(row)}."


def _lost_and_won_back(result: Result, row) -> str:
    """Queries lost to a wrong prediction, and what the soft search makes good."""
    counts = comparison.lost_and_won_back(result)
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
    if not row.is_told_apart:
        return f"{said}; in mAP the two are not told apart ({_tested(row)})."
    way = "a gain" if row.ahead == "soft" else "a loss"
    return f"{said}: {way} in mAP of {_tested(row)}."


def _compare(result: Result, one: str, other: str) -> pd.DataFrame:
    """Two ways of searching, query by query."""
    return uncertainty.compare(pd.DataFrame({name: _scores(result, name) for name in (one, other)}))


def _scores(result: Result, search: str) -> pd.Series:
    return comparison.average_precision(result, search, result.protocol)


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


def unseen(results: dict[str, Result]) -> str:
    """Does an embedding know more than the classes it was taught? An answer for each."""
    scores = {
        name: comparison.average_precision(result, "unrestricted", "unseen_classes")
        for name, result in results.items()
        if "unseen_classes" in result.summary["asked"]["protocols"]
    }
    compared = uncertainty.compare(pd.DataFrame(scores))
    controls = [name for name in scores if results[name].is_control]
    lines = []
    for name, values in scores.items():
        if name in controls:
            continue
        found = uncertainty.intervals(values.to_frame()).assign(search="unrestricted")
        said = [
            f"{'ahead of' if row.ahead == name else 'behind'} {other} by {_tested(row)}"
            if row.is_told_apart
            else f"not told apart from {other} ({_tested(row)})"
            for row, other in _against(name, compared, controls)
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


def _against(name: str, compared: pd.DataFrame, controls: list[str]) -> list[tuple]:
    """The pairs of one architecture with each control, and the control's name."""
    return [
        (row, other)
        for row in compared.itertuples()
        for other in controls
        if {row.ahead, row.behind} == {name, other}
    ]


def published(results: dict[str, Result]) -> str:
    """Figures from the literature that were measured under a protocol of this study, if any."""
    asked = {each for result in results.values() for each in result.summary["asked"]["protocols"]}
    dataset = next(iter(results.values())).summary["dataset"]["parameters"]["dataset"]
    lines = [
        f"- {name} on CIFAR-10: {figures}"
        for name, figures in protocols.PUBLISHED.items()
        if dataset == "cifar10" and name in asked
    ]
    return "\n".join(
        ["Published under the same protocol: mAP over the whole ranking of binary codes:\n", *lines]
    ) * (len(lines) > 0)


def protocol(name: str) -> str:
    """What a protocol means for whoever reads its numbers."""
    return protocols.EXPLAINED[name]
