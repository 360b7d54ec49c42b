"""Charts of confusions, scores per class, pairs of architectures and training."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from invented import result, rows

from cbir.reporting import charts, display, measurements, tables
from cbir.reporting.numbers import from_row
from cbir.reporting.runs import networks, papers_networks
from cbir.retrieval import uncertainty

pytestmark = pytest.mark.usefixtures("few_queries", "closed_figures")

CLASSES = ["circle", "cross", "square"]


def test_confusions_are_counted_by_true_and_predicted_class():
    counts = tables.confusion_counts([0, 0, 1, 2, 2], [0, 2, 1, 2, -1], CLASSES)
    assert counts.to_numpy().tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 1]]
    assert counts.loc["circle", "square"] == 1


def test_each_network_has_its_confusion_matrix():
    runs = {
        name: result(rows([0.5] * 3, labels=[0, 0, 1], predicted=predicted))
        for name, predicted in (("cnn", [0, 1, 1]), ("vgg", [0, 0, 1]), ("res", [1, 1, 0]))
    }
    runs["pixels"] = result(rows([0.5] * 3), baseline=True)
    figure = charts.confusion_matrices(tables.confusions(runs))
    matrices = [axis for axis in figure.axes if axis.axison]
    assert [axis.get_title() for axis in matrices] == ["cnn", "vgg", "res"]
    texts = [[text.get_text() for text in axis.texts] for axis in matrices]
    assert texts == [["1", "1", "", "1"], ["2", "", "", "1"], ["", "2", "1", ""]]
    assert (matrices[0].get_xlabel(), matrices[0].get_ylabel()) == ("predicted class", "true class")


def names_at(axis) -> tuple[list[str], list[str]]:
    """The tick labels at the side and below a matrix."""
    labels = axis.get_yticklabels(), axis.get_xticklabels()
    return tuple([text.get_text() for text in side] for side in labels)


def run_of(n_classes: int, confused: list[tuple[int, int]]) -> dict:
    """A run of ten queries per class with one query confused for each pair of classes."""
    labels = np.repeat(np.arange(n_classes), 10)
    predicted = labels.copy()
    for label, predicted_label in confused:
        predicted[np.flatnonzero((labels == label) & (predicted == label))[0]] = predicted_label
    run = result(rows([0.5] * len(labels), labels=labels, predicted=predicted))
    run.summary["dataset"]["classes"] = [f"class {label}" for label in range(n_classes)]
    return {"cnn": run}


def test_only_the_most_confused_of_many_classes_are_drawn():
    # Class 3 is in one confusion, classes 7 and 10 are in none, all others in two or more.
    circle = [label for label in range(15) if label not in (3, 7, 10)]
    pairs = [*zip(circle, [*circle[1:], 0], strict=True), (9, 3)]
    (axis,) = charts.confusion_matrices(tables.confusions(run_of(15, pairs))).axes
    names = [f"class {label}" for label in circle]
    assert names_at(axis) == (names, names)
    assert axis.get_title() == "cnn\nthe 12 of 15 classes confused most often"
    texts = np.reshape([text.get_text() for text in axis.texts], (12, 12))
    position = circle.index(9)
    assert (texts[position, position], texts[position, position + 1]) == ("8", "1")
    # A query confused with a class that is not drawn counts as well.
    shares = axis.collections[0].get_array().reshape(12, 12)
    assert shares[position, position] == pytest.approx(0.8)


def test_twelve_classes_are_all_drawn():
    (axis,) = charts.confusion_matrices(tables.confusions(run_of(12, [(3, 4)]))).axes
    names = [f"class {label}" for label in range(12)]
    assert names_at(axis) == (names, names)
    assert axis.get_title() == "cnn"


def test_most_confused_counts_confusions_in_both_directions():
    labels, predicted = [0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 2, 2, 1, 1, 1, 2]
    counts = tables.confusion_counts(np.array(labels), np.array(predicted), CLASSES)
    # Class 2 is in three confusions, class 0 in two, class 1 in one.
    assert charts.most_confused(counts, 1).tolist() == [2]
    assert charts.most_confused(counts, 2).tolist() == [0, 2]
    assert charts.most_confused(counts).tolist() == [0, 1, 2]


def test_networks_of_the_paper_are_recognised_by_their_backbone():
    runs = {
        name: result(rows([0.5]), parameters={"backbone": backbone})
        for name, backbone in (("mine", "cnn"), ("strong", "cnn_strong"), ("vgg16", "vgg16"))
    }
    runs["random"] = result(rows([0.5]), baseline=True)
    assert list(papers_networks(runs)) == ["mine", "vgg16"]
    assert list(networks(runs)) == ["mine", "strong", "vgg16"]


def table_of(**scores) -> pd.DataFrame:
    """Rows of metrics.csv from average precisions by architecture."""
    frames = [
        measurements.metrics(
            rows(values, architecture=name, labels=[0, 0, 1, 1] * (len(values) // 4)), CLASSES
        )
        for name, values in scores.items()
    ]
    return pd.concat(frames, ignore_index=True)


def test_the_heat_map_shows_the_interval_of_each_class():
    table = table_of(cnn=[0.2, 0.4, 0.9, 0.9] * 50, vgg=[0.1, 0.1, 0.5, 0.7] * 50)
    figure = charts.per_class(table, "mean_average_precision", "unrestricted")
    texts = [text.get_text() for text in figure.axes[0].texts]
    scores = {"a": [0.2, 0.4] * 50, "b": [0.1] * 100, "c": [0.9] * 100, "d": [0.5, 0.7] * 50}
    means = uncertainty.intervals(pd.DataFrame(scores))
    assert texts == [str(from_row(row)).replace(" ", "\n") for _, row in means.iterrows()]
    assert texts[3].startswith("0.600\n[0.5")
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == CLASSES[:2]


def test_the_heat_map_shows_no_interval_for_a_single_query():
    table = measurements.metrics(rows([0.5, 0.25], labels=[0, 1]), CLASSES)
    figure = charts.per_class(table, "mean_average_precision", "unrestricted")
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.500", "0.250"]


def test_the_heat_map_shows_the_hardest_of_many_classes():
    names = [f"class {label:02d}" for label in range(50)]
    scores = np.random.default_rng(0).permutation(50) / 50
    frame = rows(np.repeat(scores, 2), labels=np.repeat(np.arange(50), 2))
    figure = charts.per_class(
        measurements.metrics(frame, names), "mean_average_precision", "unrestricted"
    )
    classes = {text.get_text() for text in figure.axes[0].get_yticklabels()}
    assert classes == {names[label] for label in np.argsort(scores)[: display.MOST_ROWS]}


@pytest.mark.parametrize("score", [0.0, 1.0, 0.11779448621553884, 0.017543859649122806])
@pytest.mark.parametrize("n_queries", [1, 2, 3, 97])
def test_equal_scores_of_all_queries_can_be_drawn(score, n_queries):
    table = measurements.metrics(rows([score] * n_queries), CLASSES)
    (axis,) = charts.by_search(table).axes
    assert axis.get_legend_handles_labels()[1] == ["unrestricted"]


def test_the_pair_matrix_shows_outcomes_and_differences():
    scores = {"cnn": [0.1] * 6, "vgg": [0.5, 0.4] * 3, "pixels": [0.1, 0.2] * 3}
    pairs = uncertainty.compare(pd.DataFrame(scores))
    pairs["is_significant"] = pairs["behind"] == "cnn"
    pairs["covers_seeds"] = pairs["ahead"] == "vgg"
    figure = charts.pair_matrix(uncertainty.pair_outcomes(pairs, list(scores)), pairs)
    # Row by row; the diagonal is empty.
    texts = [text.get_text().split("\n") for text in figure.axes[0].texts]
    assert [" ".join(text[:2]) for text in texts] == [
        "loss -0.35", "loss* -0.05", "win +0.35", "tie +0.30", "win* +0.05", "tie -0.30",
    ]  # fmt: skip
    # The interval below the diagonal has the opposite signs.
    upper, lower = (
        np.array(texts[position][2].strip("[]").split(",\u00a0"), float) for position in (0, 2)
    )
    assert upper.tolist() == (-lower[::-1]).tolist()
    assert upper[0] < -0.35 < upper[1] < 0


def test_scores_have_a_row_per_metric_and_a_column_per_search():
    frame = pd.concat([rows([0.2, 0.4]), rows([0.0, 1.0], search="predicted_class", searched=0.5)])
    frame["precision@5"] = frame["precision@10"] = 0.25
    run = SimpleNamespace(first_rows=lambda: measurements.metrics(frame, CLASSES))
    table = tables.scores(run)
    assert list(table.columns) == ["metric", "k", "unrestricted", "predicted_class"]
    assert list(zip(table["metric"], table["k"], strict=True)) == [
        ("mean_average_precision", "all"), ("precision", "5"), ("precision", "10"),
        ("gallery_searched", "all"),
    ]  # fmt: skip
    assert str(table["unrestricted"].iloc[0]) == "0.3 [0.0,\u00a00.9]"
    assert str(table["predicted_class"].iloc[3]) == "0.500 [0.500,\u00a00.500]"


def test_quality_and_cost_are_given_per_image():
    run = result(rows([0.25, 0.75]), index_bytes=5_120_000)
    (row,) = tables.quality_and_cost({"cnn": run}).itertuples()
    # 1,000 images per second, 5,000 images in the gallery.
    assert (row.value, row.milliseconds, row.bytes, row.is_baseline) == (0.5, 1, 1024, False)


def history_of(epochs: int) -> pd.DataFrame:
    columns = ["accuracy", "loss", "val_accuracy", "val_loss"]
    return pd.DataFrame(0.5, index=range(1, epochs + 1), columns=columns)


@pytest.mark.parametrize("epochs", [1, 3, 12, 13, 200])
def test_curves_have_a_marker_per_network_and_a_line_style_per_part(epochs):
    names = ["cnn", "resnet50", "vgg16"]
    figure = charts.training_curves({name: history_of(epochs) for name in names})
    for axis in figure.axes:
        lines = {tuple(line.get_label().split(", ")): line for line in axis.lines}
        assert list(lines) == [
            (name, part) for name in names for part in ("training", "validation")
        ]
        for name in names:
            looks = {
                (lines[name, part].get_color(), lines[name, part].get_marker())
                for part in ("training", "validation")
            }
            assert looks == {display.looks(names)[name]}
            assert lines[name, "training"].get_linestyle() == "-"
            assert lines[name, "validation"].get_linestyle() == "--"
            markers = range(epochs)[:: lines[name, "training"].get_markevery()]
            assert min(epochs, 6) <= len(markers) <= charts.MOST_MARKERS


def test_a_run_without_epochs_has_an_empty_curve():
    figure = charts.training_curves({"cnn": history_of(0), "vgg16": history_of(2)})
    figure.canvas.draw()
    assert [len(line.get_xdata()) for line in figure.axes[0].lines] == [0, 0, 2, 2]
