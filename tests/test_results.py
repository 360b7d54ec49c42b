"""Files of a run: tidy, sorted, the same bytes for the same numbers; what is claimed of them."""

import json

import numpy as np
import pandas as pd
import pytest
from conftest import empty_project
from hypothesis import given
from hypothesis import strategies as st

from cbir import StudyError, comparison, metrics, results
from cbir.comparison import Difference
from cbir.evaluation import Evaluation, State
from cbir.results import COLUMNS

CLASSES = ["circle", "cross", "square"]
KS = [1, 3]
N_QUERIES = 24


def evaluation(search: str, seed: int) -> Evaluation:
    """Invented ranks of four relevant images for each query, some beyond reach."""
    random = np.random.default_rng(seed)
    ranks = np.sort(random.permuted(np.tile(np.arange(1.0, 31), (N_QUERIES, 1)), axis=1)[:, :4])
    ranks[::5, 3] = np.inf
    labels = np.arange(N_QUERIES) % 3
    queries = {
        "query": np.arange(N_QUERIES),
        "label": labels,
        "predicted": np.where(random.random(N_QUERIES) < 0.7, labels, (labels + 1) % 3),
    }
    scores = pd.concat([pd.DataFrame(queries), metrics.per_query(ranks, KS)], axis=1)
    return Evaluation(None, search, None, None, scores)


def state(epoch: int | None, seed: int) -> State:
    searches = ("unrestricted", "predicted_class")
    return State(epoch, None, [evaluation(each, seed + i) for i, each in enumerate(searches)])


@pytest.fixture(scope="module")
def states():
    return [state(None, 0), state(2, 10)]


@pytest.fixture(scope="module")
def rows(states):
    return results.tidy("tiny", "cnn", 7, states, CLASSES)


@pytest.fixture
def reports(tmp_path, monkeypatch):
    """reports/tiny of an empty project, which is the working directory."""
    monkeypatch.chdir(empty_project(tmp_path / "project"))
    folder = tmp_path / "project" / "reports" / "tiny"
    folder.mkdir(parents=True)
    return folder


def result(scores: list[float]) -> results.Result:
    """A run of which only the average precision of each query is known."""
    frame = pd.DataFrame({"average_precision": scores})
    return results.Result({}, None, None, {"unrestricted": frame}, {}, {})


def test_rows_have_exactly_the_promised_columns(rows):
    assert list(rows.columns) == COLUMNS
    assert set(rows["study"]) == {"tiny"}
    assert set(rows["architecture"]) == {"cnn"}
    assert set(rows["seed"]) == {7}
    assert rows["variant"].isna().all()
    assert rows["draw"].isna().all()


def test_no_row_stands_twice(rows):
    assert not rows.duplicated(COLUMNS[:-1]).any()


def test_rows_stand_in_one_order_whatever_order_they_came_in(rows, tmp_path):
    shuffled = rows.sample(frac=1, random_state=0)
    assert not shuffled.index.equals(rows.index)
    pd.testing.assert_frame_equal(results.sort(shuffled), rows)


def test_what_does_not_apply_stands_first(rows):
    assert rows["epoch"].isna().tolist() == sorted(rows["epoch"].isna(), reverse=True)
    assert pd.isna(rows["search"].iloc[0])
    assert rows["metric"].iloc[0] == "accuracy"
    assert pd.isna(rows["class"].iloc[0])


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("metric", ["average_precision", "reciprocal_rank", "r_precision"])
def test_values_over_all_queries_are_means_of_the_queries(place, metric, rows, states):
    name = {"r_precision": "r_precision"}.get(metric, f"mean_{metric}")
    for each in states[place].evaluations:
        scores = each.per_query[metric].tolist()
        found = results.value(rows, name, each.search, epoch=states[place].epoch)
        assert found == pytest.approx(sum(scores) / N_QUERIES)


@pytest.mark.parametrize("metric", ["precision", "recall", "hit_rate", "average_precision"])
def test_values_at_k_are_means_of_the_queries(metric, rows, states):
    name = "mean_average_precision" if metric == "average_precision" else metric
    for each in states[0].evaluations:
        for k in KS:
            scores = each.per_query[f"{metric}@{k}"].tolist()
            found = results.value(rows, name, each.search, k)
            assert found == pytest.approx(sum(scores) / N_QUERIES)


def test_accuracy_is_the_share_of_right_predictions(rows, states):
    for each in states:
        scores = each.evaluations[0].per_query
        right = sum(scores["label"] == scores["predicted"]) / N_QUERIES
        assert results.value(rows, "accuracy", epoch=each.epoch) == pytest.approx(right)


def test_every_number_is_given_by_class_too(rows, states):
    by_class = rows[rows["class"].notna()]
    assert len(by_class) == 3 * len(rows[rows["class"].isna()])
    scores = states[0].evaluations[1].per_query
    for label, name in enumerate(CLASSES):
        chosen = by_class[
            (by_class["class"] == name)
            & (by_class["metric"] == "recall")
            & (by_class["k"] == 3)
            & (by_class["search"] == "predicted_class")
            & by_class["epoch"].isna()
        ]
        assert len(chosen) == 1
        expected = scores.loc[scores["label"] == label, "recall@3"].mean()
        assert chosen["value"].item() == pytest.approx(expected)


def test_each_measured_epoch_has_the_same_rows_as_the_final_state(rows):
    key = ["search", "metric", "k", "class"]
    final, early = rows[rows["epoch"].isna()], rows[rows["epoch"] == 2]
    assert len(final) == len(early)
    assert final[key].reset_index(drop=True).equals(early[key].reset_index(drop=True))


def test_a_number_that_was_not_measured_is_not_a_number(rows):
    assert np.isnan(results.value(rows, "precision", "unrestricted", 1000))
    assert np.isnan(results.value(rows, "accuracy", epoch=5))


def test_the_same_rows_are_the_same_bytes(rows, tmp_path):
    results.write_csv(rows, tmp_path / "one.csv")
    results.write_csv(results.sort(rows.sample(frac=1, random_state=1)), tmp_path / "two.csv")
    content = (tmp_path / "one.csv").read_bytes()
    assert content == (tmp_path / "two.csv").read_bytes()
    assert content.startswith(",".join(COLUMNS).encode() + b"\n")
    assert b"\r" not in content


def test_numbers_are_written_with_six_digits(rows, tmp_path):
    few = rows.head(3).assign(value=[1 / 3, 1.0, 2e-7 / 3])
    results.write_csv(few, tmp_path / "few.csv")
    lines = (tmp_path / "few.csv").read_text().splitlines()[1:]
    assert [line.split(",")[-1] for line in lines] == ["0.333333", "1", "6.66667e-08"]


def test_whole_numbers_are_written_without_a_point(rows, tmp_path):
    results.write_csv(rows, tmp_path / "rows.csv")
    table = pd.read_csv(tmp_path / "rows.csv", dtype=str, keep_default_na=False)
    assert set(table["k"]) == {"", "1", "3"}
    assert set(table["epoch"]) == {"", "2"}
    assert set(table["seed"]) == {"7"}


def test_a_missing_result_is_reported_with_what_makes_it(reports):
    with pytest.raises(StudyError, match="no results in .*make report STUDY=tiny"):
        results.read("tiny", "cnn")


def leave(folder, table, artifacts="artifacts/rankings/abc"):
    """What a run leaves, as far as the comparison and the study read it."""
    folder.mkdir()
    results.write_csv(table, folder / "metrics.csv")
    (folder / "history.csv").write_text("epoch,loss\n1,0.5\n")
    summary = {"searches": ["unrestricted"], "artifacts": {"unrestricted": artifacts}}
    summary |= {"dataset": {}, "machine": {}, "weights": {}, "seconds": {"training": 2.0}}
    summary |= {"peak_memory_bytes": 5}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "manifest.json").write_text(json.dumps({"parameters": {}, "seconds": 3.0}))


def test_results_whose_artifacts_are_gone_are_reported(reports, rows):
    leave(reports / "cnn", rows)
    with pytest.raises(StudyError, match="artifacts/rankings/abc is gone: delete .*cnn"):
        results.read("tiny", "cnn")


def test_architectures_without_results_are_left_out():
    assert results.read_all("tiny", ["cnn", "vgg16"], ["cnn: not run", "vgg16: a: b"]) == {}


def test_the_study_has_the_rows_of_all_its_architectures(reports, rows):
    leave(reports / "cnn", rows)
    leave(reports / "vgg16", rows.assign(architecture="vgg16"))
    results.write_study(reports, ["vgg16", "cnn"], {"study": "tiny"})
    table = (reports / "metrics.csv").read_text().splitlines()
    parts = [(reports / name / "metrics.csv").read_text() for name in ("cnn", "vgg16")]
    assert table == parts[0].splitlines() + parts[1].splitlines()[1:]
    manifest = json.loads((reports / "manifest.json").read_text())
    assert manifest["study"] == "tiny"
    assert manifest["architectures"]["cnn"]["seconds"] == {"training": 2.0, "notebook": 3.0}


@pytest.mark.parametrize("names", [["01", "02", "10"], ["NA", "None", "null"], ["1e3", "nan", "x"]])
def test_classes_keep_their_names_on_the_way_to_the_study(names, reports, states):
    """Names that look like numbers, or like nothing, are names all the same."""
    table = results.tidy("tiny", "cnn", 7, states, names)
    leave(reports / "cnn", table)
    (reports.parent.parent / "artifacts" / "rankings" / "abc").mkdir(parents=True)
    results.write_study(reports, ["cnn"], {})
    assert (reports / "metrics.csv").read_bytes() == (reports / "cnn/metrics.csv").read_bytes()


def test_a_study_without_results_has_an_empty_table(reports):
    results.write_study(reports, [], {"study": "tiny"})
    assert (reports / "metrics.csv").read_text() == ",".join(COLUMNS) + "\n"


def test_differences_are_those_computed_by_hand():
    found = comparison.differences(
        {"a": result([0.2, 0.4, 0.9, 0.1]), "b": result([0.5, 0.6, 0.7, 0.8])}
    )
    # b - a: 0.3, 0.2, -0.2, 0.7: mean 0.25, variance (0.05² + 0.05² + 0.45² + 0.45²) / 3
    error = 1.96 * (0.41 / 3) ** 0.5 / 2
    assert len(found) == 1
    pair = found[0]
    assert (pair.ahead, pair.behind, pair.n_queries) == ("b", "a", 4)
    assert pair.mean == pytest.approx(0.25)
    assert pair.low == pytest.approx(0.25 - error)
    assert pair.high == pytest.approx(0.25 + error)
    assert not pair.is_told_apart


def test_queries_without_a_score_leave_the_comparison():
    found = comparison.differences({"a": result([0.9, np.nan, 0.8]), "b": result([0.1, 0.9, 0.2])})
    assert found[0].n_queries == 2
    assert found[0].mean == pytest.approx(0.7)


def test_every_pair_is_compared_once():
    runs = {name: result([0.1, 0.5, 0.9]) for name in ("a", "b", "c")}
    pairs = comparison.differences(runs)
    assert {frozenset((pair.ahead, pair.behind)) for pair in pairs} == {
        frozenset("ab"), frozenset("ac"), frozenset("bc")
    }  # fmt: skip
    assert len(comparison.table(pairs)) == 3


def test_one_query_tells_nothing_apart():
    pair = comparison.differences({"a": result([1.0]), "b": result([0.0])})[0]
    assert not pair.is_told_apart
    assert " is ahead of " not in comparison.verdict([pair])


scores = st.lists(
    st.tuples(st.floats(0, 1, width=32), st.floats(0, 1, width=32)), min_size=2, max_size=12
)


@given(scores)
def test_the_verdict_says_ahead_only_where_the_interval_excludes_zero(pairs_of_scores):
    one, other = zip(*pairs_of_scores, strict=True)
    pair = comparison.differences({"one": result(list(one)), "other": result(list(other))})[0]
    text = comparison.verdict([pair])
    assert pair.mean >= 0
    assert pair.low <= pair.mean <= pair.high
    has_zero = pair.low <= 0 <= pair.high
    assert (" is ahead of " in text) == (not has_zero)
    assert ("not told apart" in text) == has_zero
    assert (comparison.table([pair])["told apart"].item() == "no") == has_zero


def test_the_verdict_names_who_is_ahead_and_by_how_much():
    text = comparison.verdict([Difference("vgg16", "cnn", 0.1234, 0.1, 0.15, 60)])
    assert "**vgg16** is ahead of cnn by 0.123" in text
    assert "+0.100 to +0.150, 60 queries" in text


def test_one_architecture_alone_is_compared_with_nothing():
    assert "nothing to compare" in comparison.verdict([])


def test_reasons_with_colons_are_told_whole():
    text = comparison.without_results(["vgg16: weights: no file x.h5: give a path"])
    assert text == "- **vgg16** has no results: weights: no file x.h5: give a path"
