"""Tables, sentences and figures of a grid, compared with values computed by hand."""

import numpy as np
import pytest
from invented import result, rows

from cbir.reporting import grids, tables
from cbir.reporting.grids import ACCURACY, INDEX, MAP, SECONDS, SPEED, TRAINING
from cbir.reporting.numbers import interval_columns
from cbir.retrieval import uncertainty
from cbir.studies import configs

pytestmark = pytest.mark.usefixtures("closed_figures")

NOTE = "how much seeds differ is unknown"
ONLY = f" (these trained networks only: {NOTE})"


def run(
    architecture: str, point: dict, scores, *, accuracy=1.0, training_accuracy=1.0, speed=1000.0
) -> dict:
    """A run of a grid by its name, with average precisions and accuracies."""
    name = configs.point_name(architecture, point)
    variant = configs.variant(point)
    frame = rows(scores, architecture=name, variant=variant, correct=accuracy)
    return {
        name: result(
            frame,
            variant=variant,
            speed={"images_per_second": speed, "query_milliseconds": 2.5},
            training_accuracy={
                "value": training_accuracy,
                "ci_low": training_accuracy - 0.1,
                "ci_high": training_accuracy + 0.05,
            },
        )
    }


def around(mean: float, n_queries: int = 200) -> list[float]:
    """Scores close to `mean`, which is their mean."""
    return [mean + 0.001 * (query % 2 or -1) for query in range(n_queries)]


@pytest.fixture(scope="module")
def runs():
    """Two architectures at two sizes, frozen or not: size helps both, training only vgg."""
    runs = {}
    means = {"vgg": (0.3, 0.5, 0.7, 0.9), "cnn": (0.2, 0.2, 0.4, 0.4)}
    points = [(size, train) for size in (32, 64) for train in ("head", "all")]
    for name, values in means.items():
        for (size, train), mean in zip(points, values, strict=True):
            scores = around(mean)
            if name == "cnn" and train == "all":
                # Half of the queries gain 0.0012, the others lose 0.001.
                scores = [mean + (0.0022 if query % 2 else -0.002) for query in range(200)]
            point = {"input_size": size, "train": train}
            runs |= run(name, point, scores, accuracy=mean, speed=32000.0 / size**2 * 32)
    return runs


@pytest.fixture(scope="module")
def points(runs):
    return grids.points_table(runs)


def learning(*counts: int) -> dict:
    """Runs of an architecture by number of training images; each adds 0.2 to the mAP."""
    runs = {}
    for index, count in enumerate(counts):
        mean = 0.2 + 0.2 * index
        point = {"learn_from": count}
        runs |= run("cnn", point, around(mean), accuracy=mean, training_accuracy=1.0 - 0.1 * index)
    return runs


# Tables


def test_a_row_has_the_point_and_the_results_of_a_run(runs, points):
    assert list(points.index) == list(runs)
    row = points.loc["vgg-64-head"]
    assert (row["architecture"], row["input_size"], row["train"]) == ("vgg", 64, "head")
    assert row[ACCURACY] == pytest.approx(0.7)
    assert row[MAP] == pytest.approx(0.7)
    # 200 queries, half at 0.699 and half at 0.701; others may score from 0 to 1.
    _, low, high = row[list(interval_columns(MAP))]
    assert 0.68 < low < 0.7 < high < 0.71
    assert row[list(interval_columns(TRAINING))].tolist() == pytest.approx([1.0, 0.9, 1.05])
    assert row[[SPEED, SECONDS, INDEX]].tolist() == [250.0, 70.0, 3.0]


def test_a_row_averages_seeds():
    run_of_two_seeds = result(
        rows([0.2, 0.4], architecture="cnn-0.1", seed=0, correct=[1.0, 0.0]),
        rows([0.6, 0.8], architecture="cnn-0.1", seed=1, correct=[1.0, 1.0]),
        variant="dropout=0.1",
    )
    row = grids.points_table({"cnn-0.1": run_of_two_seeds}).loc["cnn-0.1"]
    assert row[MAP] == pytest.approx(0.5)
    assert row[ACCURACY] == pytest.approx(0.75)


def test_dimensions_are_the_parameters_of_the_grid_in_their_order(points):
    assert grids.dimensions(points) == ["input_size", "train"]
    assert grids.is_number(points, "input_size")
    assert not grids.is_number(points, "train")


def test_the_axis_of_figures_is_the_numeric_dimension_with_most_values():
    def axis(**values):
        points = configs.points([values])
        runs = {}
        for point in points:
            runs |= run("cnn", point, [0.5])
        return grids.axis_of(grids.points_table(runs))

    assert axis(train=["head", "all", "last_blocks:1"], input_size=[32, 64]) == "input_size"
    assert axis(dropout=[0.1, 0.2], learn_from=[10, 20, 50]) == "learn_from"
    assert axis(train=["head", "all"], pooling=["avg", "max", "gem"]) == "pooling"
    assert axis(pooling=["avg"]) == "pooling"


def test_points_of_a_series_differ_only_along_the_axis(points):
    names = grids.series(points, "input_size")
    groups = {name: group.index.tolist() for name, group in names.groupby(names, sort=False)}
    assert groups == {
        "vgg, train head": ["vgg-32-head", "vgg-64-head"],
        "vgg, train all": ["vgg-32-all", "vgg-64-all"],
        "cnn, train head": ["cnn-32-head", "cnn-64-head"],
        "cnn, train all": ["cnn-32-all", "cnn-64-all"],
    }
    assert set(grids.series(grids.points_table(learning(10, 20)), "learn_from")) == {"cnn"}


def test_the_readable_table_shows_intervals(points):
    table = grids.readable(points)
    assert table.index.tolist() == ["vgg"] * 4 + ["cnn"] * 4
    columns = ["input_size", "train", ACCURACY, TRAINING, MAP, SPEED, SECONDS, INDEX]
    assert list(table.columns) == columns
    first = table.iloc[0]
    assert str(first[TRAINING]) == "1.00 [0.90,\u00a01.05]"
    assert str(first[ACCURACY]) == "0.300 [0.295,\u00a00.312]"
    assert first[[SPEED, SECONDS, INDEX]].tolist() == ["1,000", "70", "3.0"]


def test_a_training_time_on_another_machine_names_it():
    runs = run("cnn", {"dropout": 0.1}, [0.5]) | run("cnn", {"dropout": 0.2}, [0.5])
    machine = {"cpu": "a processor", "cores": 2, "gpus": ["A GPU"]}
    runs["cnn-0.2"].summary["trained_on"] = {"machine": machine, "versions": {}}
    points = grids.points_table(runs)
    assert grids.readable(points)[SECONDS].tolist() == ["70", "70 (on A GPU)"]
    assert grids.dimensions(points) == ["dropout"]


# Which differences are significant


def test_pairs_differ_in_exactly_one_parameter(runs, points):
    pairs = grids.pairs(runs, points)
    unordered = {frozenset(pair) for pair in zip(pairs["ahead"], pairs["behind"], strict=True)}
    expected = {
        frozenset((f"{name}-{first_point}", f"{name}-{second_point}"))
        for name in ("vgg", "cnn")
        for first_point, second_point in (
            ("32-head", "32-all"), ("64-head", "64-all"),
            ("32-head", "64-head"), ("32-all", "64-all"),
        )
    }  # fmt: skip
    assert unordered == expected
    assert len(pairs) == 8


def test_only_pairs_of_the_table_enter_the_correction(runs, points):
    pairs = grids.pairs(runs, points)
    assert pairs["p_holm"].to_numpy() == pytest.approx(uncertainty.holm(pairs["p"].to_numpy()))
    assert (pairs["is_significant"] == (pairs["p_holm"] < 0.05)).all()
    # A correction for all 28 pairs of points would be larger.
    p_values_of_all = tables.pairs(runs).set_index(["ahead", "behind"])["p_holm"]
    p_values = pairs.set_index(["ahead", "behind"])["p_holm"]
    assert (p_values <= p_values_of_all[p_values.index]).all()
    assert (p_values < p_values_of_all[p_values.index]).any()
    # No choice of signs is as extreme, except in two pairs of cnn.
    significant = pairs[pairs["is_significant"]]
    assert len(significant) == 6
    assert significant["p"].to_numpy() == pytest.approx(1 / 10_001)
    assert significant["p_holm"].to_numpy() == pytest.approx(8 / 10_001)
    tied = pairs[~pairs["is_significant"]]
    assert tied["ahead"].tolist() == ["cnn-64-all", "cnn-32-all"]
    assert tied["difference"].to_numpy() == pytest.approx(0.0001)


def test_a_grid_with_only_one_result_has_no_pairs():
    runs = run("cnn", {"dropout": 0.1}, [0.5, 0.6])
    pairs = grids.pairs(runs, grids.points_table(runs))
    assert pairs.empty
    assert tables.pairs_table(pairs).empty
    assert "dropout 0.1" in grids.best_points(grids.points_table(runs), pairs, NOTE)


# Sentences


def test_the_best_point_of_an_architecture_is_named_with_its_cost(runs, points):
    paragraphs = grids.best_points(points, grids.pairs(runs, points), NOTE).split("\n\n")
    assert len(paragraphs) == 2
    assert paragraphs[0] == (
        "The highest mAP of **vgg** is 0.900 [0.884,\u00a00.902], with `input_size 64, train all`."
        "\n- The fastest is `input_size 32, train head`, 4.0 times as fast, with an mAP of 0.300."
    )


def test_points_not_significantly_different_from_the_best_are_named(runs, points):
    paragraphs = grids.best_points(points, grids.pairs(runs, points), NOTE).split("\n\n")
    assert "Not significantly" not in paragraphs[0]
    assert paragraphs[1].startswith("The highest mAP of **cnn** is 0.40")
    assert "with `input_size 64, train all`." in paragraphs[1]
    assert (
        f"Not significantly different from it: `input_size 64, train head`{ONLY}.\n- The fastest"
        in paragraphs[1]
    )


def test_a_point_with_too_few_queries_is_untested(runs, points):
    compared = grids.pairs(runs, points).assign(p=np.nan, is_significant=False)
    text = grids.best_points(points, compared, NOTE)
    assert "Not significantly different" not in text
    assert "because there are fewer than 30 queries: `input_size 64, train head`" in text


@pytest.mark.parametrize("order", [["avg", "gem"], ["gem", "avg"]])
def test_equal_points_are_not_significantly_different(order):
    runs = {}
    for pooling in order:
        runs |= run("cnn", {"pooling": pooling}, around(0.5))
    points = grids.points_table(runs)
    text = grids.best_points(points, grids.pairs(runs, points), NOTE)
    assert f"with `pooling {order[0]}`." in text
    assert f"Not significantly different from it: `pooling {order[1]}`{ONLY}." in text


def test_a_point_that_is_both_best_and_fastest_is_named_once():
    runs = run("cnn", {"dropout": 0.1}, around(0.9), speed=900.0)
    runs |= run("cnn", {"dropout": 0.2}, around(0.5), speed=800.0)
    points = grids.points_table(runs)
    text = grids.best_points(points, grids.pairs(runs, points), NOTE)
    assert text.endswith("with `dropout 0.1`.")


def test_a_rival_that_differs_in_two_parameters_is_named_as_not_tested():
    runs = run("cnn", {"input_size": 32, "train": "head"}, [0.1, 0.9, 0.5] * 50)
    runs |= run("cnn", {"input_size": 64, "train": "all"}, [0.2, 0.9, 0.5] * 50)
    runs |= run("cnn", {"input_size": 96, "train": "head"}, [0.0, 0.001, 0.0] * 50)
    points = grids.points_table(runs)
    text = grids.best_points(points, grids.pairs(runs, points), NOTE)
    assert "with `input_size 64, train all`." in text
    assert (
        "Not tested against it, because more than one parameter differs, but with overlapping "
        "intervals: `input_size 32, train head`." in text
    )


def test_a_run_without_a_grid_uses_its_parameters_as_point():
    parameters = {
        "train": "all",
        "input_size": 64,
        "training": {"dropout": 0.5, "augmentation": []},
    }
    runs = {}
    for size in (32, 96):
        runs |= run("cnn", {"input_size": size, "dropout": 0.1}, around(0.5))
    scores = rows(around(0.7), architecture="vgg", correct=1.0)
    fixed = result(scores, parameters=parameters)
    fixed.summary["dataset"] |= {"train": 40, "validation": 10}
    points = grids.points_table(runs | {"vgg": fixed})
    assert points.loc["vgg", ["architecture", "input_size", "dropout"]].tolist() == ["vgg", 64, 0.5]
    names = grids.series(points, "input_size")
    assert list(names.unique()) == ["cnn, dropout 0.1", "vgg, dropout 0.5"]
    # Its number of training images, if other runs vary theirs.
    points = grids.points_table(learning(10, 20) | {"vgg": fixed})
    assert points.loc["vgg", "learn_from"] == 50
    # The parameters with which a head was trained are unknown.
    frozen = result(scores, parameters=parameters | {"train": "head"})
    runs = run("cnn", {"dropout": 0.1}, [0.5]) | run("cnn", {"dropout": 0.2}, [0.5])
    points = grids.points_table(runs | {"vgg": frozen})
    assert points["dropout"].tolist() == [0.1, 0.2, "–"]
    # Mixed with numbers, a dash is a column, and the axis has no order.
    assert not grids.is_number(points, "dropout")
    axis = grids.heat_maps(points).axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0.1", "0.2", "–"]


# Figures


def test_heat_maps_have_a_row_per_series_and_a_column_per_value(points):
    figure = grids.heat_maps(points)
    assert [axis.get_title() for axis in figure.axes] == [ACCURACY, MAP, SPEED]
    assert {axis.get_xlabel() for axis in figure.axes} == {"input_size"}
    first = figure.axes[0]
    assert [label.get_text() for label in first.get_xticklabels()] == ["32", "64"]
    names = grids.series(points, "input_size").unique()
    assert [label.get_text() for label in first.get_yticklabels()] == list(names)
    texts = [[label.get_text() for label in axis.texts] for axis in figure.axes]
    values = ["0.300", "0.700", "0.500", "0.900", "0.200", "0.400", "0.200", "0.400"]
    assert texts == [values, values, ["1,000", "250"] * 4]


def test_speeds_are_not_compared_across_numbers_of_training_images():
    runs = learning(10, 20) | run("cnn", {"learn_from": 5}, [0.1], accuracy=0.1, speed=9000.0)
    points = grids.points_table(runs)
    figure = grids.heat_maps(points)
    assert [axis.get_title() for axis in figure.axes] == [ACCURACY, MAP, TRAINING]
    assert [label.get_text() for label in figure.axes[2].texts][1:] == ["1.000", "0.900"]
    assert "fastest" not in grids.best_points(points, grids.pairs(runs, points), NOTE)


def test_heat_maps_sort_numbers_but_not_names():
    def columns(runs):
        axis = grids.heat_maps(grids.points_table(runs)).axes[0]
        return [label.get_text() for label in axis.get_xticklabels()]

    runs_by_pooling = run("cnn", {"pooling": "max"}, [0.5]) | run("cnn", {"pooling": "avg"}, [0.6])
    assert columns(runs_by_pooling) == ["max", "avg"]
    assert columns(learning(50, 10, 20)) == ["10", "20", "50"]


def test_a_point_without_results_has_an_empty_cell(points):
    figure = grids.heat_maps(points.drop(index="vgg-32-head"))
    texts = [label.get_text() for label in figure.axes[0].texts]
    assert len(texts) == 7
    assert "0.300" not in texts


def test_curves_of_training_images_are_dashed():
    points = grids.points_table(learning(500, 50000, 1000))
    figure = grids.curves(points)
    left, right = figure.axes
    assert (left.get_ylabel(), right.get_ylabel()) == (ACCURACY, MAP)
    for axis in (left, right):
        assert (axis.get_xlabel(), axis.get_xscale()) == ("learn_from", "log")
        assert axis.get_xticks().tolist() == [500, 1000, 50000]
    queries, training = left.lines
    (mean_ap,) = right.lines
    assert (queries.get_linestyle(), training.get_linestyle()) == ("-", "--")
    for line in (queries, training, mean_ap):
        assert line.get_xdata().tolist() == [500, 1000, 50000]
    assert queries.get_ydata().tolist() == pytest.approx([0.2, 0.6, 0.4])
    assert training.get_ydata().tolist() == pytest.approx([1.0, 0.8, 0.9])
    assert mean_ap.get_ydata().tolist() == pytest.approx([0.2, 0.6, 0.4])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.texts] == ["cnn", "cnn, training images"]


@pytest.mark.parametrize(("values", "scale"), [([0, 64, 128], "linear"), ([32, 64, 128], "log")])
def test_curves_can_show_zero(values, scale):
    runs = {}
    for value in values:
        runs |= run("cnn", {"whitening": value}, around(0.5))
    figure = grids.curves(grids.points_table(runs))
    axis = figure.axes[0]
    assert axis.get_xscale() == scale
    positions = axis.transData.transform([(value, 0.5) for value in values])[:, 0]
    steps = [later - earlier for earlier, later in zip(positions, positions[1:], strict=False)]
    assert steps[0] == pytest.approx(steps[1], rel=0.01)


def test_curves_show_intervals(points):
    figure = grids.curves(points)
    left, right = figure.axes
    assert (len(left.lines), len(right.lines)) == (8, 4)
    assert len({line.get_color() for line in right.lines}) == 4
    band = right.collections[0].get_paths()[0].vertices
    rows_of_line = points.loc[["vgg-32-head", "vgg-64-head"]]
    ends = rows_of_line[list(interval_columns(MAP)[1:])].to_numpy()
    for size, (low, high) in zip((32, 64), ends, strict=True):
        heights = band[band[:, 0] == size, 1]
        assert (heights.min(), heights.max()) == pytest.approx((low, high))
