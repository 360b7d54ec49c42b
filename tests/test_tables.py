"""Tables of the comparison: the cells of each table and how they are computed."""

import json
import math
import re

import invented
import numpy as np
import pandas as pd
import pytest
from conftest import load_shapes
from hypothesis import given
from hypothesis import strategies as st
from invented import result, rows

from cbir.images import leaks, protocols
from cbir.reporting import measurements, provenance, sentences, tables
from cbir.reporting.numbers import Estimate, from_row
from cbir.reporting.runs import write_study
from cbir.retrieval import metrics, uncertainty

pytestmark = pytest.mark.usefixtures("few_queries")

CELL = r"[01]\.\d+ \[[01]\.\d+,\u00a0[01]\.\d+\]"
PROTOCOLS = ["closed", "held_out_gallery", "unseen_classes"]
WORSE = ["vgg16", "raw_pixels"]


@pytest.fixture(scope="module")
def dataset(runs):
    return load_shapes()


def mean_ap(run, **wanted) -> float:
    """The mean average precision of the unrestricted search over all queries."""
    whole = {"metric": "mean_average_precision", "k": None, "search": "unrestricted"}
    return measurements.select(run.metrics, **whole, **wanted)["value"].item()


def value_of(cell: Estimate) -> float:
    """The number in front of an interval."""
    return cell.value


def test_pairs_are_compared_on_the_mean_over_seeds_of_each_query():
    ahead = result(rows([0.0, 0.2, 0.4], seed=0), rows([1.0, 0.4, 0.4], seed=1))
    behind = result(rows([0.2, 0.2, 0.1], seed=0))
    (pair,) = tables.pairs({"ahead": ahead, "behind": behind}).itertuples()
    # 0.5, 0.3, 0.4 against 0.2, 0.2, 0.1: ahead by 0.3, 0.1 and 0.3.
    assert (pair.ahead, pair.behind, pair.n_queries) == ("ahead", "behind", 3)
    assert pair.difference == pytest.approx(0.7 / 3)
    # Of the eight choices of signs, two have a mean as far from 0: this one and its opposite.
    assert pair.p == pytest.approx(2 / 8, abs=0.02)
    assert pair.effect_size == pytest.approx(
        np.mean([0.3, 0.1, 0.3]) / np.std([3, 1, 3], ddof=1) * 10
    )


def test_a_second_seed_adds_no_queries_to_a_comparison():
    scores = [0.1, 0.3, 0.6, 0.4]
    two_seeds = result(rows(scores, seed=0), rows(scores, seed=1))
    opponent = result(rows([0.0, 0.2, 0.7, 0.2], seed=0))
    pairs = [tables.pairs({"a": run, "b": opponent}) for run in (two_seeds, result(rows(scores)))]
    pd.testing.assert_frame_equal(pairs[0], pairs[1])


def test_other_states_searches_and_protocols_do_not_enter_a_pair():
    ignored_rows = [
        rows([0.9, 0.9], epoch=1), rows([0.9, 0.9], search="soft"),
        rows([0.9, 0.9], protocol="held_out_gallery"),
    ]  # fmt: skip
    low, high = result(rows([0.1, 0.2]), *ignored_rows), result(rows([0.3, 0.3]), *ignored_rows)
    (pair,) = tables.pairs({"low": low, "high": high}).itertuples()
    assert pair.ahead == "high"
    assert pair.difference == pytest.approx(0.15)


def test_queries_are_matched_by_their_ids():
    low = result(rows([0.1, 0.9], queries=[7, 5]))
    high = result(rows([0.9, 0.2], queries=[5, 7]))
    (pair,) = tables.pairs({"low": low, "high": high}).itertuples()
    assert (pair.ahead, pair.difference) == ("high", pytest.approx(0.05))


def test_queries_without_a_score_are_left_out_of_the_comparison():
    first_run, second_run = result(rows([0.9, np.nan, 0.8])), result(rows([0.1, 0.9, 0.2]))
    (pair,) = tables.pairs({"first": first_run, "second": second_run}).itertuples()
    assert (pair.n_queries, pair.difference) == (2, pytest.approx(0.7))


def test_every_pair_is_compared_once(runs):
    pairs = tables.pairs(runs)
    both = {frozenset(pair) for pair in zip(pairs["ahead"], pairs["behind"], strict=True)}
    assert len(both) == len(pairs) == 3
    assert (pairs["n_queries"] == 12).all()
    assert tables.pairs({"cnn": runs["cnn"]}).empty


def test_the_table_of_pairs_agrees_with_the_test(runs):
    pairs = tables.pairs(runs)
    table = tables.pairs_table(pairs)
    assert (table["significant"] == pairs["is_significant"].map({True: "yes", False: "no"})).all()
    assert set(table["significant"]) == {"yes", "no"}
    for row, pair in zip(table.itertuples(), pairs.itertuples(), strict=True):
        assert row[3] == Estimate(pair.difference, pair.ci_low, pair.ci_high)


def test_the_spread_of_seeds_and_the_interval_over_queries_are_separate_columns():
    wide, narrow = rows([0.0, 1.0], architecture="cnn", seed=0), rows([0.6, 0.6], seed=1)
    last = rows([0.1, 0.5], seed=2)
    cnn = result(wide, narrow, last)
    vgg = result(rows([0.2, 0.4], architecture="vgg16"))
    for run in (cnn, vgg):
        object.__setattr__(run, "metrics", measurements.metrics(run.per_query, ["circle", "cross"]))
    table = tables.seeds({"cnn": cnn, "vgg16": vgg}).set_index("architecture")
    assert table["seeds"].to_dict() == {"cnn": 3, "vgg16": 1}
    of_cnn = table.loc["cnn"]
    assert of_cnn["mean"] == pytest.approx((0.5 + 0.6 + 0.3) / 3)
    assert (of_cnn["lowest"], of_cnn["highest"]) == pytest.approx((0.3, 0.6))
    assert of_cnn["standard deviation"] == pytest.approx(np.std([0.5, 0.6, 0.3], ddof=1))
    scores = pd.DataFrame({"0": [0.0, 1.0], "1": [0.6, 0.6], "2": [0.1, 0.5], "vgg16": [0.2, 0.4]})
    low, high = uncertainty.confidence_bounds(scores.to_numpy())
    halves = (high - low) / 2
    assert of_cnn["half of the interval over queries"] == pytest.approx(halves[:3].mean())
    # A single seed has no standard deviation.
    assert np.isnan(table.loc["vgg16", "standard deviation"])
    assert table.loc["vgg16", "half of the interval over queries"] == pytest.approx(halves[3])


def test_architectures_may_have_different_numbers_of_seeds(runs):
    table = tables.seeds(runs).set_index("architecture")
    assert table["seeds"].to_dict() == {"cnn": 2, "vgg16": 1, "raw_pixels": 1}
    by_seed = [mean_ap(runs["cnn"], seed=seed, protocol="closed") for seed in (1, 3)]
    assert table.loc["cnn", "mean"] == pytest.approx(np.mean(by_seed))
    assert (table.loc["cnn", "lowest"], table.loc["cnn", "highest"]) == (min(by_seed), max(by_seed))
    assert by_seed[0] != by_seed[1]


def test_each_cell_of_the_quality_table_has_an_interval(runs):
    table = tables.quality(runs)
    assert list(table.columns) == list(tables.QUALITY)
    for name in ("cnn", "vgg16"):
        assert all(re.fullmatch(CELL, str(cell)) for cell in table.loc[name])
    baseline = table.loc["raw_pixels"]
    measured = baseline[baseline.map(str) != "–"]
    assert list(measured.index) == ["mAP, unrestricted", "P@10, unrestricted"]
    assert all(re.fullmatch(CELL, str(cell)) for cell in measured)
    by_seed = [mean_ap(runs["cnn"], seed=seed, protocol="closed") for seed in (1, 3)]
    assert value_of(table.loc["cnn", "mAP, unrestricted"]) == pytest.approx(
        np.mean(by_seed), rel=1e-5
    )
    assert table.loc["cnn", "accuracy"] == table.loc["cnn", "mAP, predicted class"]


def test_the_first_protocol_is_that_of_the_runs(runs):
    rows = tables.first_protocol_rows(runs)
    assert set(rows["protocol"]) == {"closed"}
    assert set(tables.average_rows(runs)["protocol"]) == {*PROTOCOLS}


def test_protocols_are_rows_and_unseen_classes_are_rows_of_their_draw(runs, dataset):
    table = tables.by_protocol(runs)
    assert list(table.columns) == ["cnn", "vgg16", "raw_pixels"]
    labels = list(table.index)
    assert labels[:2] == ["closed", "held_out_gallery"]
    assert labels[4:] == ["unseen_classes, mean over classes (2) of all draws"]
    unseen_classes = [label.removeprefix("unseen_classes: ") for label in labels[2:4]]
    for draw, name in enumerate(unseen_classes):
        view = protocols.view(dataset, "unseen_classes", unseen=1, draw=draw)
        assert {dataset.classes[label] for label in view.query_labels} == {name}
        expected = mean_ap(runs["cnn"], protocol="unseen_classes", draw=draw)
        assert value_of(table.loc[f"unseen_classes: {name}", "cnn"]) == pytest.approx(
            expected, rel=1e-5
        )
    assert len(set(unseen_classes)) == 2
    # A protocol that was not measured has a dash instead of a score.
    assert (table["vgg16"].iloc[1:].map(str) == "–").all()
    # A draw has one class here, so that an interval over its queries would not cover classes.
    one_class = [cell for name in ("cnn", "raw_pixels") for cell in table[name].iloc[2:]]
    assert all(re.fullmatch(r"[01]\.\d+", str(cell)) for cell in one_class)
    others = [*table["cnn"].iloc[:2], *table["raw_pixels"].iloc[:2], table["vgg16"].iloc[0]]
    assert all(re.fullmatch(CELL, str(cell)) for cell in others)


def test_hashing_is_also_reported_at_the_depth_of_its_literature():
    run = result(
        rows([0.2, 0.4]).assign(**{"average_precision@1000": 0.1}),
        rows([0.6, 0.8], protocol="hashing_1k").assign(**{"average_precision@1000": 0.9}),
    )
    table = tables.by_protocol({"cnn": run})["cnn"]
    assert list(table.index) == ["closed", "hashing_1k", "hashing_1k, mAP@1000"]
    assert [value_of(cell) for cell in table] == pytest.approx([0.3, 0.7, 0.9])


def test_lost_queries_are_those_whose_class_no_search_reaches():
    frames = [
        rows(soft, seed=seed, search="soft", correct=correct, searched=0.5)
        for seed, soft, correct in (
            (0, [0.9, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]),
            (1, [0.9, 0.8, 0.7, 0.0], [1.0, 1.0, 0.0, 0.0]),
        )
    ]
    table = tables.lost_and_won_back(
        {"cnn": result(*frames), "random": result(rows([0.5] * 4), baseline=True)}
    )
    assert table.index.tolist() == ["cnn"]
    assert table.loc["cnn"].tolist() == [4, "2.5", "1", "0.90", "50.0 %"]


def test_superscripts_show_the_runs_that_a_run_is_significantly_ahead_of():
    noise = np.random.default_rng(0).normal(0, 0.02, 40)
    means = {"low": 0.2, "high": 0.8, "middle": 0.5, "same": 0.5}
    runs = {name: result(rows(mean + noise, architecture=name)) for name, mean in means.items()}
    table = tables.summary(runs, tables.pairs(runs))
    assert table["architecture"].tolist() == ["high", "middle", "same", "low"]
    assert table["letter"].tolist() == ["a", "b", "c", "d"]
    assert [estimate.marks for estimate in table["mAP"]] == [" ᵇᶜᵈ", " ᵈ", " ᵈ", ""]
    assert str(table["mAP"].iloc[0]).endswith("] ᵇᶜᵈ")


def test_the_best_networks_come_first_and_baselines_only_without_networks():
    runs = {name: result(rows([score], architecture=name), baseline=name == "pixels")
            for name, score in (("a", 0.2), ("pixels", 0.9), ("b", 0.5))}  # fmt: skip
    assert tables.best_networks(tables.quality_and_cost(runs)) == ["b", "a"]
    many = {f"n{index}": result(rows([0.1], architecture=f"n{index}")) for index in range(7)}
    assert len(tables.best_networks(tables.quality_and_cost(many))) == 4
    assert len(tables.best_networks(tables.quality_and_cost(runs | many))) == 3
    assert tables.best_networks(tables.quality_and_cost({"pixels": runs["pixels"]})) == ["pixels"]


def test_a_protocol_that_was_not_measured_has_no_row(runs):
    only = {"vgg16": runs["vgg16"]}
    assert list(tables.by_protocol(only).index) == ["closed"]


def test_states_are_sorted_by_epoch_with_the_final_state_last(runs):
    table = tables.states(runs)
    assert list(zip(table["architecture"], table["epochs"], strict=True)) == [
        ("cnn", 1), ("cnn", 3), ("vgg16", 3),
    ]  # fmt: skip
    assert table.iloc[0]["mAP, unrestricted"] != table.iloc[1]["mAP, unrestricted"]
    assert all(re.fullmatch(CELL, str(cell)) for cell in table["accuracy"])


def test_each_cost_is_in_its_row_and_column():
    cheap = result(rows([0.5]), training_seconds=70.0)
    speed = {"images_per_second": 20.0, "query_milliseconds": 9.5}
    size = {"size": {"total": 25_600_000}, "embedding_dim": 512, "index_bytes": 7_500_000}
    dear = result(rows([0.5]), training_seconds=900.0, speed=speed, **size)
    table = tables.costs({"cnn": cheap, "resnet50": dear})
    assert table.loc["cnn"].tolist() == [4.0, 256, 70.0, 1000.0, 2.5, 3.0]
    assert table.loc["resnet50"].tolist() == [25.6, 512, 900.0, 20.0, 9.5, 7.5]
    assert list(table.columns) == [
        "parameters (million)", "embedding size", "training (s)", "embedding (images/s)",
        "query (ms, median)", "index (MB)",
    ]  # fmt: skip


def test_costs_of_a_baseline_leave_out_parameters_and_training(runs):
    table = tables.costs(runs)
    assert list(table.columns) == list(tables.COSTS)
    assert table.loc["vgg16"].notna().all()
    missing = table.loc["raw_pixels"].isna()
    assert list(table.columns[missing]) == ["parameters (million)", "training (s)"]
    assert table.loc["cnn", "parameters (million)"] == 4
    assert table.loc["cnn", "training (s)"] == 6


def leaking(*queries: int) -> pd.DataFrame:
    """Leaks: the positions of queries among the queries, each with an image of the gallery."""
    return pd.DataFrame({"query": queries, "gallery": range(len(queries)), "kind": "identical"})


def test_leaking_queries_are_left_out_at_every_position(runs, dataset):
    # The query at position 1, which has two copies, and the last query.
    table = tables.with_and_without_leaks(runs, leaking(1, 1, 11))
    for name, run in runs.items():
        scores = tables.average_precision_by_seed(run).mean(axis=1)
        scores_without_leaks = scores[
            [dataset.queries[index] for index in range(12) if index not in (1, 11)]
        ]
        assert table.loc[name, "queries without leaks"] == 10
        assert value_of(table.loc[name, "mAP, all queries"]) == pytest.approx(
            scores.mean(), rel=1e-5
        )
        without = measurements.number(uncertainty.intervals(scores_without_leaks.to_frame("x")))
        assert value_of(table.loc[name, "mAP, without leaks"]) == value_of(without)
        assert re.fullmatch(CELL, str(table.loc[name, "mAP, without leaks"]))


def test_without_leaks_both_numbers_are_the_same(runs, dataset):
    table = tables.with_and_without_leaks(runs, leaks.audit(dataset).leaks)
    assert (table["mAP, all queries"] == table["mAP, without leaks"]).all()
    assert (table["queries without leaks"] == 12).all()


def test_a_gallery_that_leaks_every_query_has_no_score_without_leaks(runs):
    table = tables.with_and_without_leaks(runs, leaking(*range(12)))
    assert (table["mAP, without leaks"].map(str) == "–").all()
    assert (table["queries without leaks"] == 0).all()


@pytest.mark.parametrize("protocol", ["closed", "held_out_gallery"])
def test_relevant_ranks_give_the_stored_scores(protocol, measured_project, runs):
    run = invented.save_network(f"of {protocol}", 2.5, epochs=(), protocols=[protocol])
    images = run.dataset
    assert images.protocol == protocol
    ranks = tables.relevant_ranks(run)
    scored = measurements.select(run.per_query, search="unrestricted", protocol=protocol)
    scores = scored.groupby("query")["average_precision"].mean()
    assert metrics.average_precision(ranks) == pytest.approx(scores[images.queries].to_numpy())
    assert scores.std() > 0.01


def test_in_the_predicted_class_the_mean_average_precision_is_the_accuracy(runs):
    for name in ("cnn", "vgg16"):
        for seed in runs[name].summary["measurement"]["seeds"]:
            rows_of_seed = measurements.select(runs[name].per_query, seed=seed, protocol="closed")
            in_class = rows_of_seed[rows_of_seed["search"] == "predicted_class"]
            assert in_class["average_precision"].tolist() == in_class["correct"].tolist()
            assert 0 < in_class["correct"].mean() < 1
            assert (
                rows_of_seed[rows_of_seed["search"] == "oracle_class"]["average_precision"] == 1
            ).all()


def test_unseen_classes_are_measured_for_one_seed_and_without_a_classifier(runs):
    per_query = runs["cnn"].per_query
    unseen = per_query[per_query["protocol"] == "unseen_classes"]
    assert set(unseen["seed"]) == {3}
    assert set(unseen["draw"]) == {0, 1}
    assert set(unseen["search"]) == {"unrestricted"}
    assert set(per_query[per_query["protocol"] == "held_out_gallery"]["seed"]) == {1, 3}
    assert set(per_query[per_query["epoch"].notna()]["protocol"]) == {"closed"}


def test_frequent_confusions_are_the_largest_counts_off_the_diagonal():
    counts = tables.confusion_counts([0, 0, 0, 0, 1, 1, 2], [0, 1, 1, 2, 0, 1, 2], ["a", "b", "c"])
    assert tables.frequent_confusions(counts, most=2).to_numpy().tolist() == [
        ["a", "b", 2, 0.5],
        ["a", "c", 1, 0.25],
    ]
    assert tables.frequent_confusions(counts * np.eye(3, dtype=int)).empty


def test_a_stage_has_the_accuracies_of_its_last_epoch():
    history = pd.DataFrame(
        {
            "accuracy": [0.2, 0.4, 0.9],
            "val_accuracy": [0.1, 0.3, 0.8],
            "seconds": [1.0, 2.0, 5.0],
            "stage": ["head", "head", "backbone and head"],
        }
    )
    stages = tables.stages(history)
    assert stages.index.tolist() == ["head", "backbone and head"]
    assert stages.to_numpy().tolist() == [[2, 3, 0.4, 0.3], [1, 5, 0.9, 0.8]]


def test_the_provenance_lists_weights_only_of_networks(runs, measured_project):
    folder = measured_project / "reports" / "tiny"
    assert provenance.provenance_table("elsewhere").empty
    for name in runs:
        manifest = {"parameters": {}, "seconds": 3.0}
        (folder / name / "manifest.json").write_text(json.dumps(manifest))
    about = {"command": "make report", "git": {"commit": "abc", "clean": False}}
    write_study(folder, list(runs), about | {"versions": {"keras": "3"}})
    table = provenance.provenance_table("tiny")["value"]
    assert table["commit"] == "abc (with uncommitted changes)"
    assert table["cnn, weights, SHA-256"] == "f" * 64
    assert "raw_pixels, weights, SHA-256" not in table
    assert "notebook 3.0" in table["raw_pixels, seconds"]
    about["git"] = {"commit": None, "clean": None}
    write_study(folder, list(runs), about | {"versions": {}})
    assert provenance.provenance_table("tiny")["value"]["commit"] == "not under git"


def uneven_run(n_large: int):
    """A run with `n_large` queries of a class with mAP 0.9, and 4 of one with mAP 0.5."""
    scores, labels = [0.85, 0.95] * (n_large // 2) + [0.4, 0.6] * 2, [0] * n_large + [1] * 4
    run = result(rows(scores, labels=labels, correct=1.0, n_relevant=9))
    object.__setattr__(run, "metrics", measurements.metrics(run.per_query, ["circle", "cross"]))
    return run


def test_uneven_classes_add_means_over_classes():
    run = uneven_run(12)
    table = tables.quality({"cnn": run}).loc["cnn"]
    assert value_of(table["mAP, unrestricted"]) == pytest.approx((12 * 0.9 + 4 * 0.5) / 16)
    mean = table["mAP, unrestricted, mean over classes"]
    # (0.9 + 0.5) / 2; half of each class's interval, as independent errors of a mean of two.
    assert mean.value == pytest.approx(0.7)
    of_class = [from_row(measurements.select(run.metrics, **{"metric": "mean_average_precision",
                "search": "unrestricted", "k": None, "class": name}).iloc[0])
                for name in ("circle", "cross")]  # fmt: skip
    below = np.hypot(*(estimate.value - estimate.low for estimate in of_class)) / 2
    assert mean.low == pytest.approx(0.7 - below)
    assert value_of(table["accuracy, mean over classes"]) == 1
    assert math.isnan(table["mAP, soft, mean over classes"].value)
    assert tables.scores(run)["metric"].tolist()[:2] == [
        "mean_average_precision", "mean_average_precision, mean over classes",
    ]  # fmt: skip
    text = sentences.uneven_classes({"cnn": run})
    assert text.startswith(
        "Classes are uneven: they have 4 to 12 queries. (They count as even up to 1.5"
    )


def test_even_classes_have_only_means_over_queries():
    run = uneven_run(6)
    assert list(tables.quality({"cnn": run}).columns) == list(tables.QUALITY)
    assert not tables.scores(run)["metric"].str.contains("mean over classes").any()
    assert sentences.uneven_classes({"cnn": run}) == ""


@given(sizes=st.lists(st.floats(1, tables.UNEVEN), min_size=2, max_size=9), seed=st.integers(0, 99))
def test_the_two_means_of_even_classes_are_close(sizes, seed):
    means = np.random.default_rng(seed).uniform(size=len(sizes))
    difference = abs(np.average(means, weights=sizes) - means.mean())
    assert difference <= means.std() * 0.2042
