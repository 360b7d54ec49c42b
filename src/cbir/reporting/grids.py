"""Grids: an architecture of a study runs once for every combination of some parameter values."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from cbir.reporting import charts, numbers, tables
from cbir.reporting.display import LOOKS, entry
from cbir.reporting.numbers import from_row, interval_columns
from cbir.reporting.runs import Run, networks, parse_point, training_place
from cbir.reporting.sentences import NETWORKS_ONLY
from cbir.retrieval import uncertainty

ARCHITECTURE = "architecture"
ACCURACY, TRAINING, MAP = "accuracy", "accuracy on training images", "mAP, unrestricted"
SPEED, SECONDS, INDEX = "embedding (images/s)", "training (s)", "index (MB)"
LEARN_FROM = "learn_from"
# The column of the machine of a training, if it differs from that of the run.
PLACE = "training place"


def points_table(runs: dict[str, Run]) -> pd.DataFrame:
    """A row per run: its architecture, its point of the grid, its quality and its cost.

    Baselines, which have no accuracy, are left out. An estimate has the three columns of
    `numbers.interval_columns`. The grid's parameters follow the architecture.
    """
    runs, rows = networks(runs), {}
    parsed = {name: parse_point(name, run.summary["variant"]) for name, run in runs.items()}
    # An architecture may have a grid of its own, without parameters that others vary.
    parameters = dict.fromkeys(key for _, point in parsed.values() for key in point)
    quality, costs = tables.quality(runs), tables.costs(runs)
    for name, run in runs.items():
        architecture, point = parsed[name]
        rows[name] = {
            ARCHITECTURE: architecture,
            **{key: _number(point.get(key) or _constant(run, key)) for key in parameters},
            **quality.loc[name, [ACCURACY, MAP]],
            TRAINING: from_row(run.summary["training_accuracy"]),
            **costs.loc[name, [SPEED, SECONDS, INDEX]],
            PLACE: training_place(run.summary),
        }
    return numbers.split(pd.DataFrame.from_dict(rows, orient="index"))


def dimensions(points: pd.DataFrame) -> list[str]:
    """The parameters that the grid varies."""
    return list(points.columns[1 : points.columns.get_loc(ACCURACY)])


def axis_of(points: pd.DataFrame) -> str:
    """The parameter on the axis of figures: a numeric one if possible, with the most values."""
    return max(
        dimensions(points), key=lambda name: (is_number(points, name), points[name].nunique())
    )


def is_number(points: pd.DataFrame, dimension: str) -> bool:
    """Whether a parameter's values are numbers."""
    return pd.api.types.is_numeric_dtype(points[dimension])


def series(points: pd.DataFrame, axis: str) -> pd.Series:
    """What points that differ only along one axis have in common, by run: `cnn, train all`."""
    others = [name for name in dimensions(points) if name != axis]
    texts = points.apply(lambda row: _describe(row, others), axis=1)
    return points[ARCHITECTURE] + texts.map(lambda text: f", {text}" if text else "")


def readable(points: pd.DataFrame) -> pd.DataFrame:
    """The table of points for readers, with an estimate in one cell."""
    table = points[[ARCHITECTURE, *dimensions(points)]].copy()
    for measure in (ACCURACY, TRAINING, MAP):
        table[measure] = [from_row(row, measure) for _, row in points.iterrows()]
    for cost in (SPEED, SECONDS, INDEX):
        table[cost] = points[cost].map("{:,.1f}".format if cost == INDEX else "{:,.0f}".format)
    table[SECONDS] += points[PLACE]
    return table.set_index(ARCHITECTURE)


def pairs(runs: dict[str, Run], points: pd.DataFrame) -> pd.DataFrame:
    """Runs of one architecture that differ in only one parameter, compared query by query.

    Columns as in `uncertainty.compare`; Holm's correction applies to these pairs.
    """
    compared = tables.pairs({name: runs[name] for name in points.index})
    places = points[[ARCHITECTURE, *dimensions(points)]]
    ahead, behind = (places.loc[compared[side]].to_numpy() for side in ("ahead", "behind"))
    is_other = ahead != behind
    is_fair = ~is_other[:, 0] & (is_other.sum(axis=1) == 1)
    return uncertainty.corrected(compared[is_fair].reset_index(drop=True))


def best_points(points: pd.DataFrame, compared: pd.DataFrame, note: str) -> str:
    """The best point of each architecture, and which others may be as good, in words.

    `points` are from `points_table`, `compared` from `pairs`; `note`, from
    `sentences.between_seeds`, is shown if the tests do not cover seeds.
    """
    groups = points.groupby(ARCHITECTURE, sort=False)
    return "\n\n".join(_best_point(name, group, compared, note) for name, group in groups)


def _best_point(architecture: str, points: pd.DataFrame, compared: pd.DataFrame, note: str) -> str:
    names = dimensions(points)
    texts = {run: f"`{_describe(row, names)}`" for run, row in points.iterrows()}
    best, fastest = points.loc[points[MAP].idxmax()], points.loc[points[SPEED].idxmax()]
    text = (
        f"The highest mAP of **{architecture}** is {from_row(best, MAP)}, with {texts[best.name]}."
    )
    is_tie = ~compared["is_significant"] & compared["p"].notna()
    is_of_best = (compared[["ahead", "behind"]] == best.name).any(axis=1)
    ties = compared[is_tie & is_of_best]
    names_of_ties = ties[["ahead", "behind"]].to_numpy().ravel()
    if rivals := [texts[run] for run in names_of_ties if run != best.name]:
        scope = "" if ties["covers_seeds"].all() else f" ({NETWORKS_ONLY}: {note})"
        text += f"\n- Not significantly different from it: {'; '.join(rivals)}{scope}."
    is_small = compared["p"].isna() & is_of_best
    names_of_small = compared.loc[is_small, ["ahead", "behind"]].to_numpy().ravel()
    if small := [texts[run] for run in names_of_small if run != best.name]:
        text += (
            f"\n- Not tested against it, because there are fewer than {uncertainty.MIN_QUERIES} "
            f"queries: {'; '.join(small)}."
        )
    is_untested = points[names].ne(best[names]).sum(axis=1) > 1
    _, low, high = interval_columns(MAP)
    is_near = points[high] >= best[low]
    if untested := [texts[run] for run in points.index[is_untested & is_near]]:
        text += (
            "\n- Not tested against it, because more than one parameter differs, but with "
            f"overlapping intervals: {'; '.join(untested)}."
        )
    # The number of training images does not change the speed.
    of_speed = [name for name in names if name != LEARN_FROM]
    if (fastest[of_speed] != best[of_speed]).any():
        text += (
            f"\n- The fastest is {texts[fastest.name]}, {fastest[SPEED] / best[SPEED]:.1f} times "
            f"as fast, with an mAP of {fastest[MAP]:.3f}."
        )
    return text


def _constant(run: Run, key: str) -> str:
    """The value of a parameter that a run's own grid does not vary; a dash if it is unknown."""
    if key == LEARN_FROM:
        images = run.summary["dataset"]
        return str(images["train"] + images["validation"])
    parameters = run.summary.get("parameters", {})
    # If only the head is trained, the same names are parameters of the head.
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


def _describe(point: pd.Series, names: list[str]) -> str:
    return ", ".join(f"{name} {point[name]}" for name in names)


def heat_maps(points: pd.DataFrame) -> Figure:
    """Heat maps of accuracy, mAP and images per second, with a column per value of the axis.

    The number of training images does not change the speed: along it, the third map shows the
    accuracy on these images instead.
    """
    dimension = axis_of(points)
    third = TRAINING if dimension == LEARN_FROM else SPEED
    names, columns = series(points, dimension), points[dimension].unique()
    if is_number(points, dimension):
        columns = sorted(columns)
    figure, axes = plt.subplots(
        1, 3, figsize=(13, 1.4 + 0.55 * names.nunique()), sharey=True, layout="constrained"
    )
    for axis, measure in zip(axes, (ACCURACY, MAP, third), strict=True):
        values = points[measure].groupby([names, points[dimension]], sort=False).first().unstack()
        values = values.loc[names.unique(), columns]
        # Speeds differ by factors, so their colours are logarithmic.
        colours = np.log(values) if measure == SPEED else values
        charts.heat_map(axis, colours, values, fmt=",.0f" if measure == SPEED else ".3f")
        axis.set(title=measure, xlabel=dimension, ylabel="")
    return figure


def curves(points: pd.DataFrame) -> Figure | None:
    """Accuracy (dashed on training images) and mAP along an axis of numbers, with intervals.

    If no parameter of the grid is a number, there is no figure.
    """
    dimension = axis_of(points)
    if not is_number(points, dimension):
        return None
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    points = points.sort_values(dimension, kind="stable")
    groups = points.groupby(series(points, dimension), sort=False)
    for (name, group), (colour, marker) in zip(groups, itertools.cycle(LOOKS), strict=False):
        lines = (
            (axes[0], ACCURACY, "-", entry(name)),
            (axes[1], MAP, "-", None),
            (axes[0], TRAINING, "--", entry(f"{name}, training images")),
        )
        for axis, measure, style, label in lines:
            means = group.set_index(dimension)[list(interval_columns(measure))]
            look = {"linestyle": style, "color": colour, "marker": marker, "label": label}
            charts.draw_mean(axis, means.set_axis(charts.INTERVAL, axis="columns"), **look)
    # Sizes and counts are multiples of each other. A logarithmic axis cannot show 0.
    scale = "log" if points[dimension].min() > 0 else "linear"
    for axis, measure in zip(axes, (ACCURACY, MAP), strict=True):
        axis.set(xlabel=dimension, ylabel=measure, xscale=scale)
        axis.set_xticks(sorted(points[dimension].unique()))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.minorticks_off()
        axis.tick_params(axis="x", rotation=45)
    figure.legend(loc="outside lower center", frameon=False, ncols=3)
    return figure
