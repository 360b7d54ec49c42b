"""Claims of the paper, compared with the results of invented studies."""

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
    training_accuracy=0.9,
    learn_from=500,
    variant="",
    n_seeds=1,
    n_queries=400,
    speed=1000.0,
    **parameters,
) -> dict:
    """A run by its name, with these mAP and accuracies."""
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
        training_accuracy={
            "value": training_accuracy,
            "ci_low": training_accuracy - 0.02,
            "ci_high": training_accuracy + 0.02,
        },
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
def test_residual_connections_are_compared_with_the_paper(resnet, vgg, outcome, verdict):
    # The names of runs do not matter.
    runs = network("vgg16", "resnet50", resnet) | network("resnet50", "vgg16", vgg, accuracy=0.7)
    (line,) = residual_lines(runs)
    assert line.startswith(
        f"- Frozen, from ImageNet weights: **vgg16** is {outcome} resnet50 (difference 0."
    )
    assert f"{ONLY}, {verdict}." in line
    assert line.endswith(" They also differ in other settings, which may explain this: weights.")


def test_too_few_queries_are_untested():
    runs = network("a", "resnet50", 0.7, n_queries=9) | network("b", "vgg16", 0.5, n_queries=9)
    (line,) = residual_lines(runs)
    assert "is untested against b (" in line
    assert f"fewer than 30 queries), {claims.UNDECIDED}." in line


def test_several_seeds_on_both_sides_compare_architectures():
    runs = network("a", "resnet50", 0.7, n_seeds=3) | network("b", "vgg16", 0.5, n_seeds=3)
    (line,) = residual_lines(runs)
    assert f"), {claims.AGREES}." in line
    assert "these trained networks only" not in line


def test_only_networks_of_the_same_treatment_are_compared():
    runs = network("frozen", "resnet50") | network("tuned", "vgg16", train="all")
    runs |= network("scratch", "resnet50", weights="none", train="all")
    runs |= network("cnn", "cnn", weights="none", train="all")
    assert claims.residual_connections(runs, tables.pairs(runs)) == ""
    runs |= network("frozen_vgg", "vgg16") | network("scratch_vgg", "vgg16", weights="none",
                                                     train="all")  # fmt: skip
    # Training the last blocks and training all layers are one treatment, and the line lists it.
    runs |= network("blocks", "resnet50", train="last_blocks:1")
    lines = {line.partition(": ")[0]: line for line in residual_lines(runs)}
    frozen = lines["- Frozen, from ImageNet weights"]
    tuned = lines["- Fine-tuned, from ImageNet weights"]
    scratch = lines["- From random weights"]
    assert len(lines) == 3
    assert "**frozen** is not" in frozen
    assert "**scratch** is not significantly different from scratch_vgg (" in scratch
    assert "They also" not in scratch
    assert "**blocks** is not significantly different from tuned (" in tuned
    assert tuned.endswith("may explain this: weights, trained.")


def test_networks_of_equal_input_size_are_compared_if_there_are_any():
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


def test_in_a_grid_only_the_shown_tests_are_corrected():
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
    """The gap from both accuracies; intervals on training images are ± 0.02."""
    queries = tables.quality(network("x", "cnn", accuracy=accuracy, n_queries=n))
    accuracy = queries.loc["x", "accuracy"]
    below = np.hypot(0.02, accuracy.high - accuracy.value)
    above = np.hypot(0.02, accuracy.value - accuracy.low)
    value = training - accuracy.value
    return Estimate(value, value - below, value + above)


def scratch(name: str, backbone: str, **settings) -> dict:
    return network(name, backbone, weights="none", train="all", **settings)


def test_a_gap_is_a_difference_of_independent_estimates():
    runs = scratch("cnn", "cnn", accuracy=0.8, training_accuracy=0.9, learn_from=50_000)
    (row,) = claims.gaps(runs).itertuples(index=False)
    assert tuple(row[:3]) == ("cnn", "from random weights", 50_000)
    assert str(row.gap) == str(gap(0.9, 0.8))
    # Without a deep network there is no text.
    assert claims.overfitting(runs) == ""


def test_the_interval_of_a_difference_combines_both_intervals():
    difference = Estimate(0.9, 0.86, 0.92) - Estimate(0.5, 0.45, 0.53)
    assert difference.value == pytest.approx(0.4)
    # 0.04 and 0.03 below, 0.02 and 0.05 above.
    assert difference.low == pytest.approx(0.35)
    assert difference.high == pytest.approx(0.4 + np.hypot(0.02, 0.05))
    assert np.isnan((Estimate(1.0) - Estimate(0.5, 0.4, 0.6)).low)


@pytest.mark.parametrize(
    ("training_accuracies", "comparison"),
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
def test_gaps_of_the_deep_network_are_compared_with_the_paper(training_accuracies, comparison):
    runs = scratch("deep", "vgg16", training_accuracy=0.97, accuracy=0.8)
    for name, training_accuracy in training_accuracies.items():
        runs |= scratch(name, name, training_accuracy=training_accuracy, accuracy=0.8)
    text = claims.overfitting(runs)
    (line,) = [line for line in text.splitlines() if line.startswith("- With ")]
    assert line == f"- With 500 images, from random weights, the gap of deep is {comparison}"


def test_gaps_are_compared_within_a_treatment_with_other_settings_listed():
    runs = scratch("cnn", "cnn", training_accuracy=0.85)
    runs |= network("deep", "vgg16", training_accuracy=0.99)
    assert "gap of deep" not in claims.overfitting(runs)
    runs |= network("frozen", "resnet50", training_accuracy=0.85, input_size=96)
    (line,) = [line for line in claims.overfitting(runs).splitlines() if line.startswith("- With ")]
    assert "- With 500 images, frozen, from ImageNet weights, the gap of deep is larger" in line
    assert "cnn" not in line
    assert line.endswith(
        "They also differ in other settings, which may explain this: weights, input (px)."
    )


def network_of_count(architecture: str, backbone: str, count: int, **settings) -> dict:
    """A point of a grid over the number of training images."""
    name, variant = f"{architecture}-{count}", f"learn_from={count}"
    return scratch(name, backbone, learn_from=count, variant=variant, **settings)


def test_overfitting_describes_the_gap_by_number_of_images():
    runs = network_of_count("cnn", "cnn", 50_000, training_accuracy=0.8, accuracy=0.6)
    runs |= network_of_count("cnn", "cnn", 500, training_accuracy=1.0, accuracy=0.3)
    runs |= network_of_count("small", "cnn", 500, training_accuracy=0.4, accuracy=0.3)
    runs |= network_of_count("small", "cnn", 50_000, training_accuracy=0.9, accuracy=0.5)
    runs |= network_of_count("even", "cnn", 500, training_accuracy=0.4, accuracy=0.3)
    runs |= network_of_count("even", "cnn", 50_000, training_accuracy=0.6, accuracy=0.5)
    lines = claims.overfitting(runs).splitlines()
    assert [line for line in lines if line.startswith("- ")] == [
        "- **cnn**: with 500 images, the gap is larger than with 50,000.",
        "- **small**: with 500 images, the gap is smaller than with 50,000.",
        "- **even**: with 500 images, the gap is not clearly different from that with 50,000.",
    ]


def test_networks_are_compared_at_every_number_of_images():
    runs = network_of_count("deep", "vgg16", 1000, training_accuracy=0.85)
    runs |= network_of_count("cnn", "cnn", 1000, training_accuracy=0.99)
    runs |= network_of_count("deep", "vgg16", 500, training_accuracy=0.99)
    runs |= network_of_count("cnn", "cnn", 500, training_accuracy=0.85)
    lines = [line for line in claims.overfitting(runs).splitlines() if line.startswith("- With ")]
    assert [line.partition(", from")[0] for line in lines] == [
        "- With 500 images",
        "- With 1,000 images",
    ]
    assert f"the gap of deep is larger than that of cnn, {claims.AGREES}." in lines[0]
    # The claim of the paper is about small data sets only.
    assert lines[1].endswith("the gap of deep is smaller than that of cnn.")


def test_other_grids_and_baselines_have_no_text():
    runs = network("cnn-32", "cnn", variant="input_size=32")
    assert claims.overfitting(runs) == ""
    baseline = {"random": result(rows([0.5, 0.6], architecture="random"), baseline=True)}
    assert claims.overfitting(baseline) == claims.residual_connections(baseline) == ""


# Input size


def test_input_size_describes_gain_and_cost_of_each_larger_size():
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


def test_a_grid_without_several_input_sizes_has_no_text():
    for grid in (["pooling=avg", "pooling=max"], ["input_size=32"]):
        runs = {}
        for variant in grid:
            runs |= network(f"net-{variant.partition('=')[2]}", "cnn", variant=variant)
        points = grids.points_table(runs)
        assert claims.input_size(points, grids.pairs(runs, points)) == ""


def test_frozen_networks_are_listed_if_others_are_not_frozen():
    frozen, tuned = network("head", "vgg16"), network("tuned", "vgg16", train="all")
    assert sentences.frozen(frozen | tuned) == " Frozen, with only a head trained: head."
    assert sentences.frozen(frozen) == sentences.frozen(tuned) == ""
