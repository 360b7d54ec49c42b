"""Why queries match their results, shown: maps over both, how they stood the test, in words."""

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from cbir.images.data import Dataset
from cbir.reporting import tidy
from cbir.reporting.claims import chance
from cbir.reporting.plots import HIT, MISS, NEUTRAL
from cbir.retrieval import uncertainty

if TYPE_CHECKING:  # which needs Keras
    from cbir.explain import Explanation

COLOURS = "magma"
WAYS = {"deletion": "taken away", "insertion": "put back"}
DOES = {
    "deletion": "Taking away first what the maps mark lowers the similarity",
    "insertion": "Putting back first what the maps mark raises the similarity",
}
# What a map is compared with: how it is called, its areas, and what the map is better by.
AGAINST = {
    "maps of chance": ("random", "gain"),
    "maps of other pairs": ("other", "gain_over_other"),
}
# What the bright end of a map means, by kind.
BRIGHT = {"similarity": "raises the similarity most", "attention": "weighs most"}
DARK = {"similarity": "does not raise it", "attention": "weighs nothing"}


def pairs(dataset: Dataset, explanation: "Explanation", most: int = 6) -> Figure:
    """Pairs in columns: the query, its map over it, the result, its map over it.

    Args:
        most: pairs shown, the first ones.
    """
    shown = range(min(most, len(explanation.queries)))
    figure, axes = plt.subplots(
        4, len(shown), figsize=(1.1 * len(shown), 5.2), squeeze=False, layout="constrained"
    )
    for pair, column in zip(shown, axes.T, strict=True):
        query = dataset.queries[explanation.queries[pair]]
        result = dataset.gallery[explanation.results[pair]]
        is_hit = dataset.labels[query] == dataset.labels[result]
        found = f"{'✓' if is_hit else '✗'} {explanation.similarities[pair]:.2f}"
        for (plain, marked), position, map_, title, colour in (
            (column[:2], query, explanation.maps.query[pair], "", NEUTRAL),
            (column[2:], result, explanation.maps.result[pair], found, HIT if is_hit else MISS),
        ):
            image = dataset.images[position]
            plain.imshow(image)
            plain.set_title(title or dataset.classes[dataset.labels[query]], size=8, color=colour)
            marked.imshow(image)
            marked.imshow(
                map_, cmap=COLOURS, vmin=0, vmax=1, alpha=0.6, interpolation="bilinear",
                extent=(-0.5, image.shape[1] - 0.5, image.shape[0] - 0.5, -0.5),
            )  # fmt: skip
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.grid(visible=False)
    for axis, name in zip(axes[:, 0], ("query", "its map", "result", "its map"), strict=True):
        axis.set_ylabel(name, size=8)
    bar = figure.colorbar(
        ScalarMappable(cmap=COLOURS), ax=axes, location="bottom", shrink=0.5, ticks=[0, 1]
    )
    bar.ax.set_xticklabels([DARK[explanation.kind], BRIGHT[explanation.kind]], size=8)
    return figure


def curves(explanation: "Explanation") -> Figure:
    """Mean similarity as pixels are taken away (left) or put back (right), with its interval.

    Solid in the order of the maps, dotted in that of other pairs', dashed in that of chance.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    for axis, (way, said) in zip(axes, WAYS.items(), strict=True):
        for name, style, colour, label in (
            (way, "-", HIT, "as the maps say"),
            (f"{way}_other", ":", MISS, "maps of other pairs"),
            (f"{way}_random", "--", NEUTRAL, "maps of chance"),
        ):
            wide = explanation.curves.pivot(index="pair", columns="share", values=name)
            found = uncertainty.intervals(wide)
            axis.plot(found.index, found["value"], style, color=colour, label=label)
            axis.fill_between(
                found.index, found["ci_low"], found["ci_high"], color=colour, alpha=0.15
            )
        axis.set(title=way, xlabel=f"share of the query's pixels {said}", xlim=(0, 1))
    axes[0].set_ylabel("similarity to the result")
    axes[0].legend(frameon=False)
    figure.tight_layout()
    return figure


def tests(explanation: "Explanation") -> pd.DataFrame:
    """Deletion and insertion, each tested against maps of chance and those of other pairs.

    Returns:
        A row each: test, against; area and area against, means under the curves, and gain, by how
        much the map is better, as text with intervals; p, of a permutation test over the pairs,
        after Holm's correction for all rows.
    """
    areas = explanation.faithfulness
    found = uncertainty.intervals(areas)
    rows = [
        {
            "test": way,
            "against": against,
            "area": tidy.number(found.loc[[way]]),
            "area against": tidy.number(found.loc[[f"{way}_{other}"]]),
            "gain": tidy.number(found.loc[[f"{way}_{gain}"]]),
            "p": uncertainty.permutation_test(areas[f"{way}_{gain}"]),
        }
        for way in WAYS
        for against, (other, gain) in AGAINST.items()
    ]
    table = pd.DataFrame(rows)
    return table.assign(p=uncertainty.holm(table["p"]))


def table(explanation: "Explanation") -> pd.DataFrame:
    """`tests` as a reader sees them."""
    found = tests(explanation)
    return found.assign(p=found["p"].map(tidy.p_value))


def describe(explanation: "Explanation") -> str:
    """Where the maps were made, and whether they mark what the similarity rests on."""
    _, height, width = explanation.maps.query.shape
    said = (
        f"Maps of {height} × {width} positions, of the layer `{explanation.maps.layer}`, for "
        f"{len(explanation.queries):,} queries and their nearest results."
    )
    both = np.concatenate([explanation.maps.query, explanation.maps.result])
    if empty := int((~both.any(axis=(1, 2))).sum()):
        said += f" Empty, since no position raises the similarity: {empty:,} of {len(both):,} maps."
    lines = [said, ""]
    for row in tests(explanation).to_dict("records"):
        numbers = (
            f"area under the curve {row['area']} against {row['area against']}, "
            f"gain {row['gain']}, {chance(row['p'])}"
        )
        _, gain = AGAINST[row["against"]]
        is_better = explanation.faithfulness[f"{row['test']}_{gain}"].mean() > 0
        pace = "**faster** than" if is_better else "**more slowly** than"
        if not row["p"] < uncertainty.ALPHA:
            pace = "at a pace **not told apart** from that of"
        lines.append(f"- {DOES[row['test']]} {pace} {row['against']} ({numbers}).")
    lines.append(
        "\nA map that is better than chance but not than that of another pair says where pictures "
        "have something to see, not what these two share. Intervals are 95 % bootstraps over the "
        "pairs; p is that of a permutation test on them, after Holm's correction for all four."
    )
    return "\n".join(lines)
