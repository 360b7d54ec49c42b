"""Figures of a grid: heat maps of what every point reached, curves along its axis."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from cbir.reporting import grid_report
from cbir.reporting.grid_report import ACCURACY, HIGH, LOW, MAP, SPEED, TRAINING
from cbir.reporting.plots import PALETTE


def heat_maps(runs: pd.DataFrame) -> Figure:
    """Accuracy, mAP and images a second: a column for each value of the axis.

    Args:
        runs: from `grid_report.table`.
    """
    axis_name = grid_report.axis_of(runs)
    groups = grid_report.series(runs)
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
        if grid_report.is_number(runs, axis_name):
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
    axis_name = grid_report.axis_of(runs)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    groups = grid_report.series(runs)
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
