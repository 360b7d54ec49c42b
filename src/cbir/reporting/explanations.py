"""Why queries match their results: heat maps over both images, and tests of these maps."""

import functools
import itertools
from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from cbir import explain
from cbir.explain import CURVES, Explanation
from cbir.images.dataset import Dataset
from cbir.reporting import charts, gains, montages
from cbir.reporting.display import HIT, MISS, NEUTRAL
from cbir.reporting.numbers import span
from cbir.reporting.runs import Run, networks
from cbir.reporting.sentences import join
from cbir.retrieval import uncertainty

FILE = "explanations.csv"
TESTS = {"deletion": "removed", "insertion": "restored"}
# The references of the tests: the suffixes of the columns of their areas and of the gains.
AGAINST = {"random maps": ("random", "gain"), "maps of other pairs": ("other", "gain_over_other")}
# What the ends of the colour scale mean, by kind of map.
SCALE = {
    "similarity": ("does not raise it", "raises the similarity most"),
    "attention": ("no weight", "highest weight"),
}
# The suffixes of `explain.CURVES`, and how these curves are drawn.
CURVE_LOOKS = {
    "": {"linestyle": "-", "color": HIT, "label": "the pair's own map"},
    "_other": {"linestyle": ":", "color": MISS, "label": "maps of other pairs"},
    "_random": {"linestyle": "--", "color": NEUTRAL, "label": "random maps"},
}


def explain_all(runs: Mapping[str, Run], kind: str = "similarity") -> dict[str, Explanation]:
    """Explain the unrestricted search of all networks, with their first seed, by maps of a kind.

    The kind "attention" is only for networks with attention pooling. Cached. StudyError as for
    `explain.explain_queries`, or if a network or its embeddings are missing.
    """
    return {
        name: explain.explain_queries(
            run.network, run.embeddings, run.rankings["unrestricted"], kind=kind
        )
        for name, run in networks(runs).items()
        if kind != "attention" or run.summary["parameters"]["pooling"] == "attention"
    }


def explain_runs(study: str, runs: Mapping[str, Run]) -> pd.DataFrame:
    """Explain a study's networks, write explanations.csv, and return its `gains.read_gains`."""
    return gains.save_gains(summarise(study, explain_all(runs)), study, FILE)


def summarise(study: str, explanations: Mapping[str, Explanation]) -> list[dict]:
    """A row per architecture, test (deletion, insertion) and reference of `AGAINST`.

    Columns are area and area_against (means under the curves) and gain (by how much the map is
    better), as in `gains.mean_row`.
    """
    rows = []
    for architecture, explanation in explanations.items():
        for test, (against, (other, gain)) in itertools.product(TESTS, AGAINST.items()):
            areas = explanation.faithfulness[[test, f"{test}_{other}", f"{test}_{gain}"]]
            areas = areas.set_axis(["area", "area_against", "gain"], axis="columns")
            row = {"study": study, "architecture": architecture, "test": test, "against": against}
            rows.append(row | gains.mean_row(areas, _similarities(explanation)))
    return rows


def map_tests_table(rows: pd.DataFrame) -> pd.DataFrame:
    """The tests, from `explain_runs`, as a reader sees them."""
    means = ["area", "area_against", "gain"]
    return gains.readable_gains(
        rows, ["architecture", "test", "against", *means, "p_holm", "n_queries"]
    )


def compare_maps(rows: pd.DataFrame) -> str:
    """Whose maps are better than random maps and than other pairs' maps, from `explain_runs`."""
    if rows.empty:
        return ""
    is_better = rows["verdict"] == "better"
    by_reference = is_better.groupby([rows["architecture"], rows["against"]], sort=False).all()
    better = by_reference.unstack(sort=False)
    beats_random, beats_others = (better[name] for name in AGAINST)
    groups = [
        (
            beats_random & beats_others,
            "better than random maps and than maps of other pairs in both tests",
        ),
        (
            beats_random & ~beats_others,
            "better than random maps in both tests, but not significantly better than maps of "
            "other pairs in both",
        ),
        (~beats_random, "not significantly better than random maps in one of the tests or both"),
    ]
    parts = [
        f"maps of {join(better.index[is_member])} are {text}"
        for is_member, text in groups
        if is_member.any()
    ]
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def verdicts(rows: pd.DataFrame) -> str:
    """The outcome of each test, from `explain_runs`, as a list, and what the tests cover."""
    if rows.empty:
        return ""
    lines = []
    for (test, against), group in rows.groupby(["test", "against"], sort=False):
        names = group.groupby("verdict", observed=True)["architecture"].agg(", ".join)
        parts = [f"**{verdict}** for {joined}" for verdict, joined in names.items()]
        lines.append(f"- {test.capitalize()}, compared with {against}: {'; '.join(parts)}.")
    lines.append(
        f"\nThe tests used {span(rows['n_queries'])} queries of each architecture and their "
        f"nearest results; p is Holm-corrected over all {len(rows)} rows of the table. They are "
        "about one trained network of each architecture, that of the first seed."
    )
    return "\n".join(lines)


def trust(study: str, architecture: str) -> str:
    """The outcomes of the tests of one architecture's similarity maps, in one sentence."""
    rows = gains.read_gains(study, FILE, [architecture])
    if rows.empty:
        return "These maps have not been tested."
    parts = []
    groups = rows.groupby(["against", "verdict"], sort=False, observed=True)
    for (against, verdict), group in groups:
        word = {"better": "than", "worse": "than", "untested": "against"}.get(verdict, "from")
        parts.append(f"{verdict} {word} {against} by {' and '.join(group['test'])}")
    return f"Tested on {span(rows['n_queries'])} pairs, such maps are {'; '.join(parts)}."


def map_sizes_text(explanations: Mapping[str, Explanation]) -> str:
    """Size and layer of the maps, and how many are empty: a line per architecture."""
    lines = []
    for name, explanation in explanations.items():
        maps = np.concatenate([explanation.maps.query, explanation.maps.result])
        n_empty = (~maps.any(axis=(1, 2))).sum()
        lines.append(
            f"- **{name}**: {maps.shape[1]} × {maps.shape[2]} positions, from the layer "
            f"`{explanation.maps.layer}`; empty maps: {n_empty:,}."
        )
    return "\n".join(lines)


def pairs_figure(
    dataset: Dataset, explanations: Mapping[str, Explanation], most: int = 4
) -> Figure | None:
    """The first `most` queries that all explain; below each, by architecture: map, result, its map.

    The explanations, by architecture, are of one kind; without any, there is no figure.
    """
    if not explanations:
        return None
    first, *others = explanations.values()
    shared = functools.reduce(np.intersect1d, [other.queries for other in others], first.queries)
    queries = first.queries[np.isin(first.queries, shared)][:most]
    rows = [[tile for q in queries for tile in (montages.query_tile(dataset, q), None, None)]]
    for explanation in explanations.values():
        row, maps = [], explanation.maps
        for query in queries:
            place = explanation.queries.tolist().index(query)
            result, similarity = explanation.results[place], explanation.similarities[place]
            images = dataset.images[[dataset.queries[query], dataset.gallery[result]]]
            overlays = map(montages.overlay, images, (maps.query[place], maps.result[place]))
            query_map, result_map = map(montages.Tile, overlays)
            row += [query_map, montages.result_tile(dataset, query, result, similarity), result_map]
        rows.append(row)
    names = ["", *explanations]
    figure = montages.montage(rows, names)
    inch = 1 / figure.get_figheight()
    bar = figure.add_axes((0.2, -0.3 * inch, 0.6, 0.12 * inch))
    heat = ScalarMappable(cmap=montages.HEAT)
    figure.colorbar(heat, bar, orientation="horizontal", ticks=[0, 1])
    bar.set_xticklabels(SCALE[first.kind], size=8)
    return figure


def _similarities(explanation: Explanation) -> tuple[float, float]:
    """The lowest and the highest similarity of the curves, as limits of their means."""
    similarities = explanation.curves[CURVES].to_numpy()
    return similarities.min(), similarities.max()


def curves_figure(explanations: Mapping[str, Explanation]) -> Figure | None:
    """Mean similarity as pixels are removed (left) or restored (right), one row per architecture.

    The order of the pixels is that of the maps (solid), of other pairs' maps (dotted), or of
    random maps (dashed); bands are intervals over the pairs.
    """
    if not explanations:
        return None
    n = len(explanations)
    layout = {"figsize": (9, 0.9 + 2.5 * n), "layout": "constrained"}
    figure, axes = plt.subplots(n, 2, sharex=True, sharey="row", squeeze=False, **layout)
    for row, (name, explanation) in zip(axes, explanations.items(), strict=True):
        for axis, (test, verb) in zip(row, TESTS.items(), strict=True):
            for suffix, look in CURVE_LOOKS.items():
                curve = explanation.curves.set_index(["pair", "share"])[test + suffix]
                means = uncertainty.intervals(curve.unstack(), limits=_similarities(explanation))
                charts.draw_mean(axis, means, **look)
            axis.set(title=test, xlim=(0, 1), xlabel=f"share of the query's pixels {verb}")
            axis.set_ylabel(f"{name}\nsimilarity to the result")
            axis.label_outer()
    axes[0, 0].legend(frameon=False)
    return figure
