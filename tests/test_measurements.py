"""Numbers in rows: what each row stands for, in one order, the same bytes for the same numbers."""

import csv
import dataclasses
from types import SimpleNamespace

import invented
import numpy as np
import pandas as pd
import pytest

from cbir.reporting import measurements
from cbir.retrieval import metrics, uncertainty
from cbir.retrieval.evaluation import Evaluation, State

CLASSES = ["circle", "cross", "square"]
KS = [1, 3]
N_QUERIES = 24
SEARCHES = ("unrestricted", "predicted_class")


def evaluation(search: str, seed: int) -> Evaluation:
    """Invented ranks of four relevant images for each query, some beyond reach."""
    random = np.random.default_rng(seed)
    ranks = np.sort(random.permuted(np.tile(np.arange(1.0, 31), (N_QUERIES, 1)), axis=1)[:, :4])
    ranks[::5, 3] = np.inf
    labels = np.arange(N_QUERIES) % 3
    predicted = np.where(random.random(N_QUERIES) < 0.7, labels, (labels + 1) % 3)
    queries = {
        "query": np.arange(N_QUERIES) + 100,
        "label": labels,
        "predicted": predicted,
        "correct": (predicted == labels).astype(float),
        "searched": 1.0 if search == "unrestricted" else random.random(N_QUERIES),
    }
    scores = pd.concat([pd.DataFrame(queries), metrics.per_query(ranks, KS)], axis=1)
    return Evaluation(None, search, None, None, scores)


def state(epoch: int | None, chance: int, *, seed=7, protocol="closed", draw=None) -> State:
    view = SimpleNamespace(protocol=protocol, draw=draw)
    ways = [evaluation(each, chance + place) for place, each in enumerate(SEARCHES)]
    return State(seed, epoch, SimpleNamespace(dataset=view), ways)


@pytest.fixture(scope="module")
def states():
    return [
        state(None, 0),
        state(2, 10),
        state(None, 20, seed=8),
        state(None, 30, protocol="unseen_classes", draw=0),
        state(None, 40, protocol="unseen_classes", draw=1),
    ]


@pytest.fixture(scope="module")
def queries(states):
    return measurements.per_query("tiny", "cnn", states)


@pytest.fixture(scope="module")
def rows(queries):
    return measurements.metrics(queries, CLASSES)


def chosen(rows: pd.DataFrame, each: State, **wanted) -> pd.DataFrame:
    """Rows of a state."""
    view = each.embeddings.dataset
    place = {"seed": each.seed, "epoch": each.epoch, "protocol": view.protocol, "draw": view.draw}
    return measurements.select(rows, **place, **wanted)


def test_a_row_of_metrics_has_exactly_the_promised_columns(rows):
    assert list(rows.columns) == [
        "study", "architecture", "variant", "seed", "draw", "epoch", "protocol", "search",
        "metric", "k", "class", "value", "ci_low", "ci_high", "n_queries",
    ]  # fmt: skip
    assert set(rows["study"]) == {"tiny"}
    assert set(rows["architecture"]) == {"cnn"}
    assert set(rows["seed"]) == {7, 8}
    assert rows["variant"].isna().all()
    assert set(rows["draw"].dropna()) == {0, 1}


def test_rows_of_a_grid_name_their_point_on_disk_too(states, tmp_path):
    queries = measurements.per_query("tiny", "cnn-64", states[:1], "input_size=64 train=head")
    assert set(queries["variant"]) == {"input_size=64 train=head"}
    rows = measurements.metrics(measurements.average_seeds(queries), CLASSES)
    assert set(rows["variant"]) == {"input_size=64 train=head"}
    measurements.write_csv(rows, tmp_path / "rows.csv")
    assert set(measurements.read_csv(tmp_path / "rows.csv")["variant"]) == {
        "input_size=64 train=head"
    }


def test_points_of_a_grid_are_kept_apart():
    both = pd.concat([invented.rows([0.0, 0.5], variant="dropout=0.1"),
                      invented.rows([1.0, 0.5], variant="dropout=0.2")])  # fmt: skip
    averaged = measurements.average_seeds(both)
    assert averaged["average_precision"].tolist() == [0.0, 0.5, 1.0, 0.5]
    found = measurements.select(
        measurements.metrics(both, CLASSES), metric="mean_average_precision"
    )
    assert found["value"].tolist() == [0.25, 0.75]


def test_there_is_a_row_for_each_query_of_each_state_and_search(queries, states):
    assert len(queries) == len(states) * len(SEARCHES) * N_QUERIES
    assert not queries.duplicated([*measurements.PLACE, "query"]).any()
    for each in states:
        own = chosen(queries, each, search="predicted_class")
        assert own["query"].tolist() == list(range(100, 100 + N_QUERIES))
        expected = each.evaluations[1].per_query
        pd.testing.assert_frame_equal(own[expected.columns].reset_index(drop=True), expected)


def test_rows_of_queries_come_back_from_disk_as_they_were(queries, tmp_path):
    measurements.write_parquet(queries, tmp_path / "queries.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "queries.parquet"), queries)
    assert [path.name for path in tmp_path.iterdir()] == ["queries.parquet"]


def test_no_row_stands_twice(rows):
    assert not rows.duplicated(measurements.COLUMNS[:-4]).any()


def test_rows_stand_in_one_order_whatever_order_they_came_in(rows):
    shuffled = rows.sample(frac=1, random_state=0)
    assert not shuffled.index.equals(rows.index)
    pd.testing.assert_frame_equal(measurements.sort(shuffled), rows)


def test_what_does_not_apply_stands_first(rows):
    own = rows[(rows["seed"] == 7) & (rows["protocol"] == "closed")]
    assert own["epoch"].isna().tolist() == sorted(own["epoch"].isna(), reverse=True)
    first = rows.iloc[0]
    assert first["metric"] == "accuracy"
    assert pd.isna(first[["draw", "epoch", "search", "class"]]).all()


@pytest.mark.parametrize(
    ("column", "metric"),
    [
        ("average_precision", "mean_average_precision"),
        ("average_precision_at_r", "mean_average_precision_at_r"),
        ("reciprocal_rank", "mean_reciprocal_rank"),
        ("r_precision", "r_precision"),
        ("searched", "gallery_searched"),
    ],
)
def test_values_over_all_queries_are_means_of_the_queries(column, metric, rows, states):
    for each in states:
        for one in each.evaluations:
            found = chosen(rows, each, search=one.search, metric=metric, k=None)
            assert found["value"].item() == pytest.approx(one.per_query[column].mean())
            assert found["n_queries"].item() == N_QUERIES


@pytest.mark.parametrize("column", ["precision", "recall", "hit_rate", "ndcg", "average_precision"])
def test_values_at_k_are_means_of_the_queries(column, rows, states):
    metric = "mean_average_precision" if column == "average_precision" else column
    for one in states[0].evaluations:
        for k in KS:
            found = chosen(rows, states[0], search=one.search, metric=metric, k=k)
            expected = one.per_query[f"{column}@{k}"].mean()
            assert found["value"].item() == pytest.approx(expected)


def test_accuracy_is_the_share_of_right_predictions_and_belongs_to_no_search(rows, states):
    for each in states:
        scores = each.evaluations[0].per_query
        right = sum(scores["label"] == scores["predicted"]) / N_QUERIES
        found = chosen(rows, each, metric="accuracy")
        assert found["value"].item() == pytest.approx(right)
        assert found["search"].isna().all()


def test_what_has_no_classifier_has_no_accuracy(queries):
    without = queries.assign(correct=np.nan, predicted=-1)
    found = measurements.metrics(without[without["search"] == "unrestricted"], CLASSES)
    assert "accuracy" not in set(found["metric"])
    assert "mean_average_precision" in set(found["metric"])


def test_every_number_is_given_by_class_too(rows, states):
    by_class = rows[rows["class"].notna()]
    assert len(by_class) == 3 * len(rows[rows["class"].isna()])
    scores = states[0].evaluations[1].per_query
    for label, name in enumerate(CLASSES):
        wanted = {"metric": "recall", "k": 3, "search": "predicted_class", "class": name}
        found = chosen(rows, states[0], **wanted)
        expected = scores.loc[scores["label"] == label, "recall@3"].mean()
        assert found["value"].item() == pytest.approx(expected)
        assert found["n_queries"].item() == N_QUERIES // 3


def test_each_number_has_the_interval_over_its_own_queries(rows, states):
    scores = states[0].evaluations[1].per_query
    for name, own in ((None, scores), ("cross", scores[scores["label"] == 1])):
        wanted = {"metric": "precision", "k": 3, "search": "predicted_class", "class": name}
        found = chosen(rows, states[0], **wanted)[["ci_low", "ci_high"]].to_numpy()[0]
        low, high = uncertainty.confidence_bounds(own[["precision@3"]].to_numpy(float))
        assert found == pytest.approx([low.item(), high.item()])
        assert found[0] < own["precision@3"].mean() < found[1]


def test_one_query_has_a_value_but_no_interval():
    found = measurements.metrics(invented.rows([0.5, 0.25], labels=[0, 1]), CLASSES)
    own = measurements.select(found, metric="mean_average_precision", **{"class": "cross"})
    assert own["value"].item() == 0.25
    assert own["n_queries"].item() == 1
    assert own[["ci_low", "ci_high"]].isna().to_numpy().all()


def test_score_that_is_constant_by_construction_has_a_point_as_its_interval():
    frames = [
        invented.rows([1.0] * 36, search=search) for search in ("unrestricted", "oracle_class")
    ]
    table = measurements.metrics(pd.concat(frames), CLASSES)
    ends = ["value", "ci_low", "ci_high"]
    for name in (None, CLASSES[0]):
        by_metric = table[table["class"].isna() if name is None else table["class"] == name]
        by_metric = by_metric.set_index(["metric", "search"])[ends]
        constant = by_metric.loc[("mean_average_precision", "oracle_class")]
        assert constant.tolist() == [1, 1, 1]
        measured = by_metric.loc[("mean_average_precision", "unrestricted")]
        assert measured.tolist() == pytest.approx([1, 0.025 ** (1 / 36), 1])
        # The unrestricted search always covers the whole gallery.
        assert by_metric.loc[("gallery_searched", "unrestricted")].tolist() == [1, 1, 1]


def test_the_number_of_relevant_images_limits_the_intervals_of_precision_and_recall():
    depths = {"recall@5": 0.5, "precision@50": 0.2, "recall@50": 0.8, "precision@5": 0.8}
    table = measurements.metrics(invented.rows([0.5] * 36, n_relevant=10, **depths), CLASSES)
    table = table[table["class"].isna()].set_index(["metric", "k"])
    # With ten relevant images, half of them are among the first five at most.
    assert table.loc[("recall", 5), "ci_high"] == 0.5
    assert table.loc[("precision", 50), "ci_high"] == 0.2
    assert table.loc[("recall", 50), "ci_high"] > 0.8
    assert table.loc[("precision", 5), "ci_high"] > 0.8


def test_each_measured_epoch_has_the_same_rows_as_the_final_state(rows):
    key = ["search", "metric", "k", "class"]
    of_first = rows[(rows["seed"] == 7) & (rows["protocol"] == "closed")]
    final, early = of_first[of_first["epoch"].isna()], of_first[of_first["epoch"] == 2]
    assert len(final) > 100
    assert final[key].reset_index(drop=True).equals(early[key].reset_index(drop=True))


def test_seeds_are_averaged_query_by_query():
    both = pd.concat(
        [invented.rows([0.0, 0.5, 1.0], seed=3), invented.rows([1.0, 0.5, 0.5], seed=4)]
    )
    found = measurements.average_seeds(both)
    assert found["query"].tolist() == [0, 1, 2]
    assert found["average_precision"].tolist() == [0.5, 0.5, 0.75]
    assert found["seed"].isna().all()


def test_averaged_seeds_are_as_many_queries_as_one_seed_has(queries):
    """Else two seeds would pass for twice as many queries, and the interval be too narrow."""
    closed = queries[queries["protocol"] == "closed"]
    found = measurements.metrics(measurements.average_seeds(closed), CLASSES)
    wanted = {"metric": "mean_average_precision", "k": None, "search": "unrestricted"}
    own = measurements.select(found, **wanted)
    assert own["n_queries"].item() == N_QUERIES
    final = measurements.select(closed, search="unrestricted")
    assert own["value"].item() == pytest.approx(final["average_precision"].mean())
    by_query = final.groupby("query")["average_precision"].mean().to_numpy()[:, None]
    low, high = uncertainty.confidence_bounds(by_query)
    assert own[["ci_low", "ci_high"]].to_numpy()[0] == pytest.approx([low.item(), high.item()])


def test_seeds_are_averaged_within_a_state_protocol_draw_and_search_alone(queries):
    found = measurements.average_seeds(queries)
    # Of the five states, the first and the third differ in their seed alone.
    assert len(found) == 4 * len(SEARCHES) * N_QUERIES
    early = queries[queries["epoch"] == 2].reset_index(drop=True)
    same = found[found["epoch"] == 2].reset_index(drop=True)
    assert same["average_precision"].tolist() == early["average_precision"].tolist()


def test_one_seed_averaged_is_that_seed(queries):
    one = queries[queries["seed"] == 7]
    columns = [name for name in measurements.COLUMNS if name != "seed"]
    averaged = measurements.metrics(measurements.average_seeds(one), CLASSES)[columns]
    pd.testing.assert_frame_equal(averaged, measurements.metrics(one, CLASSES)[columns])


def test_unless_asked_otherwise_all_queries_of_the_final_state_are_selected(rows):
    found = measurements.select(rows, metric="accuracy", protocol="closed")
    assert found["seed"].tolist() == [7, 8]
    assert found[["epoch", "class"]].isna().to_numpy().all()


def test_what_does_not_apply_is_selected_by_none(rows):
    whole = measurements.select(rows, metric="mean_average_precision", k=None)
    assert len(whole)
    assert whole["k"].isna().all()
    assert measurements.select(rows, draw=1)["protocol"].unique().tolist() == ["unseen_classes"]
    assert measurements.select(rows, draw=None)["protocol"].unique().tolist() == ["closed"]


def test_a_number_that_was_not_measured_is_a_dash(rows):
    assert str(measurements.number(measurements.select(rows, metric="precision", k=1000))) == "–"
    assert str(measurements.number(measurements.select(rows, metric="accuracy", epoch=5))) == "–"
    unknown = pd.DataFrame({"value": [np.nan], "ci_low": [np.nan], "ci_high": [np.nan]})
    assert str(measurements.number(unknown)) == "–"


def test_a_number_is_told_with_its_interval_in_one_line():
    known = pd.DataFrame({"value": [0.12345], "ci_low": [0.1], "ci_high": [0.15]})
    assert str(measurements.number(known)) == "0.123 [0.100,\u00a00.150]"


def test_two_numbers_are_not_taken_for_one(rows):
    with pytest.raises(AssertionError, match="more than one"):
        measurements.number(measurements.select(rows, metric="accuracy", protocol="closed"))


def test_the_same_rows_are_the_same_bytes(rows, tmp_path):
    measurements.write_csv(rows, tmp_path / "one.csv")
    measurements.write_csv(
        measurements.sort(rows.sample(frac=1, random_state=1)), tmp_path / "two.csv"
    )
    content = (tmp_path / "one.csv").read_bytes()
    assert content == (tmp_path / "two.csv").read_bytes()
    assert content.startswith(",".join(measurements.COLUMNS).encode() + b"\n")
    assert b"\r" not in content


def test_numbers_are_written_with_six_digits(rows, tmp_path):
    few = rows.head(3).assign(ci_high=[1 / 3, 1.0, 2e-7 / 3])
    measurements.write_csv(few, tmp_path / "few.csv")
    lines = (tmp_path / "few.csv").read_text().splitlines()[1:]
    assert [line.split(",")[-2] for line in lines] == ["0.333333", "1", "6.66667e-08"]


def test_whole_numbers_are_written_without_a_point(rows, tmp_path):
    measurements.write_csv(rows, tmp_path / "rows.csv")
    table = pd.read_csv(tmp_path / "rows.csv", dtype=str, keep_default_na=False)
    assert set(table["k"]) == {"", "1", "3"}
    assert set(table["epoch"]) == {"", "2"}
    assert set(table["seed"]) == {"7", "8"}
    assert set(table["draw"]) == {"", "0", "1"}
    assert set(table["n_queries"]) == {"8", "24"}


@pytest.mark.parametrize(
    "names",
    [
        ["01", "02", "10"],
        ["NA", "None", "null"],
        ["1e3", "nan", "x"],
        ["=cmd|' /C calc'!A0", "'@sum", "-1"],
    ],
)
def test_classes_keep_their_names_on_the_way_to_disk_and_back(names, queries, tmp_path):
    """Names that look like numbers, or like nothing, are names all the same."""
    one = queries[(queries["seed"] == 8) & (queries["search"] == "unrestricted")]
    measurements.write_csv(measurements.metrics(one, names), tmp_path / "one.csv")
    found = measurements.read_csv(tmp_path / "one.csv")
    assert set(found["class"].dropna()) == set(names)
    measurements.write_csv(measurements.sort(found), tmp_path / "two.csv")
    assert (tmp_path / "two.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()


def test_depths_that_one_protocol_alone_measures_are_empty_for_the_others(states):
    """hashing_1k is measured at 1,000 too."""
    deep = state(None, 50, protocol="hashing_1k")
    ways = [
        dataclasses.replace(each, per_query=each.per_query.assign(**{"precision@1000": 0.001}))
        for each in deep.evaluations
    ]
    both = measurements.per_query(
        "tiny", "cnn", [states[0], dataclasses.replace(deep, evaluations=ways)]
    )
    found = measurements.select(measurements.metrics(both, CLASSES), metric="precision", k=1000)
    assert found.dropna(subset="value")["protocol"].unique().tolist() == ["hashing_1k"]
    assert str(measurements.number(found[found["protocol"] == "closed"].head(1))) == "–"


def test_no_name_is_a_formula_in_a_spreadsheet(queries, tmp_path):
    names = ["=cmd|' /C calc'!A0", "+1+1", "@sum"]
    one = queries[(queries["seed"] == 8) & (queries["search"] == "unrestricted")]
    measurements.write_csv(measurements.metrics(one, names), tmp_path / "one.csv")
    with (tmp_path / "one.csv").open(newline="") as file:
        cells = {cell for row in csv.reader(file) for cell in row}
    assert not [cell for cell in cells if cell.startswith(("=", "+", "@"))]
    assert {f"'{name}" for name in names} <= cells
