"""The paper's claims, each answered from a study's numbers.

Networks are compared if they had the same treatment (`provenance.treatment`). Backbones and
treatments are read from parameters, because names of runs mean nothing.
"""

import itertools

import pandas as pd

from cbir.reporting import grids, numbers, provenance, sentences, tables
from cbir.reporting.runs import Run, networks, parse_point
from cbir.retrieval import uncertainty

RESIDUAL, DEEP = "resnet50", "vgg16"
AGREES, DISAGREES, UNDECIDED = (
    "as the paper says", "contrary to the paper", "so these numbers do not decide",
)  # fmt: skip
LARGER, SMALLER, SIMILAR = "larger than", "smaller than", "not clearly different from"


def residual_connections(runs: dict[str, Run], pairs: pd.DataFrame | None = None) -> str:
    """Do residual connections help? A line for each ResNet-50 and VGG16 of one treatment, if any.

    Of several networks of one treatment, those are compared that also share input size, pooling,
    trained layers and number of training images, if there are any. Without `pairs` (from
    `tables.pairs`), tests are corrected for these lines only.
    """
    rivals = _rivals(networks(runs))
    if not rivals:
        return ""
    if pairs is None:
        compared = tables.pairs({name: runs[name] for rival in rivals for name in rival})
        both_ways = {*rivals, *((other, one) for one, other in rivals)}
        of_pairs = compared[["ahead", "behind"]].itertuples(index=False, name=None)
        pairs = uncertainty.corrected(compared[[pair in both_ways for pair in of_pairs]])
    lines = ["The paper says that residual connections let ResNet-50 learn better.\n"]
    for one, other in rivals:
        pair = sentences.pair_of(pairs, one, other)
        verdict = UNDECIDED
        if pair.is_significant:
            verdict = AGREES if pair.ahead == one else DISAGREES
        treatment = provenance.treatment(runs[one])
        lines.append(
            f"- {treatment[0].upper()}{treatment[1:]}: **{one}** is "
            f"{sentences.relation(pairs, one, other)}, {verdict}."
            f"{_other_differences(runs, [one, other])}"
        )
    return "\n".join(lines)


def _rivals(runs: dict[str, Run]) -> list[tuple[str, str]]:
    """The names of each ResNet-50 and the VGG16 that it is compared with."""
    rivals, treatments = [], {}
    for name, run in runs.items():
        if run.backbone in (RESIDUAL, DEEP):
            treatments.setdefault(provenance.treatment(run), []).append(name)
    for names in treatments.values():
        sides = [[n for n in names if runs[n].backbone == side] for side in (RESIDUAL, DEEP)]
        all_pairs = list(itertools.product(*sides))
        similar_pairs = [
            (one, other) for one, other in all_pairs if _setup(runs[one]) == _setup(runs[other])
        ]
        rivals += similar_pairs or all_pairs
    return rivals


def _setup(run: Run) -> tuple:
    shared = ("input_size", "pooling", "train")
    return run.summary["dataset"]["train"], *(run.summary["parameters"][key] for key in shared)


def gaps(runs: dict[str, Run]) -> pd.DataFrame:
    """The accuracy on training images minus the accuracy on the queries, a row per network.

    Columns: network (with the point of its grid), trained (its treatment), images (for training and
    validation), gap. Empty if a grid varies parameters, but not the number of images.
    """
    runs = networks(runs)
    points = {name: parse_point(name, run.summary["variant"]) for name, run in runs.items()}
    variants = [point for _, point in points.values() if point]
    if variants and not any(grids.LEARN_FROM in point for point in variants):
        runs = {}
    entries, accuracies = {}, tables.quality(runs)["accuracy"] if runs else {}
    for name, run in runs.items():
        architecture, point = points[name]
        words = [f"{key} {value}" for key, value in point.items() if key != grids.LEARN_FROM]
        images = run.summary["dataset"]["train"] + run.summary["dataset"]["validation"]
        # Different images: the two accuracies are independent.
        gap = numbers.from_row(run.summary["training_accuracy"]) - accuracies[name]
        entries[name] = {
            "network": ", ".join([architecture, *words]),
            "trained": provenance.treatment(run),
            "images": int(point.get(grids.LEARN_FROM, images)),
            "gap": gap,
        }
    columns = ["network", "trained", "images", "gap"]
    table = pd.DataFrame.from_dict(entries, orient="index", columns=columns)
    return table.sort_values("images", kind="stable")


def overfitting(runs: dict[str, Run]) -> str:
    """Does VGG16 overfit, above all with few images? How the `gaps` of networks compare, if any.

    A VGG16 is compared with networks of the same treatment and the same number of images. If a grid
    varies this number, only the comparison with the fewest images answers the paper.
    """
    table = gaps(runs)
    by_network = dict(iter(table.groupby("network", sort=False)))
    lines = [_change(name, rows) for name, rows in by_network.items()]
    for rows in by_network.values():
        deep = [name for name in rows.index if runs[name].backbone == DEEP]
        lines += [_against_others(runs, name, table, name == rows.index[0]) for name in deep]
    heading = 'The paper says that VGG-16\'s depth "can cause overfitting on smaller datasets".\n'
    if any(lines):
        lines.append(
            "\nThe intervals of the gaps cover other images, but not other seeds, so this is about "
            f"{sentences.NETWORKS_ONLY}."
        )
    return "\n".join([heading, *filter(None, lines)]) if any(lines) else ""


def _change(name: str, rows: pd.DataFrame) -> str:
    """How the gap of a network with the fewest images compares with that with the most."""
    if len(rows) < 2:
        return ""
    relation = _relation(rows["gap"].iloc[0] - rows["gap"].iloc[-1])
    if relation == SIMILAR:
        relation += " that"
    fewest, most = rows["images"].iloc[[0, -1]]
    return f"- **{name}**: with {fewest:,} images, the gap is {relation} with {most:,}."


def _against_others(runs: dict[str, Run], name: str, table: pd.DataFrame, is_answer: bool) -> str:
    """How the gap of a VGG16 compares with those of other networks that were trained alike.

    If this is an answer to the paper, it says whether they agree.
    """
    row, groups = table.loc[name], {LARGER: [], SMALLER: [], SIMILAR: []}
    is_comparable = (table["trained"] == row["trained"]) & (table["images"] == row["images"])
    others = [n for n in table.index[is_comparable] if runs[n].backbone != DEEP]
    if not others:
        return ""
    for other in others:
        # Both gaps are of the same images. They are usually easy or hard for both networks, so that
        # the interval of the difference is too wide rather than too narrow.
        relation = _relation(row["gap"] - table.loc[other, "gap"])
        groups[relation].append(table.loc[other, "network"])
    parts = [
        f"{relation} that of {sentences.join(names)}" for relation, names in groups.items() if names
    ]
    if groups[LARGER] and groups[SMALLER]:
        verdict = f"{AGREES} for some of them and {DISAGREES} for others"
    else:
        verdict = AGREES if groups[LARGER] else DISAGREES if groups[SMALLER] else UNDECIDED
        verdict += " for some of them only" if len(parts) > 1 else ""
    text = f"- With {row['images']:,} images, {row['trained']}, the gap of {row['network']} is "
    text += "; ".join(parts)
    if not is_answer:
        return f"{text}."
    return f"{text}, {verdict}.{_other_differences(runs, [name, *others])}"


def _relation(difference: numbers.Estimate) -> str:
    """How a gap compares with another one, from the interval of their difference."""
    return LARGER if difference.low > 0 else SMALLER if difference.high < 0 else SIMILAR


def _other_differences(runs: dict[str, Run], names: list[str]) -> str:
    """In which settings networks differ besides the backbone, as a sentence; empty if in none."""
    compared = {name: runs[name] for name in names}
    settings = provenance.networks_table(compared).drop(columns=["backbone"])
    # Each architecture has its own file of weights.
    weights = [provenance.weights_name(run.summary["weights"]) for run in compared.values()]
    settings = settings.assign(weights=weights)
    differing = ", ".join(settings.columns[settings.nunique() > 1])
    text = f" They also differ in other settings, which may explain this: {differing}."
    return text if differing else ""


def input_size(points: pd.DataFrame, pairs: pd.DataFrame) -> str:
    """What larger inputs bring and cost, step by step, a line per network; else empty.

    `points` are from `grids.points_table`, `pairs` from `grids.pairs`.
    """
    size = "input_size"
    if size not in grids.dimensions(points) or not grids.is_number(points, size):
        return ""
    lines = []
    points = points.sort_values(size, kind="stable")
    for name, rows in points.groupby(grids.series(points, size), sort=False):
        for (small, before), (large, after) in itertools.pairwise(rows.iterrows()):
            outcome = uncertainty.pair_outcomes(pairs, [large, small]).loc[large, small]
            relation, speed = sentences.RELATIONS[outcome], after[grids.SPEED] / before[grids.SPEED]
            is_limited = tables.is_of_networks(sentences.pair_of(pairs, large, small))
            lines.append(
                f"- **{name}**: {after[size]} px is {relation} {before[size]} px"
                f"{f' ({sentences.NETWORKS_ONLY})' if is_limited else ''}, at {speed:.2f} times "
                "the speed."
            )
    heading = "How larger inputs change the mAP, and what they cost:\n"
    return "\n".join([heading, *lines]) if lines else ""
