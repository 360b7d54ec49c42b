"""Every definition of mAP, and every metric, against hand-worked values and other libraries.

scikit-learn is always installed; `make bench` installs ranx, torchmetrics and PyTorch Metric
Learning. No ranking has ties, which libraries order differently.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import auc, average_precision_score, ndcg_score

from cbir.reporting import tables
from cbir.retrieval import map_definitions, metrics

NAN, INF = np.nan, np.inf
SMALLER, RELEVANT, FOUND, AT_R, WHOLE, TRAPEZOID = map_definitions.DEFINITIONS
KS = [1, 3, 10, 25, 60]


def ranks_of(hits: np.ndarray, missed: int = 0) -> np.ndarray:
    """(n_queries, R) ranks from (n_queries, n_gallery) rankings given as hits and misses.

    Every query has `missed` relevant images more, which are never returned.
    """
    hits = np.asarray(hits, bool)
    ranks = np.full((len(hits), hits.sum(axis=1).max(initial=0) + missed), NAN, np.float32)
    for row, query in enumerate(hits):
        hit_ranks = np.flatnonzero(query) + 1
        ranks[row, : len(hit_ranks) + missed] = [*hit_ranks, *[INF] * missed]
    return ranks


@pytest.fixture(scope="module")
def hits() -> np.ndarray:
    """40 rankings of 60 images, each with 1 to about 30 relevant images, most of them early."""
    generator = np.random.default_rng(0)
    probabilities = np.linspace(1, 0.2, 60) * generator.uniform(0.05, 0.7, (40, 1))
    hits = generator.random((40, 60)) < probabilities
    hits[:, 40] |= ~hits.any(axis=1)
    return hits


@pytest.fixture(scope="module")
def ranks(hits) -> np.ndarray:
    return ranks_of(hits)


# --- by hand


@pytest.mark.parametrize(
    ("definition", "k", "expected"),
    [
        # Precisions at the ranks 1, 3, 6 and 10: 1/1, 2/3, 3/6, 4/10.
        (SMALLER, 3, (1 + 2 / 3) / 3),
        (SMALLER, 8, (1 + 2 / 3 + 3 / 6) / 4),
        (RELEVANT, 3, (1 + 2 / 3) / 4),
        (RELEVANT, 8, (1 + 2 / 3 + 3 / 6) / 4),
        (FOUND, 3, (1 + 2 / 3) / 2),
        (FOUND, 8, (1 + 2 / 3 + 3 / 6) / 3),
        # R = 4: the ranks up to 4, whatever k.
        (AT_R, 1, (1 + 2 / 3) / 4),
        (AT_R, 10, (1 + 2 / 3) / 4),
        (WHOLE, 1, (1 + 2 / 3 + 3 / 6 + 4 / 10) / 4),
        # Just before them: 1, 1/2, 2/5, 3/9.
        (TRAPEZOID, 1, ((1 + 1) + (1 / 2 + 2 / 3) + (2 / 5 + 3 / 6) + (3 / 9 + 4 / 10)) / 2 / 4),
    ],
    ids=lambda value: getattr(value, "definition", None),
)
def test_definitions_equal_values_by_hand(definition, k, expected):
    assert definition.score(np.array([[1, 3, 6, 10]], np.float32), k) == pytest.approx([expected])


def test_the_table_of_a_worked_example():
    table = map_definitions.compare_definitions(np.array([[1, 3, INF, INF]]), 3)
    values = table.set_index("definition")["value"].round(3)
    assert values.to_dict() == {
        "AP@k by min(R, k)": 0.556,
        "AP@k by R": 0.417,
        "AP@k by hits found": 0.833,
        "MAP@R": 0.417,
        "AP of the full ranking": 0.417,
        # (1 + 1) / 2 + (1/2 + 2/3) / 2, by 4.
        "AP of the full ranking, trapezoids": 0.396,
    }


@pytest.mark.parametrize(
    "definition", map_definitions.DEFINITIONS, ids=lambda definition: definition.definition
)
def test_no_hit_is_zero_and_no_relevant_image_nan(definition):
    scores = definition.score(np.array([[INF, INF], [NAN, NAN], [1, 2]], np.float32), 2)
    assert scores.dtype == np.float64
    np.testing.assert_array_equal(scores, [0, NAN, 1])


@pytest.mark.parametrize(
    "definition", map_definitions.DEFINITIONS, ids=lambda definition: definition.definition
)
@pytest.mark.parametrize("k", [1, 2, 3, 9])
def test_perfect_ranking_is_one_unless_the_divisor_exceeds_k(definition, k):
    expected = min(k, 3) / 3 if definition is RELEVANT else 1
    assert definition.score(np.array([[1, 2, 3]], np.float32), k) == pytest.approx([expected])


def test_table_means_over_queries_with_a_relevant_image(monkeypatch):
    ranks = np.array([[1, 3], [2, INF], [NAN, NAN]], np.float32)
    table = map_definitions.compare_definitions(ranks, 2)
    assert list(table) == ["definition", "value", "ci_low", "ci_high"]
    assert list(tables.definitions(table)) == ["definition", "formula", "used_by", "mAP"]
    assert ((table["ci_low"] <= table["value"]) & (table["value"] <= table["ci_high"])).all()
    # By min(R, k): (1/1) / 2 and (1/2) / 2. By the hits found: 1/1 and 1/2.
    assert table["value"][[0, 2]].tolist() == pytest.approx([(1 / 2 + 1 / 4) / 2, (1 + 1 / 2) / 2])
    monkeypatch.setattr(map_definitions, "BATCH", 2)
    assert map_definitions.compare_definitions(ranks, 2).equals(table)


def test_every_definition_has_a_text_for_readers():
    names = [definition.definition for definition in map_definitions.DEFINITIONS]
    assert names == [*tables.DEFINITION_TEXTS]
    for text in tables.DEFINITION_TEXTS.values():
        assert text["formula"]
        assert text["used_by"]


def test_table_without_queries_is_nan_and_k_below_one_is_rejected():
    assert (
        map_definitions.compare_definitions(np.empty((0, 0), np.float32), 5)["value"].isna().all()
    )
    assert (
        map_definitions.compare_definitions(np.empty((3, 0), np.float32), 5)["value"].isna().all()
    )
    with pytest.raises(ValueError, match="at least 1"):
        map_definitions.compare_definitions(np.array([[1]], np.float32), 0)


rankings = st.lists(st.booleans(), min_size=1, max_size=15)


@settings(max_examples=50, deadline=None)
@given(hits=rankings.filter(any), missed=st.integers(0, 3), k=st.integers(1, 18))
def test_definitions_are_ordered_by_their_scores(hits, missed, k):
    ranks = ranks_of([hits], missed)
    score = {
        definition: definition.score(ranks, k).round(12)[0]
        for definition in map_definitions.DEFINITIONS
    }
    assert 0 <= score[RELEVANT] <= score[SMALLER] <= score[FOUND] <= 1
    assert score[RELEVANT] <= score[WHOLE]
    assert score[AT_R] <= score[WHOLE]
    # A hit never lowers the precision, so what stood before it is not above.
    assert score[TRAPEZOID] <= score[WHOLE]


# --- scikit-learn


def falling(n: int) -> np.ndarray:
    """Similarities of a ranking's results, from the first to the last, without ties."""
    return np.linspace(1, 0.01, n)


@settings(max_examples=50, deadline=None)
@given(hits=rankings.filter(any), missed=st.integers(0, 3), k=st.integers(1, 18))
def test_definitions_equal_scikit_learn_on_the_first_results(hits, missed, k):
    ranks, relevant = ranks_of([hits], missed), sum(hits) + missed

    def precisions(depth: int) -> float:
        top = hits[:depth]
        return average_precision_score(top, falling(len(top))) * sum(top) if any(top) else 0.0

    assert SMALLER.score(ranks, k) == pytest.approx([precisions(k) / min(relevant, k)])
    assert RELEVANT.score(ranks, k) == pytest.approx([precisions(k) / relevant])
    assert FOUND.score(ranks, k) == pytest.approx([precisions(k) / max(sum(hits[:k]), 1)])
    assert AT_R.score(ranks, k) == pytest.approx([precisions(relevant) / relevant])
    assert WHOLE.score(ranks, k) == pytest.approx([precisions(len(hits)) / relevant])


@settings(max_examples=50, deadline=None)
@given(hits=rankings.filter(any), missed=st.integers(0, 3))
def test_trapezoids_are_the_area_under_the_curve_of_precision_over_recall(hits, missed):
    hit_counts = np.cumsum(hits)
    recall = [0, *hit_counts / (hit_counts[-1] + missed)]
    precision = [1, *hit_counts / np.arange(1, len(hits) + 1)]
    assert TRAPEZOID.score(ranks_of([hits], missed), 1) == pytest.approx([auc(recall, precision)])


def test_full_ranking_equals_scikit_learn_on_many_queries(hits, ranks):
    expected = [average_precision_score(query, falling(60)) for query in hits]
    assert WHOLE.score(ranks, 1) == pytest.approx(expected)


@pytest.mark.parametrize("k", KS)
def test_ndcg_equals_scikit_learn(hits, ranks, k):
    expected = [ndcg_score([query], [falling(60)], k=k) for query in hits]
    assert metrics.ndcg_at_k(ranks, k) == pytest.approx(expected)


# --- ranx, torchmetrics, PyTorch Metric Learning


def needs(library: str):
    return pytest.importorskip(library, reason=f"{library} is not installed: `make bench` does it")


@pytest.fixture(scope="module")
def ranx_scores(hits):
    """Scores per query by ranx, for rankings that return only the first 40 images."""
    ranx = needs("ranx")
    relevant, returned = {}, {}
    for row, query in enumerate(hits):
        relevant[f"{row:02}"] = {f"image {position:02}": 1 for position in np.flatnonzero(query)}
        results = enumerate(falling(60)[:40])
        returned[f"{row:02}"] = {
            f"image {position:02}": float(score) for position, score in results
        }
    qrels, run = ranx.Qrels(relevant), ranx.Run(returned)
    return lambda metric: ranx.evaluate(qrels, run, metric, return_mean=False)


@pytest.fixture(scope="module")
def cut_ranks(ranks) -> np.ndarray:
    """The ranks in the rankings that ranx scores."""
    return np.where(ranks > 40, np.float32(INF), ranks)


@pytest.mark.parametrize("k", KS)
def test_by_relevant_is_map_at_k_of_ranx(ranx_scores, cut_ranks, k):
    assert RELEVANT.score(cut_ranks, k) == pytest.approx(ranx_scores(f"map@{k}"))
    # The definition by hits found differs.
    assert FOUND.score(cut_ranks, k) != pytest.approx(ranx_scores(f"map@{k}"), abs=0.05)


def test_full_ranking_is_map_of_ranx(ranx_scores, cut_ranks):
    assert WHOLE.score(cut_ranks, 1) == pytest.approx(ranx_scores("map"))


@pytest.mark.parametrize("k", KS)
@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("precision", metrics.precision_at_k),
        ("recall", metrics.recall_at_k),
        ("hit_rate", metrics.hit_rate_at_k),
        ("ndcg", metrics.ndcg_at_k),
    ],
)
def test_metrics_at_k_equal_those_of_ranx(ranx_scores, cut_ranks, name, metric, k):
    assert metric(cut_ranks, k) == pytest.approx(ranx_scores(f"{name}@{k}"))


@pytest.mark.parametrize(
    ("name", "metric"), [("mrr", metrics.reciprocal_rank), ("r-precision", metrics.r_precision)]
)
def test_metrics_of_the_whole_ranking_equal_those_of_ranx(ranx_scores, cut_ranks, name, metric):
    assert metric(cut_ranks) == pytest.approx(ranx_scores(name))


@pytest.fixture(scope="module")
def torchmetrics_mean(hits):
    """Computes the mean over queries of a metric of torchmetrics with options."""
    retrieval, torch = needs("torchmetrics.retrieval"), needs("torch")
    target = torch.from_numpy(hits.ravel())
    preds = torch.from_numpy(np.tile(falling(60), len(hits)).astype(np.float32))
    query = torch.arange(len(hits)).repeat_interleave(60)
    return lambda name, **options: float(
        getattr(retrieval, name)(**options)(preds, target, indexes=query)
    )


@pytest.mark.parametrize("k", KS)
def test_by_hits_is_retrieval_map_of_torchmetrics(torchmetrics_mean, ranks, k):
    expected = torchmetrics_mean("RetrievalMAP", top_k=k)
    assert FOUND.score(ranks, k).mean() == pytest.approx(expected, abs=1e-6)
    if 1 < k < 60:
        assert SMALLER.score(ranks, k).mean() != pytest.approx(expected, abs=0.01)


def test_full_ranking_is_retrieval_map_of_torchmetrics_without_k(torchmetrics_mean, ranks):
    expected = torchmetrics_mean("RetrievalMAP")
    assert WHOLE.score(ranks, 1).mean() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("k", KS)
@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("RetrievalPrecision", metrics.precision_at_k),
        ("RetrievalRecall", metrics.recall_at_k),
        ("RetrievalHitRate", metrics.hit_rate_at_k),
        ("RetrievalNormalizedDCG", metrics.ndcg_at_k),
    ],
)
def test_metrics_at_k_equal_those_of_torchmetrics(torchmetrics_mean, ranks, name, metric, k):
    assert metric(ranks, k).mean() == pytest.approx(torchmetrics_mean(name, top_k=k), abs=1e-6)


@pytest.mark.parametrize(
    ("name", "metric"),
    [("RetrievalRPrecision", metrics.r_precision), ("RetrievalMRR", metrics.reciprocal_rank)],
)
def test_metrics_of_the_whole_ranking_equal_those_of_torchmetrics(
    torchmetrics_mean, ranks, name, metric
):
    assert metric(ranks).mean() == pytest.approx(torchmetrics_mean(name), abs=1e-6)


@pytest.fixture(scope="module")
def embedded() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """30 queries and a gallery of 120 of 4 classes, of different sizes: embeddings and classes."""
    generator = np.random.default_rng(2)
    classes = generator.choice(4, size=150, p=[0.1, 0.2, 0.3, 0.4])
    embeddings = generator.normal(size=(4, 6))[classes] + generator.normal(size=(150, 6))
    embeddings = embeddings.astype(np.float32)
    return embeddings[:30], classes[:30], embeddings[30:], classes[30:]


@pytest.fixture(scope="module")
def pml_mean(embedded):
    """Computes the mean over queries of a metric of PyTorch Metric Learning."""
    needs("pytorch_metric_learning")
    import torch
    from pytorch_metric_learning.distances import LpDistance
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import CustomKNN

    nearest = CustomKNN(LpDistance(normalize_embeddings=False))

    def mean(metric: str, k: int | None = None) -> float:
        # The reciprocal rank needs a second metric, because alone it starts no search.
        include, cpu = (metric, "precision_at_1"), torch.device("cpu")
        calculator = AccuracyCalculator(include=include, k=k, knn_func=nearest, device=cpu)
        return float(calculator.get_accuracy(*embedded)[metric])

    return mean


@pytest.fixture(scope="module")
def embedded_ranks(embedded) -> np.ndarray:
    queries, query_classes, gallery, gallery_classes = embedded
    distances = np.linalg.norm(queries[:, None].astype(float) - gallery, axis=2)
    return ranks_of(gallery_classes[distances.argsort(axis=1)] == query_classes[:, None])


def test_map_at_r_is_that_of_pytorch_metric_learning(pml_mean, embedded_ranks):
    expected = pml_mean("mean_average_precision_at_r")
    assert AT_R.score(embedded_ranks, 1).mean() == pytest.approx(expected, abs=1e-6)


def test_full_ranking_is_map_of_pytorch_metric_learning_without_k(pml_mean, embedded_ranks):
    expected = pml_mean("mean_average_precision")
    assert WHOLE.score(embedded_ranks, 1).mean() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("k", [1, 5, 40, 120])
def test_by_relevant_is_map_of_pytorch_metric_learning_with_k(pml_mean, embedded_ranks, k):
    expected = pml_mean("mean_average_precision", k)
    assert RELEVANT.score(embedded_ranks, k).mean() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "metric", "arguments"),
    [
        ("r_precision", metrics.r_precision, []),
        ("precision_at_1", metrics.precision_at_k, [1]),
        ("mean_reciprocal_rank", metrics.reciprocal_rank, []),
    ],
)
def test_metrics_equal_those_of_pytorch_metric_learning(
    pml_mean, embedded_ranks, name, metric, arguments
):
    assert metric(embedded_ranks, *arguments).mean() == pytest.approx(pml_mean(name), abs=1e-6)
