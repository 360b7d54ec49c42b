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
from cbir.reporting.runs import Run, networks, parse_point
from cbir.retrieval import uncertainty

ARCHITECTURE = "architecture"
ACCURACY, TRAINING, MAP = "accuracy", "accuracy on training images", "mAP, unrestricted"
SPEED, SECONDS, INDEX = "embedding (images/s)", "training (s)", "index (MB)"
LEARN_FROM = "learn_from"
# The paper says of its depth that it "can cause overfitting on smaller datasets".
DEEP = "vgg16"
MEASURED = [ACCURACY, TRAINING, MAP]
GRID_COSTS = [SPEED, SECONDS, INDEX]


def points_table(runs: dict[str, Run]) -> pd.DataFrame:
    """A row per run: its architecture, its point of the grid, what it reached and what it costs.

    Baselines, which have no accuracy, are left out. An estimate has three columns: its name, its
    name with `LOW`, and with `HIGH`. The parameters of the grid stand after the architecture.
    """
    runs, rows = networks(runs), {}
    parsed = {name: parse_point(name, run.summary["variant"]) for name, run in runs.items()}
    # An architecture may have a grid of its own, and not vary what others do.
    parameters = dict.fromkeys(key for _, point in parsed.values() for key in point)
    for name, run in runs.items():
        architecture, point = parsed[name]
        scores = tables.first_protocol_rows({name: run})
        row = {ARCHITECTURE: architecture}
        row |= {key: _number(point.get(key) or _constant(run, key)) for key in parameters}
        for measure in (ACCURACY, MAP):
            (estimate,) = tidy.select(scores, **tables.QUALITY[measure]).to_dict("records")
            row |= _columns(measure, estimate)
        row |= _columns(TRAINING, run.summary["training_accuracy"])
        costs = tables.costs({name: run})[name]
        rows[name] = row | {cost: costs[cost] for cost in GRID_COSTS}
    return pd.DataFrame.from_dict(rows, orient="index")


def dimensions(points: pd.DataFrame) -> list[str]:
    """The parameters that the grid varies."""
    return list(points.columns[1 : points.columns.get_loc(ACCURACY)])


def axis_of(points: pd.DataFrame) -> str:
    """The parameter that figures run along: a numeric one if there is one, with most values."""
    return max(
        dimensions(points), key=lambda name: (is_number(points, name), points[name].nunique())
    )


def is_number(points: pd.DataFrame, dimension: str) -> bool:
    """Whether a parameter's values are numbers, which have an order."""
    return pd.api.types.is_numeric_dtype(points[dimension])


def series(points: pd.DataFrame, axis: str = "") -> dict[str, pd.DataFrame]:
    """The points that differ along one axis alone (by default `axis_of`), by what they share."""
    axis = axis or axis_of(points)
    others = [name for name in dimensions(points) if name != axis]
    groups = {}
    for (architecture, *values), group in points.groupby([ARCHITECTURE, *others], sort=False):
        settings = [f"{key} {value}" for key, value in zip(others, values, strict=True)]
        groups[", ".join([architecture, *settings])] = group
    return groups


def readable(points: pd.DataFrame) -> pd.DataFrame:
    """The table of points as a reader sees it, with an estimate in one cell."""
    shown = points[[ARCHITECTURE, *dimensions(points)]].copy()
    for measure in MEASURED:
        shown[measure] = [_estimate(row, measure) for _, row in points.iterrows()]
    for cost in GRID_COSTS:
        shown[cost] = points[cost].map("{:,.1f}".format if cost == INDEX else "{:,.0f}".format)
    return shown.set_index(ARCHITECTURE)


def pairs(runs: dict[str, Run], points: pd.DataFrame) -> pd.DataFrame:
    """Runs of one architecture that differ in one parameter alone, compared query by query.

    Columns as in `uncertainty.compare`; Holm's correction is for these pairs.
    """
    every_pair = tables.pairs({name: runs[name] for name in points.index})
    is_fair = [
        _differ_in_one(points.loc[pair.ahead], points.loc[pair.behind], dimensions(points))
        for pair in every_pair.itertuples()
    ]
    return uncertainty.corrected(every_pair.loc[is_fair].reset_index(drop=True))


def best_points(points: pd.DataFrame, compared: pd.DataFrame) -> str:
    """The best point of each architecture, and which others may be as good, in words.

    Args:
        points: from `points_table`.
        compared: from `pairs`.
    """
    paragraphs = []
    for architecture, group in points.groupby(ARCHITECTURE, sort=False):
        best = group[MAP].idxmax()
        row, fastest = group.loc[best], group.loc[group[SPEED].idxmax()]
        sentences = [
            f"**{architecture}**: the highest mAP is {_estimate(row, MAP)}, with "
            f"{_describe(row, points)} (accuracy {_estimate(row, ACCURACY)}, {row[SPEED]:,.0f} "
            "images/s)."
        ]
        ties = compared[~compared["is_significant"]]
        rivals = [
            *ties.loc[ties["ahead"] == best, "behind"], *ties.loc[ties["behind"] == best, "ahead"],
        ]  # fmt: skip
        if rivals:
            names = "; ".join(_describe(group.loc[rival], points) for rival in rivals)
            sentences.append(f"Not significantly different from it: {names}.")
        if untested := _untested(group, best, dimensions(points)):
            names = "; ".join(_describe(group.loc[rival], points) for rival in untested)
            sentences.append(
                "Not tested against it, since more than one parameter differs, though the "
                f"intervals overlap: {names}."
            )
        if fastest.name != best:
            sentences.append(
                f"The fastest is {_describe(fastest, points)}, {fastest[SPEED] / row[SPEED]:.1f} "
                f"times as fast, with an mAP of {_estimate(fastest, MAP)}."
            )
        paragraphs.append(" ".join(sentences))
    return "\n\n".join(paragraphs)


def gaps(points: pd.DataFrame) -> pd.DataFrame:
    """How far accuracy on training images lies above accuracy on the queries.

    The interval reaches from the low end of the one minus the high end of the other to the
    opposite. The two are means over different images, so that it is wider than a 95 % interval of
    their difference: where two such intervals are disjoint, the gaps differ.

    Returns:
        A row per run: series (its architecture, and its point except for `learn_from`),
        learn_from, value, ci_low, ci_high.
    """
    parts = [group.assign(series=name) for name, group in series(points, LEARN_FROM).items()]
    rows = pd.concat(parts).sort_values(LEARN_FROM, kind="stable")
    return rows[["series", LEARN_FROM]].assign(
        value=rows[TRAINING] - rows[ACCURACY],
        ci_low=rows[TRAINING + LOW] - rows[ACCURACY + HIGH],
        ci_high=rows[TRAINING + HIGH] - rows[ACCURACY + LOW],
    )


def overfitting(points: pd.DataFrame, settings: pd.DataFrame) -> str:
    """Each network's gap between training and test accuracy, and how VGG16's compares.

    Args:
        points: from `points_table`; without `learn_from` among its dimensions, the text is empty.
        settings: of the same runs, from `provenance.networks_table`.
    """
    if LEARN_FROM not in dimensions(points):
        return ""
    table = gaps(points)
    lines = [
        "How far accuracy on the training images lies above accuracy on the queries, by the number "
        "of images for training and validation. The interval in brackets is a wide one, from the "
        "ends of the intervals of the two accuracies:\n"
    ]
    for name in series(points, LEARN_FROM):
        rows = table[table["series"] == name]
        values = [
            f"{tidy.number(rows.loc[[run]])} with {rows.loc[run, LEARN_FROM]:,}"
            for run in rows.index
        ]
        lines.append(f"- **{name}**: {', '.join(values)}")
    smallest = table[table[LEARN_FROM] == table[LEARN_FROM].min()]
    settings = settings.loc[smallest.index].set_axis(smallest["series"])
    smallest = smallest.set_index("series")
    lines += [
        f"\n{_against_others(name, smallest, settings)}"
        for name in smallest.index
        if name.startswith(DEEP)
    ]
    return "\n".join(lines).rstrip()


def _against_others(name: str, smallest: pd.DataFrame, settings: pd.DataFrame) -> str:
    """How a deep network's gap compares with others, and in what else these networks differ."""
    row = smallest.loc[name]
    others = smallest[~smallest.index.str.startswith(DEEP)]
    below, above = others["ci_high"] < row["ci_low"], others["ci_low"] > row["ci_high"]
    groups = {
        "larger than that of": others.index[below],
        "smaller than that of": others.index[above],
        "not clearly different from that of": others.index[~(below | above)],
    }
    parts = [f"{how} {', '.join(names)}" for how, names in groups.items() if len(names)]
    if not parts:
        return ""
    text = f"With {row[LEARN_FROM]:,.0f} images, the gap of {name} is {'; '.join(parts)}."
    compared = provenance.differing_settings(settings.loc[[name, *others.index]])
    if differing := ", ".join(column for column in compared if column != "backbone"):
        text += f" The networks differ in more than depth, which may explain the gap: {differing}."
    return text


def _untested(group: pd.DataFrame, best: str, dimensions: list[str]) -> list[str]:
    """Runs of an architecture that `pairs` leaves out, and that may be as good as the best."""
    top = group.loc[best]
    return [
        name
        for name, row in group.iterrows()
        if name != best
        and row[MAP + HIGH] >= top[MAP + LOW]
        and not _differ_in_one(row, top, dimensions)
    ]


def _estimate(row: pd.Series, measure: str) -> Estimate:
    return estimates.from_row(row, (measure, measure + LOW, measure + HIGH))


def _columns(name: str, estimate: dict) -> dict:
    return {
        name: estimate["value"], name + LOW: estimate["ci_low"], name + HIGH: estimate["ci_high"],
    }  # fmt: skip


def _constant(run: Run, key: str) -> str:
    """The value of a parameter that a run's own grid does not vary; a dash where it is unknown."""
    if key == LEARN_FROM:
        images = run.summary["dataset"]
        return str(images["train"] + images["validation"])
    parameters = run.summary.get("parameters", {})
    # In the training of a head alone, the same names are parameters of the head.
    training = parameters.get("training", {}) if parameters.get("train") != "head" else {}
    value = (training | parameters).get(key, "–")
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _differ_in_one(one: pd.Series, other: pd.Series, dimensions: list[str]) -> bool:
    is_same = one[ARCHITECTURE] == other[ARCHITECTURE]
    return is_same and sum(one[name] != other[name] for name in dimensions) == 1


def _describe(row: pd.Series, points: pd.DataFrame) -> str:
    return ", ".join(f"{name} {row[name]}" for name in dimensions(points))


def heat_maps(points: pd.DataFrame) -> Figure:
    """Accuracy, mAP and images per second: a column for each value of the axis."""
    dimension, groups = axis_of(points), series(points)
    figure, axes = plt.subplots(
        1, 3, figsize=(13, 1.4 + 0.55 * len(groups)), sharey=True, layout="constrained"
    )
    for axis, measure, style in zip(
        axes, (ACCURACY, MAP, SPEED), (".3f", ".3f", ",.0f"), strict=True
    ):
        values = pd.DataFrame(
            {name: group.set_index(dimension)[measure] for name, group in groups.items()},
            index=pd.unique(points[dimension]),
        ).T
        if is_number(points, dimension):
            values = values.sort_index(axis="columns")
        # Speeds differ by factors.
        colours = np.log(values) if measure == SPEED else values
        sns.heatmap(
            colours, annot=values, fmt=style, cmap="Blues", cbar=False, linewidths=1, ax=axis
        )
        axis.set(title=measure, xlabel=dimension, ylabel="")
        axis.tick_params(axis="y", rotation=0)
    return figure


def curves(points: pd.DataFrame) -> Figure | None:
    """Accuracy (dashed on training images) and mAP along an axis of numbers, with intervals.

    Where no parameter of the grid is a number, there is no figure.
    """
    dimension = axis_of(points)
    if not is_number(points, dimension):
        return None
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    looks = zip(itertools.cycle(PALETTE), itertools.cycle("os^Dv*P"), strict=False)
    for (name, unordered), (colour, marker) in zip(series(points).items(), looks, strict=False):
        group = unordered.sort_values(dimension)
        for axis, measure, style, label in (
            (axes[0], ACCURACY, "-", name),
            (axes[1], MAP, "-", None),
            (axes[0], TRAINING, "--", f"{name}, training images"),
        ):
            x = group[dimension]
            axis.plot(x, group[measure], style, color=colour, marker=marker, label=label)
            axis.fill_between(
                x, group[measure + LOW], group[measure + HIGH], color=colour, alpha=0.15
            )
    # Sizes and counts are multiples of each other; a logarithmic axis has no place for 0.
    scale = "log" if points[dimension].min() > 0 else "linear"
    for axis, measure in zip(axes, (ACCURACY, MAP), strict=True):
        axis.set(xlabel=dimension, ylabel=measure, xscale=scale)
        axis.set_xticks(sorted(points[dimension].unique()))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.minorticks_off()
        axis.tick_params(axis="x", rotation=45)
    figure.legend(loc="outside lower center", frameon=False, ncols=3)
    return figure
