"""Figures of outcomes: who wins against whom, and what becomes of queries predicted wrongly."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from cbir.reporting.estimates import Estimate
from cbir.reporting.plots import HIT, MISS


def of_queries(counts: dict[str, dict[str, float]]) -> Figure:
    """How many queries are predicted wrongly, and how many of these the soft search wins back.

    Args:
        counts: by architecture, from `comparison.lost_and_won_back`.
    """
    figure, axis = plt.subplots(figsize=(8, 0.5 * len(counts) + 1))
    for height, found in enumerate(counts.values()):
        parts = found["won back"], found["lost"]
        for part, start, colour, hatch, name in zip(
            parts, (0, parts[0]), (HIT, MISS), ("", "//"), ("won back", "lost"), strict=True
        ):
            label = name if height == 0 else None
            axis.barh(height, part, left=start, color=colour, hatch=hatch, label=label)
        text = (
            f" {sum(parts):.3g} of {found['queries']:,}; {100 * found['searched']:.1f} % searched"
        )
        axis.text(sum(parts), height, text, va="center", size=9)
    axis.set_yticks(range(len(counts)), counts)
    axis.set_ylim(len(counts) - 0.5, -0.5)
    axis.set_xlim(0, 1.6 * max([1, *(f["won back"] + f["lost"] for f in counts.values())]))
    axis.grid(visible=False, axis="y")
    axis.set(xlabel="queries whose class is predicted wrongly")
    if counts:
        axis.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def of_pairs(table: pd.DataFrame, pairs: pd.DataFrame) -> Figure:
    """Who is told apart from whom: a win, a tie or a loss of the row against the column.

    Args:
        table: from `uncertainty.outcomes`.
        pairs: from `uncertainty.compare`.
    """
    signs = {"win": 1, "tie": 0, "loss": -1}
    values = table.replace(signs).apply(pd.to_numeric, errors="coerce")
    texts = table.fillna("").astype(str)
    for pair in pairs.itertuples():
        found = Estimate(pair.difference, pair.ci_low, pair.ci_high)
        texts.loc[pair.ahead, pair.behind] += "\n" + f"{found:+}".replace(" ", "\n")
        texts.loc[pair.behind, pair.ahead] += "\n" + f"{-found:+}".replace(" ", "\n")
    side = 1.25 * len(table) + 1.5
    figure, axis = plt.subplots(figsize=(side, 0.65 * side))
    colours = ListedColormap([MISS, "#F2F2F2", HIT])
    sns.heatmap(
        values, annot=texts, fmt="", cmap=colours, vmin=-1, vmax=1, cbar=False, linewidths=1,
        annot_kws={"size": 8}, ax=axis,
    )  # fmt: skip
    axis.grid(visible=False)
    axis.set(xlabel="against", ylabel="")
    axis.tick_params(axis="y", rotation=0)
    axis.tick_params(axis="x", rotation=30)
    return figure
