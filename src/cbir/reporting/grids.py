"""Grids: one architecture of a study, run once for every combination of some parameters' values."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from cbir.reporting import estimates, provenance, tables, tidy
from cbir.reporting.display import PALETTE
from cbir.reporting.estimates import HIGH, LOW, Estimate
from cbir.reporting.runs import Run
from cbir.retrieval import uncertainty
from cbir.studies.params import point_name, point_text


def parse(run: str, words: str) -> tuple[str, dict[str, str]]:
    """The architecture's file and the point of a run, from its name and its variant."""
    point = dict(each.partition("=")[::2] for each in words.split())
    return run.removesuffix(point_name("", point)), point


ARCHITECTURE = "architecture"
ACCURACY, TRAINING, MAP = "accuracy", "accuracy on training images", "mAP, unrestricted"
SPEED, SECONDS, INDEX = "embedding (images/s)", "training (s)", "index (MB)"
LEARN_FROM = "learn_from"
# Of whose depth the paper says that it "can cause overfitting on smaller datasets".
DEEP = "vgg16"
MEASURED = [ACCURACY, TRAINING, MAP]
GRID_COSTS = [SPEED, SECONDS, INDEX]


def grid_table(results: dict[str, Run]) -> pd.DataFrame:
    """A row a run: its architecture, its point of the grid, what it reached and what it costs.

    Baselines, which have no accuracy, are left out.
    Numbers that have an interval stand in three columns: the name alone, with `LOW`, with `HIGH`.
    """
    rows = {}
    results = {name: result for name, result in results.items() if not result.is_baseline}
    points = {name: parse(name, each.summary["variant"]) for name, each in results.items()}
    # An architecture may have a grid of its own, and not vary what others do.
    known = dict.fromkeys(key for _, point in points.values() for key in point)
    for name, result in results.items():
        architecture, point = points[name]
        scores = tables.headline(result.averaged, {name: result})
        row = {ARCHITECTURE: architecture}
        row |= {key: _read(point.get(key) or _fixed(result, key)) for key in known}
        for measure in (ACCURACY, MAP):
            (found,) = tidy.select(scores, **tables.QUALITY[measure]).to_dict("records")
            row |= _with_interval(measure, found)
        row |= _with_interval(TRAINING, result.summary["training_accuracy"])
        cost = tables.costs({name: result})[name]
        rows[name] = row | {each: cost[each] for each in GRID_COSTS}
    return pd.DataFrame.from_dict(rows, orient="index")


def dimensions(runs: pd.DataFrame) -> list[str]:
    """The parameters that differ, from `table`."""
    return list(runs.columns[1 : runs.columns.get_loc(ACCURACY)])


def axis_of(runs: pd.DataFrame) -> str:
    """The parameter that figures run along: of those with numbers, the one with most values."""
    found = dimensions(runs)
    return max(found, key=lambda each: (is_number(runs, each), runs[each].nunique()))


def is_number(runs: pd.DataFrame, dimension: str) -> bool:
    """Whether a parameter's values are numbers, which have an order."""
    return pd.api.types.is_numeric_dtype(runs[dimension])


def series(runs: pd.DataFrame, axis: str = "") -> dict[str, pd.DataFrame]:
    """The runs that differ along an axis alone (`axis_of` by default), by what they share."""
    axis = axis or axis_of(runs)
    others = [ARCHITECTURE, *(each for each in dimensions(runs) if each != axis)]
    groups = runs.groupby(others, sort=False)
    return {
        ", ".join([common[0], *(f"{key} {value}" for key, value in zip(others[1:], common[1:],
                                                                        strict=True))]): group
        for common, group in groups
    }  # fmt: skip


def readable(runs: pd.DataFrame) -> pd.DataFrame:
    """`table` as a reader sees it, a number and its interval in one cell."""
    shown = runs[[ARCHITECTURE, *dimensions(runs)]].copy()
    for measure in MEASURED:
        shown[measure] = [_estimate(row, measure) for _, row in runs.iterrows()]
    for cost in GRID_COSTS:
        shown[cost] = runs[cost].map("{:,.1f}".format if cost == INDEX else "{:,.0f}".format)
    return shown.set_index(ARCHITECTURE)


def grid_pairs(results: dict[str, Run], runs: pd.DataFrame) -> pd.DataFrame:
    """Runs of one architecture that differ in one parameter alone, compared query by query.

    Columns as in `uncertainty.compare`; Holm's correction is for these pairs.
    """
    found = tables.pairs({name: results[name] for name in runs.index})
    is_fair = [_differ_in_one(runs.loc[row.ahead], runs.loc[row.behind], dimensions(runs))
               for row in found.itertuples()]  # fmt: skip
    found = found.loc[is_fair].reset_index(drop=True)
    return uncertainty.corrected(found)


def answer(runs: pd.DataFrame, compared: pd.DataFrame) -> str:
    """Which point is best for each architecture, and whether the next is told apart from it."""
    said = []
    for architecture, own in runs.groupby(ARCHITECTURE, sort=False):
        best = own[MAP].idxmax()
        row = own.loc[best]
        ties = compared[~compared["is_significant"]]
        rivals = [*ties.loc[ties["ahead"] == best, "behind"],
                  *ties.loc[ties["behind"] == best, "ahead"]]  # fmt: skip
        text = (
            f"**{architecture}**: the highest mAP is {_estimate(row, MAP)}, with "
            f"{_point(row, runs)} (accuracy {_estimate(row, ACCURACY)}, {row[SPEED]:,.0f} "
            "images/s). "
        )
        if rivals:
            told = "; ".join(_point(own.loc[each], runs) for each in rivals)
            text += f"Not told apart from it: {told}. "
        if untested := _untested(own, best, dimensions(runs)):
            told = "; ".join(_point(own.loc[each], runs) for each in untested)
            text += (
                "Not tested against it, as more than one parameter differs, though the intervals "
                f"overlap: {told}. "
            )
        fastest = own[SPEED].idxmax()
        if fastest != best:
            quick = own.loc[fastest]
            text += (
                f"Fastest: {_point(quick, runs)}, {quick[SPEED] / row[SPEED]:.1f} times as fast, "
                f"with an mAP of {_estimate(quick, MAP)}."
            )
        said.append(text.strip())
    return "\n\n".join(said)


def gaps(runs: pd.DataFrame) -> pd.DataFrame:
    """How far accuracy on the images learnt from lies above accuracy on the queries.

    The interval reaches from the lowest end of the one minus the highest of the other to the
    opposite. The two are means over different images, so that this is wider than a 95 % interval of
    their difference need be: where two such intervals lie apart, the gaps do.

    Returns:
        A row a run, with the columns `series` (its architecture, and its point but for
        `learn_from`), `learn_from`, `value`, `ci_low` and `ci_high`.
    """
    parts = [own.assign(series=name) for name, own in series(runs, LEARN_FROM).items()]
    found = pd.concat(parts).sort_values(LEARN_FROM, kind="stable")
    return found[["series", LEARN_FROM]].assign(
        value=found[TRAINING] - found[ACCURACY],
        ci_low=found[TRAINING + LOW] - found[ACCURACY + HIGH],
        ci_high=found[TRAINING + HIGH] - found[ACCURACY + LOW],
    )


def overfitting(runs: pd.DataFrame, described: pd.DataFrame) -> str:
    """Each network's gap between training and test accuracy, and what this says of VGG16.

    Args:
        runs: from `table`.
        described: the same runs, from `origins.table`: in what else they differ.
    """
    if LEARN_FROM not in dimensions(runs):
        return ""
    found = gaps(runs)
    said = [
        "How far accuracy on the images learnt from lies above accuracy on the queries, by the "
        "number of images to learn from and to validate on. In brackets stands an interval that is "
        "wide rather than narrow, from the ends of the two accuracies' intervals:\n"
    ]
    for name in series(runs, LEARN_FROM):
        own = found[found["series"] == name]
        told = ", ".join(
            f"{tidy.number(own.loc[[run]])} with {own.loc[run, LEARN_FROM]:,}" for run in own.index
        )
        said.append(f"- **{name}**: {told}")
    smallest = found[found[LEARN_FROM] == found[LEARN_FROM].min()]
    described = described.loc[smallest.index].set_axis(smallest["series"])
    smallest = smallest.set_index("series")
    for name in (each for each in smallest.index if each.startswith(DEEP)):
        said.append(f"\n{_against_others(name, smallest, described)}")
    return "\n".join(said).rstrip()


def _against_others(name: str, smallest: pd.DataFrame, described: pd.DataFrame) -> str:
    """Whose gaps a network's is told apart from, with the fewest images; nothing without others.

    And in what these networks differ besides their depth, by each of which a gap can change too.
    """
    own = smallest.loc[name]
    others = smallest[~smallest.index.str.startswith(DEEP)]
    below, above = others["ci_high"] < own["ci_low"], others["ci_low"] > own["ci_high"]
    groups = {
        "larger than that of": others.index[below],
        "smaller than that of": others.index[above],
        "not told apart from that of": others.index[~(below | above)],
    }
    told = "; ".join(f"{how} {', '.join(names)}" for how, names in groups.items() if len(names))
    if not told:
        return ""
    text = f"With {own[LEARN_FROM]:,.0f} images, the gap of {name} is {told}."
    compared = provenance.differing_settings(described.loc[[name, *others.index]])
    if apart := ", ".join(each for each in compared if each != "backbone"):
        text += f" These differ in more than their depth, which the gap may come from too: {apart}."
    return text


def _untested(own: pd.DataFrame, best: str, dimensions: list[str]) -> list[str]:
    """Runs of an architecture that `pairs` leaves out, and that may be as good as the best."""
    row = own.loc[best]
    return [
        name
        for name, each in own.iterrows()
        if name != best
        and each[MAP + HIGH] >= row[MAP + LOW]
        and not _differ_in_one(each, row, dimensions)
    ]


def _estimate(row: pd.Series, measure: str) -> Estimate:
    return estimates.of(row, (measure, measure + LOW, measure + HIGH))


def _with_interval(name: str, found: dict) -> dict:
    return {name: found["value"], name + LOW: found["ci_low"], name + HIGH: found["ci_high"]}


def _fixed(result: Run, key: str) -> str:
    """What a parameter is where a run's own grid does not vary it; a dash where none can tell."""
    if key == LEARN_FROM:
        images = result.summary["dataset"]
        return str(images["train"] + images["validation"])
    given = result.summary.get("parameters", {})
    # The training of a head alone calls by the same names what are parameters of the head.
    last = given.get("training", {}) if given.get("train") != "head" else {}
    return point_text((last | given).get(key, "–"))


def _read(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _differ_in_one(one: pd.Series, other: pd.Series, dimensions: list[str]) -> bool:
    is_same = one[ARCHITECTURE] == other[ARCHITECTURE]
    return is_same and sum(one[each] != other[each] for each in dimensions) == 1


def _point(row: pd.Series, runs: pd.DataFrame) -> str:
    return ", ".join(f"{each} {row[each]}" for each in dimensions(runs))


def heat_maps(runs: pd.DataFrame) -> Figure:
    """Accuracy, mAP and images a second: a column for each value of the axis.

    Args:
        runs: from `grid_report.table`.
    """
    axis_name = axis_of(runs)
    groups = series(runs)
    figure, axes = plt.subplots(
        1, 3, figsize=(13, 1.4 + 0.55 * len(groups)), sharey=True, layout="constrained"
    )
    for axis, measure, style in zip(
        axes, (ACCURACY, MAP, SPEED), (".3f", ".3f", ",.0f"), strict=True
    ):
        values = pd.DataFrame(
            {name: own.set_index(axis_name)[measure] for name, own in groups.items()},
            index=pd.unique(runs[axis_name]),
        ).T
        if is_number(runs, axis_name):
            values = values.sort_index(axis="columns")
        # A speed's factors are what matters, not its differences.
        colours = np.log(values) if measure == SPEED else values
        sns.heatmap(
            colours, annot=values, fmt=style, cmap="Blues", cbar=False, linewidths=1, ax=axis
        )
        axis.set(title=measure, xlabel=axis_name, ylabel="")
        axis.tick_params(axis="y", rotation=0)
    return figure


def curves(runs: pd.DataFrame) -> Figure:
    """Accuracy (dashed on training images) and mAP along an axis of numbers, with intervals.

    Args:
        runs: from `grid_report.table`.
    """
    axis_name = axis_of(runs)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    groups = series(runs)
    markers = itertools.cycle("os^Dv*P")
    for (name, group), colour, marker in zip(
        groups.items(), itertools.cycle(PALETTE), markers, strict=False
    ):
        own = group.sort_values(axis_name)
        drawn = ((axes[0], ACCURACY, "-", name), (axes[1], MAP, "-", None),
                 (axes[0], TRAINING, "--", f"{name}, training images"))  # fmt: skip
        for axis, measure, style, label in drawn:
            axis.plot(own[axis_name], own[measure], style, color=colour, marker=marker, label=label)
            axis.fill_between(
                own[axis_name], own[measure + LOW], own[measure + HIGH], color=colour, alpha=0.15
            )
    # Sizes and counts are multiples of each other; a 0 among them has no place on such an axis.
    scale = "log" if runs[axis_name].min() > 0 else "linear"
    for axis, measure in zip(axes, (ACCURACY, MAP), strict=True):
        axis.set(xlabel=axis_name, ylabel=measure, xscale=scale)
        axis.set_xticks(sorted(runs[axis_name].unique()))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.minorticks_off()
        axis.tick_params(axis="x", rotation=45)
    figure.legend(loc="outside lower center", frameon=False, ncols=3)
    return figure
