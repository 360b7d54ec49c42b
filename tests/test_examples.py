"""Queries worth looking at, chosen by their scores, with the arithmetic done by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from invented import result, rows

from cbir.reporting import examples

CLASSES = ["circle", "cross", "square"]
# Gallery images 0 to 5: two of each class.
GALLERY_LABELS = np.array([0, 0, 1, 1, 2, 2])


def dataset(query_labels) -> SimpleNamespace:
    return SimpleNamespace(
        classes=CLASSES,
        gallery=np.arange(6),
        gallery_labels=GALLERY_LABELS,
        queries=np.arange(6, 6 + len(query_labels)),
        query_labels=np.asarray(query_labels),
    )


def run(scores, labels=None, rankings=None, images=None, **more):
    """A run with these average precisions and, optionally, rankings."""
    labels = [0] * len(scores) if labels is None else labels
    invented_run = result(rows(scores, labels=labels), **more)
    vars(invented_run)["dataset"] = images or dataset(labels)
    invented_run.rankings["unrestricted"] = np.array(rankings if rankings is not None else [[0]])
    return invented_run


def test_query_scores_are_from_the_first_seed_and_protocol():
    expected = rows([0.3, 0.1, 0.2], seed=5, queries=[9, 11, 14])
    others = [
        rows([0.9] * 3, seed=4),
        rows([0.9] * 3, seed=5, protocol="held_out_gallery"),
        rows([0.9] * 3, seed=5, search="soft"),
        rows([0.9] * 3, seed=5, epoch=1),
    ]
    scores = examples.query_scores(result(expected, *others))
    assert scores["average_precision"].tolist() == [0.3, 0.1, 0.2]
    assert scores.index.tolist() == [0, 1, 2]


def test_extremes_have_different_classes_and_ties_keep_their_order():
    #         0    1    2    3    4    5    6
    scores = [0.9, 1.0, 1.0, 0.8, 0.1, 0.5, 0.2]
    labels = [0, 1, 1, 2, 0, 2, 1]
    extremes = examples.extremes(run(scores, labels), most=2)
    chosen = extremes.groupby("case", sort=False)["query"].apply(list).to_dict()
    # The median is 0.8; the query at 0.9 is nearest to it of another class.
    assert chosen == {"best": [1, 0], "median": [3, 0], "worst": [4, 6]}
    assert extremes["average_precision"].tolist() == [1.0, 0.9, 0.8, 0.9, 0.1, 0.2]
    assert extremes["note"].iloc[0] == "best\nAP 1.00"


def test_extremes_repeat_classes_when_there_are_too_few():
    extremes = examples.extremes(run([0.9, 0.7, 0.8, 0.1], [0, 0, 0, 1]), most=3)
    assert extremes[extremes["case"] == "best"]["query"].tolist() == [0, 3, 2]
    assert extremes[extremes["case"] == "worst"]["query"].tolist() == [3, 1, 2]


def test_queries_without_a_score_are_not_extremes():
    extremes = examples.extremes(run([np.nan, 0.4, np.nan]), most=3)
    assert extremes["query"].tolist() == [1, 1, 1]


def test_disagreements_have_the_largest_differences_of_scores():
    runs = {
        "cnn": run([0.1, 0.5, 0.9, 0.4], [0, 0, 1, 2]),
        "vgg": run([0.9, 0.6, 0.4, 0.4], [0, 0, 1, 2]),
        "pixels": run([0.0, 0.0, 0.0, 0.0], [0, 0, 1, 2], baseline=True),
    }
    table = examples.disagreements(runs)
    # The last query has equal scores. The second repeats the class of the first, so it comes last.
    assert table["query"].tolist() == [0, 2, 1]
    assert table["spread"].tolist() == pytest.approx([0.8, 0.5, 0.1])
    assert table["highest"].tolist() == ["vgg", "cnn", "vgg"]
    assert table["lowest"].tolist() == ["cnn", "vgg", "cnn"]
    assert table["note"][0] == {"cnn": "AP 0.10", "vgg": "AP 0.90"}
    assert examples.disagreements(runs, most=2)["query"].tolist() == [0, 2]


def test_disagreements_require_two_networks():
    runs = {"cnn": run([0.1, 0.5]), "pixels": run([0.9, 0.9], baseline=True)}
    assert examples.disagreements(runs).empty
    assert examples.disagreements({}).empty


def test_disagreements_omit_queries_without_a_score():
    runs = {"cnn": run([np.nan, 0.5]), "vgg": run([0.9, 0.6])}
    assert examples.disagreements(runs)["query"].tolist() == [1]


def test_lost_precision_is_attributed_to_the_classes_of_the_misses():
    labels = [0, 0, 1, 1]
    rankings = [[0, 2, 3, 4], [1, 0, 2, -1], [2, 3, -1, -1], [0, 1, 2, 3]]
    cnn = run([0.4, 0.8, 0.5, 0.3], labels, rankings)
    table = examples.costly_confusions({"cnn": cnn})
    # Query 0 loses 0.6 to two crosses and a square, query 1 loses 0.2 to crosses, query 2 has no
    # miss among its first results, query 3 loses 0.7 to circles. There are four queries.
    confusions = table[["class", "returned", "queries", "query"]].to_numpy().tolist()
    assert confusions == [
        ["cross", "circle", 1, 3],
        ["circle", "cross", 2, 0],
        ["circle", "square", 1, 0],
    ]
    assert table["mAP lost"].tolist() == pytest.approx([0.7 / 4, (0.4 + 0.2) / 4, 0.2 / 4])
    assert table["note"][0] == "circle for\ncross"


@settings(max_examples=40, deadline=None)
@given(
    arrays.arrays(float, 7, elements=st.floats(0, 1)),
    arrays.arrays(int, (7, 4), elements=st.integers(-1, 5)),
    arrays.arrays(int, 7, elements=st.integers(0, 2)),
)
def test_losses_sum_to_the_missing_map_of_queries_with_misses(scores, rankings, labels):
    table = examples.costly_confusions({"cnn": run(scores, labels, rankings)}, most=99)
    misses = (rankings >= 0) & (GALLERY_LABELS[rankings] != labels[:, None])
    assert table["mAP lost"].sum() == pytest.approx(((1 - scores) * misses.any(axis=1)).sum() / 7)
    assert (table["class"] != table["returned"]).all()
    assert table["mAP lost"].is_monotonic_decreasing


def test_costly_confusions_omit_baselines():
    labels = [0, 1]
    runs = {
        "cnn": run([0.5, 0.5], labels, [[2, 4], [0, 4]]),
        "vgg": run([0.5, 0.5], labels, [[0, 1], [2, 3]]),
        "pixels": run([0.1, 0.1], labels, [[2, 2], [0, 0]], baseline=True),
    }
    table = examples.costly_confusions(runs)
    assert table["architecture"].tolist() == ["cnn"] * 3
    assert examples.costly_confusions({"pixels": runs["pixels"]}).empty


def test_hubs_count_results_and_misses():
    labels = [0, 1, 2]
    cnn = run([0.5] * 3, labels, [[0, 2], [0, 2], [0, -1]])
    counts = examples.hubs({"cnn": cnn})["cnn"]
    assert counts["returned"].tolist() == [3, 0, 2, 0, 0, 0]
    assert counts["wrongly"].tolist() == [2, 0, 1, 0, 0, 0]
    table = examples.hub_table({"cnn": cnn})
    assert table.loc["cnn", "never returned"] == pytest.approx(4 / 6)
    assert table.loc["cnn", ["most often returned", "of these wrongly"]].tolist() == [3, 2]


def test_skewness_is_the_third_standardised_moment():
    cnn = run([0.5] * 4, [0] * 4, [[0]] * 4)
    # Counts 4, 0, 0, 0, 0, 0: the mean is 2 / 3.
    deviations = np.array([10, -2, -2, -2, -2, -2]) / 3
    expected = (deviations**3).mean() / (deviations**2).mean() ** 1.5
    assert examples.hub_table({"cnn": cnn}).loc["cnn", "skewness"] == pytest.approx(expected)


def test_skewness_is_undefined_if_all_images_are_returned_equally_often():
    cnn = run([0.5] * 6, [0] * 6, [[position] for position in range(6)])
    assert np.isnan(examples.hub_table({"cnn": cnn}).loc["cnn", "skewness"])


def test_the_row_by_chance_matches_random_results():
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 4000)
    rankings = random.permuted(np.tile(np.arange(200), (4000, 1)), axis=1)[:, :2]
    images = dataset(labels)
    images.gallery, images.gallery_labels = np.arange(200), random.integers(0, 3, 200)
    few_images = SimpleNamespace(**vars(images) | {"queries": images.queries[:100]})
    few_images.query_labels = labels[:100]
    run_of_all = run([0.5] * 4000, labels, rankings, images)
    # Each image is a result with probability 2 / 200: of 4,000 queries, for 40 ± 6.3.
    table = examples.hub_table({"random": run_of_all})
    assert table.loc["by chance", "skewness"] == pytest.approx(0.98 / np.sqrt(4000 * 0.01 * 0.99))
    assert table.loc["random", "skewness"] == pytest.approx(0.156, abs=0.5)
    run_of_few = run([0.5] * 100, labels[:100], rankings[:100], few_images)
    table = examples.hub_table({"random": run_of_few})
    assert table.loc["by chance", "never returned"] == pytest.approx(0.99**100)
    assert table.loc["random", "never returned"] == pytest.approx(0.99**100, abs=0.1)


def test_predicted_labels_have_an_entry_for_every_query():
    runs = {"cnn": result(rows([0.5, 0.6], predicted=[1, 0])), "random": run([0.1, 0.2])}
    predictions = examples.predicted_labels(runs)
    assert {name: labels.tolist() for name, labels in predictions.items()} == {
        "cnn": [1, 0],
        "random": [-1, -1],
    }


def test_queries_at_quantiles_are_easy_typical_and_hard_for_the_networks():
    labels = [0] * 11
    scores = np.arange(11) / 10
    runs = {
        "cnn": run(scores, labels, [[0]] * 11),
        "vgg": run(scores[::-1] * 0.1, labels, [[0]] * 11),
        "pixels": run(1 - scores, labels, [[0]] * 11, baseline=True),
    }
    # The mean rises with the position; baselines do not count.
    assert examples.at_quantiles(runs) == {"easy": 9, "typical": 5, "hard": 1}
    assert examples.at_quantiles({"pixels": runs["pixels"]})["easy"] == 1
    assert set(examples.at_quantiles({"cnn": run([0.5], [0], [[0]])}).values()) == {0}
