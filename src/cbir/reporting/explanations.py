"""Why queries match their results, shown: maps over both, how they stood the test, in words.

A notebook saves how its maps stood the test into `explained.csv`; the comparison reads these files
and never a network.
"""

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from cbir.images.dataset import Dataset
from cbir.reporting import estimates, tidy
from cbir.reporting.display import HIT, MISS, NEUTRAL
from cbir.reporting.image_grids import shorten
from cbir.reporting.runs import run_folder
from cbir.reporting.sentences import chance
from cbir.retrieval import uncertainty

if TYPE_CHECKING:  # which needs Keras
    from cbir.explain import Explanation

FILE = "explained.csv"
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
# A mean over pairs and its interval: under the map's curve, under the other's, and between them.
AREA = ["area", "area_low", "area_high"]
AREA_AGAINST = ["area_against", "area_against_low", "area_against_high"]
GAIN = ["gain", "gain_low", "gain_high"]
COLUMNS = [
    "study", "architecture", "test", "against", *AREA, *AREA_AGAINST, *GAIN, "p", "n_pairs",
]  # fmt: skip


def pairs(dataset: Dataset, explanation: "Explanation", most: int = 6) -> Figure:
    """Pairs in columns: the query, its map over it, the result, its map over it.

    Above the query stands its class, above the result its sign, its similarity and its class.

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
        found = f"{'✓' if is_hit else '✗'} {explanation.similarities[pair]:.3f}\n"
        for (plain, marked), position, map_, above, colour in (
            (column[:2], query, explanation.maps.query[pair], "", NEUTRAL),
            (column[2:], result, explanation.maps.result[pair], found, HIT if is_hit else MISS),
        ):
            title = above + shorten(dataset.classes[dataset.labels[position]])
            image = dataset.images[position]
            plain.imshow(image)
            plain.set_title(title, size=8, color=colour)
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


def summarise(study: str, architecture: str, explanation: "Explanation") -> pd.DataFrame:
    """The rows of explained.csv: each test against maps of chance and those of other pairs.

    Returns:
        A row a test and what it is against, in the order of `COLUMNS`: test (deletion, insertion),
        against, area and area_against (means under the curves), gain (by how much the map is
        better), each with its 95 % bootstrap interval over the pairs; p (of
        `uncertainty.permutation_test`, not corrected), n_pairs.
    """
    areas = explanation.faithfulness
    found = uncertainty.intervals(areas)
    rows = []
    for way in WAYS:
        for against, (other, gain) in AGAINST.items():
            row = {"study": study, "architecture": architecture, "test": way, "against": against}
            for names, measure in (
                (AREA, way),
                (AREA_AGAINST, f"{way}_{other}"),
                (GAIN, f"{way}_{gain}"),
            ):
                values = found.loc[measure, ["value", "ci_low", "ci_high"]]
                row |= dict(zip(names, values, strict=True))
            row["p"] = uncertainty.permutation_test(areas[f"{way}_{gain}"])
            rows.append(row | {"n_pairs": len(areas)})
    return pd.DataFrame(rows, columns=COLUMNS)


def save(study: str, architecture: str, explanation: "Explanation") -> pd.DataFrame:
    """Write reports/<study>/<architecture>/explained.csv, and read it back as `read_all` does."""
    folder = run_folder(study, architecture)
    folder.mkdir(parents=True, exist_ok=True)
    tidy.write_csv(summarise(study, architecture, explanation), folder / FILE)
    return read_all(study, [architecture])


def read_all(study: str, architectures: list[str]) -> pd.DataFrame:
    """The rows of several runs; those that have not been explained are left out.

    Returns:
        `COLUMNS`, with p_holm (`uncertainty.holm` over all rows that are read) and is_significant
        (p_holm < 0.05). No rows where nobody has been explained.
    """
    files = [run_folder(study, name) / FILE for name in architectures]
    found = [tidy.read_csv(file) for file in files if file.is_file()]
    rows = pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=COLUMNS)
    return uncertainty.corrected(rows)


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """A row an architecture, a test and what it is against, as a reader sees them.

    Args:
        rows: from `read_all` or `save`.
    """
    cells = [
        {
            "architecture": row["architecture"],
            "test": row["test"],
            "against": row["against"],
            "area": estimates.of(row, AREA),
            "area against": estimates.of(row, AREA_AGAINST),
            "gain": estimates.of(row, GAIN),
            "p, Holm": estimates.PValue(row["p_holm"]),
            "pairs": row["n_pairs"],
        }
        for _, row in rows.iterrows()
    ]
    return pd.DataFrame(cells)


def compare(rows: pd.DataFrame) -> str:
    """Whose maps are better than others, in words; nothing where nobody has been explained.

    Args:
        rows: as for `table`.
    """
    if rows.empty:
        return ""
    verdict = np.where(rows["gain"] > 0, "faster", "more slowly")
    verdict = np.where(rows["is_significant"], verdict, "not told apart")
    lines = []
    for (way, against), group in rows.assign(verdict=verdict).groupby(
        ["test", "against"], sort=False
    ):
        said = [
            f"**{word}** for {', '.join(group.loc[group['verdict'] == word, 'architecture'])}"
            for word in ("faster", "more slowly", "not told apart")
            if (group["verdict"] == word).any()
        ]
        lines.append(f"- {DOES[way]}, beside {against}: {'; '.join(said)}.")
    counts = " to ".join(f"{each:,}" for each in sorted({*rows["n_pairs"].agg(["min", "max"])}))
    lines.append(
        f"\nOf each architecture {counts} queries and their nearest results were tested; as each "
        "has results of its own, their areas are not to be compared from one architecture to "
        "another. Intervals are 95 % bootstraps over the pairs; p is that of a permutation test on "
        f"them, after Holm's correction for all {len(rows)} rows of the table."
    )
    return "\n".join(lines)


def trust(rows: pd.DataFrame) -> str:
    """How one architecture's maps of similarity stood the test, in short.

    Args:
        rows: from `read_all`, of one architecture.
    """
    if rows.empty:
        return "How far these maps can be trusted was not measured."
    said = []
    for against, group in rows.groupby("against", sort=False):
        for verdict, is_it in (
            ("better than", group["is_significant"] & (group["gain"] > 0)),
            ("worse than", group["is_significant"] & (group["gain"] < 0)),
            ("not told apart from", ~group["is_significant"]),
        ):
            if is_it.any():
                said.append(f"{verdict} {against} by {' and '.join(group.loc[is_it, 'test'])}")
    return f"Tested on {rows['n_pairs'].max()} pairs, such maps are {'; '.join(said)}."


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
    for _, row in uncertainty.corrected(summarise("", "", explanation)).iterrows():
        numbers = (
            f"area under the curve {estimates.of(row, AREA)} against "
            f"{estimates.of(row, AREA_AGAINST)}, gain {estimates.of(row, GAIN):+}, "
            f"{chance(row['p_holm'])}"
        )
        pace = "**faster** than" if row["gain"] > 0 else "**more slowly** than"
        if not row["is_significant"]:
            pace = "at a pace **not told apart** from that of"
        lines.append(f"- {DOES[row['test']]} {pace} {row['against']} ({numbers}).")
    lines.append(
        "\nA map that is better than chance but not than that of another pair says where pictures "
        "have something to see, not what these two share. Intervals are 95 % bootstraps over the "
        "pairs; p is that of a permutation test on them, after Holm's correction for all four."
    )
    return "\n".join(lines)
