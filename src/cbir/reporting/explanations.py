"""Why queries match their results: heat maps over both images, and tests of whether they are right.

`explain_runs` explains the networks of a study and writes how their maps did in the tests into
`explanations.csv`; all other functions draw, tabulate or describe.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from cbir.images.dataset import Dataset
from cbir.reporting import estimates, tidy
from cbir.reporting.display import HIT, MISS, NEUTRAL
from cbir.reporting.image_grids import HEAT, Picture, enlarge, grid, overlay, shorten
from cbir.reporting.runs import Run, networks, run_folder
from cbir.retrieval import uncertainty

if TYPE_CHECKING:  # which needs Keras
    from cbir.explain import Explanation

FILE = "explanations.csv"
TESTS = {"deletion": "removed", "insertion": "restored"}
# What a map is compared with: the name of its areas, and of what the map is better by.
AGAINST = {
    "random maps": ("random", "gain"),
    "maps of other pairs": ("other", "gain_over_other"),
}
# What the ends of the colour scale mean, by kind of map.
SCALE = {
    "similarity": ("does not raise it", "raises the similarity most"),
    "attention": ("weighs nothing", "weighs most"),
}
# A mean over pairs and its interval: under the map's curve, under the other's, and between them.
AREA = ["area", "area_low", "area_high"]
AREA_AGAINST = ["area_against", "area_against_low", "area_against_high"]
GAIN = ["gain", "gain_low", "gain_high"]
COLUMNS = [
    "study", "architecture", "test", "against", *AREA, *AREA_AGAINST, *GAIN, "p", "n_pairs",
]  # fmt: skip


def explain_run(run: Run, kind: str = "similarity") -> "Explanation":
    """Explain a network's unrestricted search; cached.

    Args:
        run: of a network; its first seed under its first protocol is explained.
        kind: of map, "similarity", or "attention" where the network's pooling is attention.

    Raises:
        StudyError: as for `explain.explain_queries`, or the network or its embeddings are gone.
    """
    from cbir import explain

    return explain.explain_queries(
        run.network, run.embeddings, run.rankings["unrestricted"], kind=kind
    )


def explain_all(runs: Mapping[str, Run], kind: str = "similarity") -> dict[str, "Explanation"]:
    """Explain all networks that have this kind of map, by name; baselines have none."""
    return {
        name: explain_run(run, kind)
        for name, run in networks(runs).items()
        if kind != "attention" or run.summary["parameters"]["pooling"] == "attention"
    }


def explain_runs(study: str, runs: Mapping[str, Run]) -> pd.DataFrame:
    """Explain the networks of a study, and write reports/<study>/explanations.csv.

    Returns:
        The rows as `read_all` returns them.
    """
    tidy.write_csv(summarise(study, explain_all(runs)), run_folder(study) / FILE)
    return read_all(study, list(runs))


def read_all(study: str, architectures: list[str]) -> pd.DataFrame:
    """The rows of explanations.csv that belong to these architectures.

    Returns:
        `COLUMNS`, with p_holm (`uncertainty.holm` over all these rows) and is_significant
        (p_holm < 0.05). No rows where nothing has been explained.
    """
    path = run_folder(study) / FILE
    rows = tidy.read_csv(path) if path.is_file() else pd.DataFrame(columns=COLUMNS)
    chosen = rows[rows["architecture"].isin(architectures)]
    return uncertainty.corrected(chosen.reset_index(drop=True))


def summarise(study: str, explanations: Mapping[str, "Explanation"]) -> pd.DataFrame:
    """Each test of each architecture's maps, against random maps and against other pairs' maps.

    Args:
        explanations: by architecture.

    Returns:
        One row per architecture, test and what it is against, in the order of `COLUMNS`: test
        (deletion, insertion), against, area and area_against (means under the curves), gain (by
        how much the map is better), each with its 95 % bootstrap interval over the pairs; p (of
        `uncertainty.permutation_test`, not corrected), n_pairs.
    """
    rows = []
    for architecture, explanation in explanations.items():
        areas = explanation.faithfulness
        means = uncertainty.intervals(areas)[["value", "ci_low", "ci_high"]]
        for test in TESTS:
            for against, (other, gain) in AGAINST.items():
                numbers = [
                    *means.loc[test], *means.loc[f"{test}_{other}"], *means.loc[f"{test}_{gain}"],
                    uncertainty.permutation_test(areas[f"{test}_{gain}"]), len(areas),
                ]  # fmt: skip
                rows.append([study, architecture, test, against, *numbers])
    return pd.DataFrame(rows, columns=COLUMNS)


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """The tests as a reader sees them.

    Args:
        rows: from `read_all` or `explain_runs`.
    """
    cells = [
        {
            "architecture": row["architecture"],
            "test": row["test"],
            "against": row["against"],
            "area": estimates.from_row(row, AREA),
            "area against": estimates.from_row(row, AREA_AGAINST),
            "gain": estimates.from_row(row, GAIN),
            "p, Holm": estimates.PValue(row["p_holm"]),
            "pairs": row["n_pairs"],
        }
        for _, row in rows.iterrows()
    ]
    return pd.DataFrame(cells)


def compare(rows: pd.DataFrame) -> str:
    """Whose maps are better than random maps and than other pairs' maps, in words.

    Args:
        rows: as for `table`; without any, the text is empty.
    """
    if rows.empty:
        return ""
    lines = []
    groups = rows.assign(verdict=_verdicts(rows)).groupby(["test", "against"], sort=False)
    for (test, against), group in groups:
        names = group.groupby("verdict")["architecture"].agg(", ".join)
        parts = [f"**{verdict}** for {names[verdict]}" for verdict in VERDICTS if verdict in names]
        lines.append(f"- {test.capitalize()}, compared with {against}: {'; '.join(parts)}.")
    counts = sorted({rows["n_pairs"].min(), rows["n_pairs"].max()})
    lines.append(
        "\nThe tests used "
        f"{' to '.join(f'{count:,}' for count in counts)} queries of each architecture and their "
        "nearest results; as each architecture has its own results, areas cannot be compared "
        "between architectures. Intervals are 95 % bootstrap intervals over the pairs; p is of a "
        f"permutation test on the pairs, Holm-corrected over all {len(rows)} rows of the table."
    )
    return "\n".join(lines)


VERDICTS = ("better", "worse", "not significantly different")


def _verdicts(rows: pd.DataFrame) -> np.ndarray:
    """(n,) one of `VERDICTS` for each row."""
    better, worse, neither = VERDICTS
    return np.where(rows["is_significant"], np.where(rows["gain"] > 0, better, worse), neither)


def trust(rows: pd.DataFrame) -> str:
    """How one architecture's similarity maps did in the tests, in one sentence.

    Args:
        rows: from `read_all`, of one architecture.
    """
    if rows.empty:
        return "How far these maps can be trusted was not measured."
    parts = []
    for against, group in rows.assign(verdict=_verdicts(rows)).groupby("against", sort=False):
        for verdict in VERDICTS:
            tests = group.loc[group["verdict"] == verdict, "test"]
            word = "from" if verdict == VERDICTS[-1] else "than"
            if len(tests):
                parts.append(f"{verdict} {word} {against} by {' and '.join(tests)}")
    return f"Tested on {rows['n_pairs'].max()} pairs, such maps are {'; '.join(parts)}."


def describe(explanations: Mapping[str, "Explanation"]) -> str:
    """Which maps these are, and how many of them are empty: one line per architecture."""
    lines = []
    for name, explanation in explanations.items():
        maps = explanation.maps
        _, height, width = maps.query.shape
        text = (
            f"- **{name}**: maps of {height} × {width} positions, of the layer `{maps.layer}`, for "
            f"{len(explanation.queries):,} queries and their nearest results."
        )
        is_empty = ~np.concatenate([maps.query, maps.result]).any(axis=(1, 2))
        if is_empty.any():
            text += (
                f" {is_empty.sum():,} of the {len(is_empty):,} maps are empty, since no position "
                "raises the similarity."
            )
        lines.append(text)
    return "\n".join(lines)


def pairs(
    dataset: Dataset, explanations: Mapping[str, "Explanation"], most: int = 6
) -> Figure | None:
    """Queries in columns; below each, for each architecture, its map, the result and that one's.

    The class stands above the query; sign, similarity and class stand above each result.

    Args:
        explanations: by architecture, all of one kind; without any, there is no figure.
        most: queries shown, the first ones that all architectures explain.
    """
    if not explanations:
        return None
    shared = set.intersection(*(set(run.queries.tolist()) for run in explanations.values()))
    first = next(iter(explanations.values()))
    queries = [query for query in first.queries.tolist() if query in shared][:most]
    above = []
    for query in queries:
        image = enlarge(dataset.images[dataset.queries[query]])
        above.append(Picture(image, shorten(dataset.classes[dataset.query_labels[query]])))
    rows, names = [above], ["query"]
    for name, explanation in explanations.items():
        columns = [_pair(dataset, explanation, query) for query in queries]
        rows += [list(row) for row in zip(*columns, strict=True)]
        names += [f"{name}\n{row}" for row in ("query's map", "result", "result's map")]
    figure = grid(rows, names)
    inch = 1 / figure.get_figheight()
    bar = figure.add_axes((0.2, -0.3 * inch, 0.6, 0.12 * inch))
    figure.colorbar(ScalarMappable(cmap=HEAT), bar, orientation="horizontal", ticks=[0, 1])
    bar.set_xticklabels(SCALE[first.kind], size=8)
    return figure


def _pair(
    dataset: Dataset, explanation: "Explanation", query: int
) -> tuple[Picture, Picture, Picture]:
    """One architecture's map of a query, its nearest result, and that one's map."""
    pair = explanation.queries.tolist().index(query)
    image = dataset.images[dataset.queries[query]]
    position = explanation.results[pair]
    returned = dataset.gallery_labels[position]
    result = dataset.images[dataset.gallery[position]]
    sign, colour = ("✓", HIT) if returned == dataset.query_labels[query] else ("✗", MISS)
    above = f"{sign} {explanation.similarities[pair]:.3f}\n{shorten(dataset.classes[returned])}"
    return (
        Picture(overlay(image, explanation.maps.query[pair])),
        Picture(enlarge(result), above, colour=colour),
        Picture(overlay(result, explanation.maps.result[pair])),
    )


def curves(explanations: Mapping[str, "Explanation"]) -> Figure | None:
    """Mean similarity as pixels are removed (left) or restored (right), one row per architecture.

    The order of the pixels is that of the maps (solid), of other pairs' maps (dotted), or of
    random maps (dashed); bands are intervals over the pairs.

    Args:
        explanations: by architecture; without any, there is no figure.
    """
    if not explanations:
        return None
    figure, axes = plt.subplots(
        len(explanations),
        2,
        figsize=(9, 0.9 + 2.5 * len(explanations)),
        sharex=True,
        sharey="row",
        squeeze=False,
    )
    for row, (name, explanation) in zip(axes, explanations.items(), strict=True):
        for axis, test in zip(row, TESTS, strict=True):
            _draw_curves(axis, explanation, test)
        row[0].set_ylabel(f"{name}\nsimilarity to the result")
    for above, below, (test, happens) in zip(axes[0], axes[-1], TESTS.items(), strict=True):
        above.set_title(test)
        below.set(xlabel=f"share of the query's pixels {happens}", xlim=(0, 1))
    axes[0, 0].legend(frameon=False)
    figure.tight_layout()
    return figure


def _draw_curves(axis: plt.Axes, explanation: "Explanation", test: str) -> None:
    """One test of one architecture's maps, with intervals."""
    for name, style, colour, label in (
        (test, "-", HIT, "the pair's own map"),
        (f"{test}_other", ":", MISS, "maps of other pairs"),
        (f"{test}_random", "--", NEUTRAL, "random maps"),
    ):
        wide = explanation.curves.pivot(index="pair", columns="share", values=name)
        means = uncertainty.intervals(wide)
        axis.plot(means.index, means["value"], style, color=colour, label=label)
        axis.fill_between(means.index, means["ci_low"], means["ci_high"], color=colour, alpha=0.15)
