"""Tables of metrics: what a row stands for, the order of rows, and the files they are saved in."""

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
    generator = np.random.default_rng(seed)
    ranks = np.sort(generator.permuted(np.tile(np.arange(1.0, 31), (N_QUERIES, 1)), axis=1)[:, :4])
    ranks[::5, 3] = np.inf
    labels = np.arange(N_QUERIES) % 3
    predicted = np.where(generator.random(N_QUERIES) < 0.7, labels, (labels + 1) % 3)
    queries = {
        "query": np.arange(N_QUERIES) + 100,
        "label": labels,
        "predicted": predicted,
        "correct": (predicted == labels).astype(float),
        "searched": 1.0 if search == "unrestricted" else generator.random(N_QUERIES),
    }
    scores = pd.concat([pd.DataFrame(queries), metrics.per_query(ranks, KS)], axis=1)
    return Evaluation(None, search, None, None, scores)


def state(epoch: int | None, random_seed: int, *, seed=7, protocol="closed", draw=None) -> State:
    view = SimpleNamespace(protocol=protocol, draw=draw)
    evaluations = [evaluation(search, random_seed + index) for index, search in enumerate(SEARCHES)]
    return State(seed, epoch, SimpleNamespace(dataset=view), evaluations)


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


def rows_of(rows: pd.DataFrame, state: State, **selection) -> pd.DataFrame:
    """The rows of a state that meet further conditions."""
    view = state.embeddings.dataset
    conditions = {
        "seed": state.seed,
        "epoch": state.epoch,
        "protocol": view.protocol,
        "draw": view.draw,
    }
    return measurements.select(rows, **conditions, **selection)


def test_rows_of_metrics_have_the_documented_columns(rows):
    assert list(rows.columns) == [
        "study", "architecture", "variant", "seed", "draw", "epoch", "protocol", "search",
        "metric", "k", "class", "value", "ci_low", "ci_high", "n_queries",
    ]  # fmt: skip
    assert set(rows["study"]) == {"tiny"}
    assert set(rows["architecture"]) == {"cnn"}
    assert set(rows["seed"]) == {7, 8}
    assert rows["variant"].isna().all()
    assert set(rows["draw"].dropna()) == {0, 1}


def test_rows_of_a_grid_name_their_point_also_on_disk(states, tmp_path):
    queries = measurements.per_query("tiny", "cnn-64", states[:1], "input_size=64 train=head")
    assert set(queries["variant"]) == {"input_size=64 train=head"}
    rows = measurements.metrics(measurements.average_seeds(queries), CLASSES)
    assert set(rows["variant"]) == {"input_size=64 train=head"}
    measurements.write_csv(rows, tmp_path / "rows.csv")
    assert set(measurements.read_csv(tmp_path / "rows.csv")["variant"]) == {
        "input_size=64 train=head"
    }


def test_points_of_a_grid_are_not_averaged_together():
    queries = pd.concat([invented.rows([0.0, 0.5], variant="dropout=0.1"),
                      invented.rows([1.0, 0.5], variant="dropout=0.2")])  # fmt: skip
    averaged = measurements.average_seeds(queries)
    assert averaged["average_precision"].tolist() == [0.0, 0.5, 1.0, 0.5]
    mean_ap = measurements.select(
        measurements.metrics(queries, CLASSES), metric="mean_average_precision"
    )
    assert mean_ap["value"].tolist() == [0.25, 0.75]


def test_every_query_has_a_row_per_state_and_search(queries, states):
    assert len(queries) == len(states) * len(SEARCHES) * N_QUERIES
    assert not queries.duplicated([*measurements.PLACE, "query"]).any()
    for state in states:
        state_queries = rows_of(queries, state, search="predicted_class")
        assert state_queries["query"].tolist() == list(range(100, 100 + N_QUERIES))
        expected = state.evaluations[1].per_query
        pd.testing.assert_frame_equal(
            state_queries[expected.columns].reset_index(drop=True), expected
        )


def test_rows_of_queries_are_unchanged_after_saving(queries, tmp_path):
    measurements.write_parquet(queries, tmp_path / "queries.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "queries.parquet"), queries)
    assert [path.name for path in tmp_path.iterdir()] == ["queries.parquet"]


def test_rows_are_unique(rows):
    assert not rows.duplicated(measurements.COLUMNS[:-4]).any()


def test_sorting_restores_the_order_of_shuffled_rows(rows):
    shuffled = rows.sample(frac=1, random_state=0)
    assert not shuffled.index.equals(rows.index)
    pd.testing.assert_frame_equal(measurements.sort(shuffled), rows)


def test_rows_without_epoch_or_class_come_first(rows):
    closed = rows[(rows["seed"] == 7) & (rows["protocol"] == "closed")]
    assert closed["epoch"].isna().tolist() == sorted(closed["epoch"].isna(), reverse=True)
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
    for state in states:
        for evaluation in state.evaluations:
            row = rows_of(rows, state, search=evaluation.search, metric=metric, k=None)
            assert row["value"].item() == pytest.approx(evaluation.per_query[column].mean())
            assert row["n_queries"].item() == N_QUERIES


@pytest.mark.parametrize("column", ["precision", "recall", "hit_rate", "ndcg", "average_precision"])
def test_values_at_k_are_means_of_the_queries(column, rows, states):
    metric = "mean_average_precision" if column == "average_precision" else column
    for evaluation in states[0].evaluations:
        for k in KS:
            row = rows_of(rows, states[0], search=evaluation.search, metric=metric, k=k)
            expected = evaluation.per_query[f"{column}@{k}"].mean()
            assert row["value"].item() == pytest.approx(expected)


def test_accuracy_is_the_share_of_correct_predictions_and_has_no_search(rows, states):
    for state in states:
        scores = state.evaluations[0].per_query
        accuracy = sum(scores["label"] == scores["predicted"]) / N_QUERIES
        row = rows_of(rows, state, metric="accuracy")
        assert row["value"].item() == pytest.approx(accuracy)
        assert row["search"].isna().all()


def test_accuracy_is_missing_without_a_classifier(queries):
    without = queries.assign(correct=np.nan, predicted=-1)
    rows = measurements.metrics(without[without["search"] == "unrestricted"], CLASSES)
    assert "accuracy" not in set(rows["metric"])
    assert "mean_average_precision" in set(rows["metric"])


def test_every_metric_is_also_measured_by_class(rows, states):
    by_class = rows[rows["class"].notna()]
    assert len(by_class) == 3 * len(rows[rows["class"].isna()])
    scores = states[0].evaluations[1].per_query
    for label, name in enumerate(CLASSES):
        selection = {"metric": "recall", "k": 3, "search": "predicted_class", "class": name}
        row = rows_of(rows, states[0], **selection)
        expected = scores.loc[scores["label"] == label, "recall@3"].mean()
        assert row["value"].item() == pytest.approx(expected)
        assert row["n_queries"].item() == N_QUERIES // 3


def test_intervals_cover_only_the_queries_of_a_row(rows, states):
    scores = states[0].evaluations[1].per_query
    for name, queries in ((None, scores), ("cross", scores[scores["label"] == 1])):
        selection = {"metric": "precision", "k": 3, "search": "predicted_class", "class": name}
        bounds = rows_of(rows, states[0], **selection)[["ci_low", "ci_high"]].to_numpy()[0]
        low, high = uncertainty.confidence_bounds(queries[["precision@3"]].to_numpy(float))
        assert bounds == pytest.approx([low.item(), high.item()])
        assert bounds[0] < queries["precision@3"].mean() < bounds[1]


def test_one_query_has_a_value_but_no_interval():
    rows = measurements.metrics(invented.rows([0.5, 0.25], labels=[0, 1]), CLASSES)
    row = measurements.select(rows, metric="mean_average_precision", **{"class": "cross"})
    assert row["value"].item() == 0.25
    assert row["n_queries"].item() == 1
    assert row[["ci_low", "ci_high"]].isna().to_numpy().all()


def test_scores_that_are_constant_by_construction_have_intervals_of_width_zero():
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


def test_intervals_of_precision_and_recall_are_limited_by_the_relevant_images():
    scores = {"recall@5": 0.5, "precision@50": 0.2, "recall@50": 0.8, "precision@5": 0.8}
    table = measurements.metrics(invented.rows([0.5] * 36, n_relevant=10, **scores), CLASSES)
    table = table[table["class"].isna()].set_index(["metric", "k"])
    # With ten relevant images, half of them are among the first five at most.
    assert table.loc[("recall", 5), "ci_high"] == 0.5
    assert table.loc[("precision", 50), "ci_high"] == 0.2
    assert table.loc[("recall", 50), "ci_high"] > 0.8
    assert table.loc[("precision", 5), "ci_high"] > 0.8


def test_every_measured_epoch_has_the_rows_of_the_final_state(rows):
    key = ["search", "metric", "k", "class"]
    of_first_seed = rows[(rows["seed"] == 7) & (rows["protocol"] == "closed")]
    final, early = (
        of_first_seed[of_first_seed["epoch"].isna()],
        of_first_seed[of_first_seed["epoch"] == 2],
    )
    assert len(final) > 100
    assert final[key].reset_index(drop=True).equals(early[key].reset_index(drop=True))


def test_seeds_are_averaged_query_by_query():
    queries = pd.concat(
        [invented.rows([0.0, 0.5, 1.0], seed=3), invented.rows([1.0, 0.5, 0.5], seed=4)]
    )
    averaged = measurements.average_seeds(queries)
    assert averaged["query"].tolist() == [0, 1, 2]
    assert averaged["average_precision"].tolist() == [0.5, 0.5, 0.75]
    assert averaged["seed"].isna().all()


def test_averaging_seeds_does_not_add_queries(queries):
    """Otherwise two seeds would count as twice as many queries and narrow the interval."""
    closed = queries[queries["protocol"] == "closed"]
    rows = measurements.metrics(measurements.average_seeds(closed), CLASSES)
    selection = {"metric": "mean_average_precision", "k": None, "search": "unrestricted"}
    row = measurements.select(rows, **selection)
    assert row["n_queries"].item() == N_QUERIES
    final = measurements.select(closed, search="unrestricted")
    assert row["value"].item() == pytest.approx(final["average_precision"].mean())
    by_query = final.groupby("query")["average_precision"].mean().to_numpy()[:, None]
    low, high = uncertainty.confidence_bounds(by_query)
    assert row[["ci_low", "ci_high"]].to_numpy()[0] == pytest.approx([low.item(), high.item()])


def test_averages_mix_only_seeds(queries):
    averaged = measurements.average_seeds(queries)
    # Of the five states, only the first and the third differ in nothing but their seed.
    assert len(averaged) == 4 * len(SEARCHES) * N_QUERIES
    early = queries[queries["epoch"] == 2].reset_index(drop=True)
    averaged_early = averaged[averaged["epoch"] == 2].reset_index(drop=True)
    assert averaged_early["average_precision"].tolist() == early["average_precision"].tolist()


def test_the_average_of_one_seed_is_that_seed(queries):
    seed_queries = queries[queries["seed"] == 7]
    columns = [name for name in measurements.COLUMNS if name != "seed"]
    averaged = measurements.metrics(measurements.average_seeds(seed_queries), CLASSES)[columns]
    pd.testing.assert_frame_equal(averaged, measurements.metrics(seed_queries, CLASSES)[columns])


def test_all_queries_of_the_final_state_are_selected_by_default(rows):
    selected = measurements.select(rows, metric="accuracy", protocol="closed")
    assert selected["seed"].tolist() == [7, 8]
    assert selected[["epoch", "class"]].isna().to_numpy().all()


def test_none_selects_rows_without_a_value(rows):
    selected = measurements.select(rows, metric="mean_average_precision", k=None)
    assert len(selected)
    assert selected["k"].isna().all()
    assert measurements.select(rows, draw=1)["protocol"].unique().tolist() == ["unseen_classes"]
    assert measurements.select(rows, draw=None)["protocol"].unique().tolist() == ["closed"]


def test_a_missing_value_is_written_as_a_dash(rows):
    assert str(measurements.number(measurements.select(rows, metric="precision", k=1000))) == "–"
    assert str(measurements.number(measurements.select(rows, metric="accuracy", epoch=5))) == "–"
    row = pd.DataFrame({"value": [np.nan], "ci_low": [np.nan], "ci_high": [np.nan]})
    assert str(measurements.number(row)) == "–"


def test_a_number_is_written_with_its_interval():
    row = pd.DataFrame({"value": [0.12345], "ci_low": [0.1], "ci_high": [0.15]})
    assert str(measurements.number(row)) == "0.123 [0.100,\u00a00.150]"


def test_number_rejects_several_rows(rows):
    with pytest.raises(AssertionError, match="more than one"):
        measurements.number(measurements.select(rows, metric="accuracy", protocol="closed"))


def test_the_order_of_rows_does_not_change_the_file(rows, tmp_path):
    measurements.write_csv(rows, tmp_path / "one.csv")
    measurements.write_csv(
        measurements.sort(rows.sample(frac=1, random_state=1)), tmp_path / "two.csv"
    )
    content = (tmp_path / "one.csv").read_bytes()
    assert content == (tmp_path / "two.csv").read_bytes()
    assert content.startswith(",".join(measurements.COLUMNS).encode() + b"\n")
    assert b"\r" not in content


def test_values_are_written_with_six_significant_digits(rows, tmp_path):
    first_rows = rows.head(3).assign(ci_high=[1 / 3, 1.0, 2e-7 / 3])
    measurements.write_csv(first_rows, tmp_path / "few.csv")
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
def test_names_of_classes_are_unchanged_after_saving(names, queries, tmp_path):
    """Names that look like numbers or missing values remain names."""
    queries_of_seed = queries[(queries["seed"] == 8) & (queries["search"] == "unrestricted")]
    measurements.write_csv(measurements.metrics(queries_of_seed, names), tmp_path / "one.csv")
    rows = measurements.read_csv(tmp_path / "one.csv")
    assert set(rows["class"].dropna()) == set(names)
    measurements.write_csv(measurements.sort(rows), tmp_path / "two.csv")
    assert (tmp_path / "two.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()


def test_protocols_lack_values_at_depths_they_do_not_measure(states):
    """Only hashing_1k is measured at 1,000."""
    deep = state(None, 50, protocol="hashing_1k")
    evaluations = [
        dataclasses.replace(
            evaluation, per_query=evaluation.per_query.assign(**{"precision@1000": 0.001})
        )
        for evaluation in deep.evaluations
    ]
    queries = measurements.per_query(
        "tiny", "cnn", [states[0], dataclasses.replace(deep, evaluations=evaluations)]
    )
    rows = measurements.select(measurements.metrics(queries, CLASSES), metric="precision", k=1000)
    assert rows.dropna(subset="value")["protocol"].unique().tolist() == ["hashing_1k"]
    assert str(measurements.number(rows[rows["protocol"] == "closed"].head(1))) == "–"


def test_names_are_never_formulas_in_a_spreadsheet(queries, tmp_path):
    names = ["=cmd|' /C calc'!A0", "+1+1", "@sum"]
    queries_of_seed = queries[(queries["seed"] == 8) & (queries["search"] == "unrestricted")]
    measurements.write_csv(measurements.metrics(queries_of_seed, names), tmp_path / "one.csv")
    with (tmp_path / "one.csv").open(newline="") as file:
        cells = {cell for row in csv.reader(file) for cell in row}
    assert not [cell for cell in cells if cell.startswith(("=", "+", "@"))]
    assert {f"'{name}" for name in names} <= cells
