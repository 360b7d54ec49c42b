"""The paper's figures, measured anew: whose they are, and confusions that can be read."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from invented import result, rows

from cbir.reporting import charts, tables
from cbir.reporting.runs import networks, other_networks, plain_cnns

CLASSES = ["circle", "cross", "square"]


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


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
    drawn = [axis for axis in figure.axes if axis.axison]
    assert [axis.get_title() for axis in drawn] == ["cnn", "vgg", "res"]
    texts = [[text.get_text() for text in axis.texts] for axis in drawn]
    assert texts == [["1", "1", "0", "1"], ["2", "0", "0", "1"], ["0", "2", "1", "0"]]
    assert (drawn[0].get_xlabel(), drawn[0].get_ylabel()) == ("predicted class", "true class")


def names_at(axis) -> tuple[list[str], list[str]]:
    """The classes at the side and at the foot of a matrix."""
    labels = axis.get_yticklabels(), axis.get_xticklabels()
    return tuple([each.get_text() for each in side] for side in labels)


def run_of(n_classes: int, confused: list[tuple[int, int]]) -> dict:
    """A run of ten queries a class; of these pairs, one of the first is taken for the second."""
    labels = np.repeat(np.arange(n_classes), 10)
    predicted = labels.copy()
    for label, taken_for in confused:
        predicted[np.flatnonzero((labels == label) & (predicted == label))[0]] = taken_for
    run = result(rows([0.5] * len(labels), labels=labels, predicted=predicted))
    run.summary["dataset"]["classes"] = [f"class {label}" for label in range(n_classes)]
    return {"cnn": run}


def test_of_many_classes_those_confused_most_are_shown_with_names_and_numbers():
    # Class 3 has part in one confusion, classes 7 and 10 in none, all others in two or more.
    circle = [label for label in range(15) if label not in (3, 7, 10)]
    pairs = [*zip(circle, [*circle[1:], 0], strict=True), (9, 3)]
    (axis,) = charts.confusion_matrices(tables.confusions(run_of(15, pairs))).axes
    names = [f"class {label}" for label in circle]
    assert names_at(axis) == (names, names)
    assert axis.get_title() == "cnn\nof 15 classes, the 12 confused most often"
    texts = np.reshape([text.get_text() for text in axis.texts], (12, 12))
    at = circle.index(9)
    assert (texts[at, at], texts[at, at + 1]) == ("8", "1")
    # One of its queries was taken for a class that is not shown, and yet counts.
    shares = axis.collections[0].get_array().reshape(12, 12)
    assert shares[at, at] == pytest.approx(0.8)


def test_twelve_classes_are_all_shown():
    (axis,) = charts.confusion_matrices(tables.confusions(run_of(12, [(3, 4)]))).axes
    names = [f"class {label}" for label in range(12)]
    assert names_at(axis) == (names, names)
    assert axis.get_title() == "cnn"


def test_a_class_is_confused_with_what_it_is_taken_for_and_what_is_taken_for_it():
    labels, predicted = [0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 2, 2, 1, 1, 1, 2]
    counts = tables.confusion_counts(np.array(labels), np.array(predicted), CLASSES)
    # Class 2 has part in three confusions, class 0 in two, class 1 in one.
    assert charts.most_confused(counts, 1).tolist() == [2]
    assert charts.most_confused(counts, 2).tolist() == [0, 2]
    assert charts.most_confused(counts).tolist() == [0, 1, 2]


def test_networks_are_sorted_by_their_backbone():
    runs = {
        name: result(rows([0.5]), parameters={"backbone": backbone})
        for name, backbone in (("mine", "cnn"), ("strong", "cnn_strong"), ("vgg16", "vgg16"))
    }
    runs["random"] = result(rows([0.5]), baseline=True)
    assert list(plain_cnns(runs)) == ["mine"]
    assert list(other_networks(runs)) == ["strong", "vgg16"]
    assert list(networks(runs)) == ["mine", "strong", "vgg16"]
