"""The paper's claims are answered as the numbers of made-up studies decide, or do not."""

import re

import numpy as np
import pytest
from invented import result, rows
from test_provenance import PARAMETERS

from cbir.reporting import claims, grids, provenance, sentences, tables
from cbir.reporting.numbers import Estimate

PRUNED, VGG16, _ = provenance.KNOWN_WEIGHTS
# The SHA-256 of the weights of a backbone.
FILES = {"resnet50": PRUNED, "vgg16": VGG16, "mobilenet": "e" * 64}
ONLY = "; these trained networks only)"


def network(
    name: str,
    backbone: str,
    mean: float = 0.5,
    *,
    weights="weights.h5",
    train="head",
    accuracy=0.8,
    known=0.9,
    learn_from=500,
    variant="",
    n_seeds=1,
    n_queries=400,
    speed=1000.0,
    **parameters,
) -> dict:
    """A run by its name: its mAP, its accuracy on queries, and on training images (`known`)."""
    noise = np.random.default_rng(0).normal(0, 0.02, n_queries)
    correct = (np.arange(n_queries) < accuracy * n_queries).astype(float)
    started = "random" if weights == "none" else FILES.get(backbone, "f" * 64)
    run = result(
        *[
            rows(mean + 0.001 * seed + noise, architecture=name, seed=seed, correct=correct)
            for seed in range(n_seeds)
        ],
        variant=variant,
        parameters=PARAMETERS | {"backbone": backbone, "train": train} | parameters,
        weights={"source": weights, "started from": started},
        training_accuracy={"value": known, "ci_low": known - 0.02, "ci_high": known + 0.02},
        speed={"images_per_second": speed, "query_milliseconds": 2.5},
    )
    run.summary["dataset"] |= {"train": int(0.8 * learn_from), "validation": int(0.2 * learn_from)}
    return {name: run}


def residual_lines(runs: dict) -> list[str]:
    text = claims.residual_connections(runs, tables.pairs(runs))
    return [line for line in text.splitlines() if line.startswith("- ")]


@pytest.mark.parametrize(
    ("resnet", "vgg", "outcome", "verdict"),
    [
        (0.7, 0.5, "significantly ahead of", claims.AGREES),
        (0.5, 0.7, "significantly behind", claims.DISAGREES),
        (0.5, 0.5, "not significantly different from", claims.UNDECIDED),
    ],
)
def test_residual_connections_help_hinder_or_neither(resnet, vgg, outcome, verdict):
    # Names of runs say nothing.
    runs = network("vgg16", "resnet50", resnet) | network("resnet50", "vgg16", vgg, accuracy=0.7)
    (line,) = residual_lines(runs)
    assert line.startswith(
        f"- Frozen, from ImageNet weights: **vgg16** is {outcome} resnet50 (difference 0."
    )
    assert f"{ONLY}, {verdict}." in line
    assert line.endswith(" They also differ in other settings, which may explain this: weights.")


def test_too_few_queries_decide_nothing():
    runs = network("a", "resnet50", 0.7, n_queries=9) | network("b", "vgg16", 0.5, n_queries=9)
    (line,) = residual_lines(runs)
    assert "is untested against b (" in line
    assert f"fewer than 30 queries), {claims.UNDECIDED}." in line


def test_with_seeds_on_both_sides_a_line_is_about_architectures():
    runs = network("a", "resnet50", 0.7, n_seeds=3) | network("b", "vgg16", 0.5, n_seeds=3)
    (line,) = residual_lines(runs)
    assert f"), {claims.AGREES}." in line
    assert "these trained networks only" not in line


def test_only_networks_of_one_treatment_are_compared():
    runs = network("frozen", "resnet50") | network("tuned", "vgg16", train="all")
    runs |= network("scratch", "resnet50", weights="none", train="all")
    runs |= network("cnn", "cnn", weights="none", train="all")
    assert claims.residual_connections(runs, tables.pairs(runs)) == ""
    runs |= network("frozen_vgg", "vgg16") | network("scratch_vgg", "vgg16", weights="none",
                                                     train="all")  # fmt: skip
    # The last blocks and all layers are both fine-tuned, which the line says.
    runs |= network("blocks", "resnet50", train="last_blocks:1")
    lines = {line.partition(": ")[0]: line for line in residual_lines(runs)}
    frozen, tuned = (lines[f"- {way}, from ImageNet weights"] for way in ("Frozen", "Fine-tuned"))
    scratch = lines["- From random weights"]
    assert len(lines) == 3
    assert "**frozen** is not" in frozen
    assert "**scratch** is not significantly different from scratch_vgg (" in scratch
    assert "They also" not in scratch
    assert "**blocks** is not significantly different from tuned (" in tuned
    assert tuned.endswith("may explain this: weights, trained.")


def test_of_several_sizes_the_same_ones_are_compared_and_otherwise_all():
    runs = {}
    for size in (32, 64):
        runs |= network(f"resnet-{size}", "resnet50", input_size=size)
    runs |= network("vgg-64", "vgg16", input_size=64)
    (line,) = residual_lines(runs)
    assert "**resnet-64** is not significantly different from vgg-64 (" in line
    runs |= network("vgg-64", "vgg16", input_size=96)
    lines = residual_lines(runs)
    assert [re.search(r"\*\*(.*?)\*\*", line)[1] for line in lines] == ["resnet-32", "resnet-64"]
    assert all(line.endswith("may explain this: weights, input (px).") for line in lines)


def test_in_a_grid_only_the_tests_that_are_shown_are_corrected():
    runs = {}
    for size in (32, 64):
        point = {"variant": f"input_size={size}", "input_size": size}
        runs |= network(f"a-{size}", "resnet50", 0.7, **point)
        runs |= network(f"b-{size}", "vgg16", 0.5, **point)
    text = claims.residual_connections(runs)
    assert text.count("is significantly ahead of") == 2
    assert claims.residual_connections({"a-32": runs["a-32"]}) == ""


# Overfitting


def gap(training: float, accuracy: float, n: int = 400) -> Estimate:
    """Worked out from the accuracies: theirs lie 0.02 off on training images."""
    queries = tables.quality(network("x", "cnn", accuracy=accuracy, n_queries=n))
    accuracy = queries.loc["x", "accuracy"]
    below = np.hypot(0.02, accuracy.high - accuracy.value)
    above = np.hypot(0.02, accuracy.value - accuracy.low)
    value = training - accuracy.value
    return Estimate(value, value - below, value + above)


def scratch(name: str, backbone: str, **given) -> dict:
    return network(name, backbone, weights="none", train="all", **given)


def test_a_gap_is_a_difference_of_independent_estimates():
    runs = scratch("cnn", "cnn", accuracy=0.8, known=0.9, learn_from=50_000)
    (row,) = claims.gaps(runs).itertuples(index=False)
    assert tuple(row[:3]) == ("cnn", "from random weights", 50_000)
    assert str(row.gap) == str(gap(0.9, 0.8))
    # Nothing is said of an architecture that is not there.
    assert claims.overfitting(runs) == ""


def test_a_difference_has_the_interval_that_both_intervals_imply():
    difference = Estimate(0.9, 0.86, 0.92) - Estimate(0.5, 0.45, 0.53)
    assert difference.value == pytest.approx(0.4)
    # 0.04 and 0.03 below, 0.02 and 0.05 above.
    assert difference.low == pytest.approx(0.35)
    assert difference.high == pytest.approx(0.4 + np.hypot(0.02, 0.05))
    assert np.isnan((Estimate(1.0) - Estimate(0.5, 0.4, 0.6)).low)


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ({"cnn": 0.85}, f"larger than that of cnn, {claims.AGREES}."),
        ({"cnn": 1.1}, f"smaller than that of cnn, {claims.DISAGREES}."),
        ({"cnn": 0.98}, f"not clearly different from that of cnn, {claims.UNDECIDED}."),
        (
            {"cnn": 0.85, "resnet50": 0.96, "mobilenet": 1.1},
            "larger than that of cnn; smaller than that of mobilenet; not clearly different from "
            "that of resnet50, as the paper says for some of them and contrary to the paper for "
            "others.",
        ),
        (
            {"cnn": 1.1, "resnet50": 0.97},
            "smaller than that of cnn; not clearly different from that of resnet50, "
            f"{claims.DISAGREES} for some of them only.",
        ),
        (
            {"cnn": 0.85, "resnet50": 0.97},
            "larger than that of cnn; not clearly different from that of resnet50, "
            f"{claims.AGREES} for some of them only.",
        ),
    ],
)  # fmt: skip
def test_the_deep_network_overfits_more_less_or_neither(others, said):
    runs = scratch("deep", "vgg16", known=0.97, accuracy=0.8)
    for name, known in others.items():
        runs |= scratch(name, name, known=known, accuracy=0.8)
    text = claims.overfitting(runs)
    (line,) = [line for line in text.splitlines() if line.startswith("- With ")]
    assert line == f"- With 500 images, from random weights, the gap of deep is {said}"


def test_gaps_are_compared_within_a_treatment_and_with_other_settings_named():
    runs = scratch("cnn", "cnn", known=0.85) | network("deep", "vgg16", known=0.99)
    assert "gap of deep" not in claims.overfitting(runs)
    runs |= network("frozen", "resnet50", known=0.85, input_size=96)
    (line,) = [line for line in claims.overfitting(runs).splitlines() if line.startswith("- With ")]
    assert "- With 500 images, frozen, from ImageNet weights, the gap of deep is larger" in line
    assert "cnn" not in line
    assert line.endswith(
        "They also differ in other settings, which may explain this: weights, input (px)."
    )


def learnt(architecture: str, backbone: str, count: int, **given) -> dict:
    """A point of a grid over the number of images."""
    name, variant = f"{architecture}-{count}", f"learn_from={count}"
    return scratch(name, backbone, learn_from=count, variant=variant, **given)


def test_it_is_said_how_the_gap_changes_with_the_number_of_images():
    runs = learnt("cnn", "cnn", 50_000, known=0.8, accuracy=0.6)
    runs |= learnt("cnn", "cnn", 500, known=1.0, accuracy=0.3)
    runs |= learnt("small", "cnn", 500, known=0.4, accuracy=0.3)
    runs |= learnt("small", "cnn", 50_000, known=0.9, accuracy=0.5)
    runs |= learnt("even", "cnn", 500, known=0.4, accuracy=0.3)
    runs |= learnt("even", "cnn", 50_000, known=0.6, accuracy=0.5)
    lines = claims.overfitting(runs).splitlines()
    assert [line for line in lines if line.startswith("- ")] == [
        "- **cnn**: with 500 images, the gap is larger than with 50,000.",
        "- **small**: with 500 images, the gap is smaller than with 50,000.",
        "- **even**: with 500 images, the gap is not clearly different from that with 50,000.",
    ]


def test_networks_are_compared_at_every_number_of_images():
    runs = learnt("deep", "vgg16", 1000, known=0.85) | learnt("cnn", "cnn", 1000, known=0.99)
    runs |= learnt("deep", "vgg16", 500, known=0.99) | learnt("cnn", "cnn", 500, known=0.85)
    lines = [line for line in claims.overfitting(runs).splitlines() if line.startswith("- With ")]
    assert [line.partition(", from")[0] for line in lines] == [
        "- With 500 images",
        "- With 1,000 images",
    ]
    assert f"the gap of deep is larger than that of cnn, {claims.AGREES}." in lines[0]
    # The paper speaks of small data sets only.
    assert lines[1].endswith("the gap of deep is smaller than that of cnn.")


def test_of_other_grids_and_of_baselines_nothing_is_said():
    runs = network("cnn-32", "cnn", variant="input_size=32")
    assert claims.overfitting(runs) == ""
    baseline = {"random": result(rows([0.5, 0.6], architecture="random"), baseline=True)}
    assert claims.overfitting(baseline) == claims.residual_connections(baseline) == ""


# Input size


def test_each_step_to_larger_inputs_is_told_with_its_gain_and_its_cost():
    runs = {}
    for size, mean, speed in ((96, 0.5, 250.0), (32, 0.3, 1000.0), (64, 0.5, 500.0)):
        point = {"variant": f"input_size={size}", "input_size": size, "speed": speed}
        runs |= network(f"net-{size}", "vgg16", mean, **point)
    points = grids.points_table(runs)
    text = claims.input_size(points, grids.pairs(runs, points))
    assert [line for line in text.splitlines() if line.startswith("- ")] == [
        "- **net**: 64 px is significantly ahead of 32 px "
        f"({sentences.NETWORKS_ONLY}), at 0.50 times the speed.",
        "- **net**: 96 px is not significantly different from 64 px "
        f"({sentences.NETWORKS_ONLY}), at 0.50 times the speed.",
    ]


def test_of_a_grid_without_sizes_or_with_one_nothing_is_said():
    for grid in (["pooling=avg", "pooling=max"], ["input_size=32"]):
        runs = {}
        for variant in grid:
            runs |= network(f"net-{variant.partition('=')[2]}", "cnn", variant=variant)
        points = grids.points_table(runs)
        assert claims.input_size(points, grids.pairs(runs, points)) == ""


def test_frozen_networks_are_named_if_others_are_not():
    frozen, tuned = network("head", "vgg16"), network("tuned", "vgg16", train="all")
    assert sentences.frozen(frozen | tuned) == " Frozen, with only a head trained: head."
    assert sentences.frozen(frozen) == sentences.frozen(tuned) == ""
