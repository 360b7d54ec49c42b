"""Evaluation of embeddings: scores of each search, rankings and the order of measurements."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import empty_project, toy_dataset, toy_embeddings

from cbir.cache import Artifact
from cbir.images import protocols
from cbir.networks.embeddings import normalise
from cbir.reporting import tables
from cbir.reporting.numbers import Estimate
from cbir.retrieval import evaluation, metrics, ranking, searches, uncertainty

MEASUREMENT = {
    "seeds": [3, 1],
    "protocols": ["closed", "held_out_gallery", "unseen_classes"],
    "unseen": 1,
    "draws": 2,
    "ks": [1, 4],
}


@pytest.fixture(scope="module", autouse=True)
def project(tmp_path_factory):
    """A project for cached rankings, as the working directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(empty_project(tmp_path_factory.mktemp("project")))
        yield


@pytest.fixture(scope="module")
def embedded():
    """Random embeddings under the protocol `closed`."""
    return toy_embeddings(toy_dataset())


@pytest.fixture(scope="module")
def held_out(embedded):
    """The same embeddings under `held_out_gallery`."""
    return replace(embedded, dataset=protocols.view(embedded.dataset, "held_out_gallery"))


def similarities_by_hand(query, gallery) -> np.ndarray:
    return normalise(query).astype(np.float64) @ normalise(gallery).T.astype(np.float64)


# Two searches whose scores do not depend on the embedding


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("protocol", ["closed", "held_out_gallery"])
@pytest.mark.parametrize("unbalanced", [False, True])
def test_scores_within_the_predicted_class_equal_the_accuracy(seed, protocol, unbalanced):
    dataset = toy_dataset(4, 14, 12)
    if unbalanced:
        random = np.random.default_rng(seed)
        labels = random.permutation(np.repeat(np.arange(4), [20, 40, 30, 14]))
        dataset = replace(dataset, labels=labels, fingerprint=f"unbalanced {seed}")
    dataset = protocols.view(dataset, protocol)
    embedded = toy_embeddings(dataset, seed=seed)
    sizes = np.bincount(dataset.gallery_labels)
    # The size of the smallest class, without the query if it is in the gallery.
    maximum = int(sizes.min()) - (protocol == "held_out_gallery")
    assert maximum >= 2
    ks = [1, 2, maximum]
    evaluated = evaluation.evaluate(embedded, "predicted_class", ks).per_query
    is_right = embedded.query_probabilities.argmax(axis=1) == dataset.query_labels
    accuracy = is_right.mean()
    assert 0 < accuracy < 1
    exact = ["average_precision", "r_precision", "average_precision_at_r", "reciprocal_rank"]
    exact += [
        f"{name}@{k}" for name in ("precision", "ndcg", "average_precision", "hit_rate") for k in ks
    ]
    for name in exact:
        assert evaluated[name].to_numpy() == pytest.approx(is_right.astype(float), abs=1e-12), name
        assert evaluated[name].mean() == pytest.approx(accuracy, abs=1e-12), name
    assert evaluated["correct"].tolist() == is_right.tolist()


def test_precision_is_below_the_accuracy_beyond_the_size_of_the_class(embedded):
    evaluated = evaluation.evaluate(embedded, "predicted_class", [14, 28]).per_query
    accuracy = evaluated["correct"].mean()
    assert evaluated["precision@14"].mean() == pytest.approx(accuracy)
    assert evaluated["precision@28"].mean() == pytest.approx(accuracy / 2)
    assert evaluated["ndcg@28"].mean() == pytest.approx(accuracy)


@pytest.mark.parametrize("protocol", ["closed", "held_out_gallery"])
def test_scores_within_the_true_class_are_one(protocol):
    dataset = protocols.view(toy_dataset(), protocol)
    for seed in range(3):
        embedded = toy_embeddings(dataset, seed=seed)
        evaluated = evaluation.evaluate(embedded, "oracle_class", [1, 11]).per_query
        for name in ("average_precision", "r_precision", "precision@11", "ndcg@11", "hit_rate@1"):
            assert evaluated[name].to_numpy() == pytest.approx(1, abs=1e-12), name


def test_the_unrestricted_search_depends_only_on_the_embedding(embedded):
    dataset = embedded.dataset
    other_probabilities = toy_embeddings(dataset, embedded.vectors, seed=5).probabilities
    scores = [
        evaluation.evaluate(embeddings, "unrestricted", [1, 4])
        .per_query["average_precision"]
        .tolist()
        for embeddings in (
            embedded,
            replace(
                embedded,
                probabilities=other_probabilities,
                artifact=Artifact(Path(), {"key": "another classifier"}),
            ),
            toy_embeddings(dataset, probabilities=embedded.probabilities, seed=5),
        )
    ]
    assert scores[0] == scores[1]
    assert scores[0] != scores[2]


# Rankings


@pytest.mark.parametrize("protocol", ["closed", "held_out_gallery", "unseen_classes"])
def test_the_unrestricted_search_ranks_by_cosine(protocol):
    dataset = protocols.view(toy_dataset(), protocol, unseen=2, draw=1)
    embedded = toy_embeddings(dataset)
    evaluated = evaluation.evaluate(embedded, "unrestricted", [1])
    similarity = similarities_by_hand(embedded.query, embedded.gallery)
    rows = np.flatnonzero(dataset.exclude >= 0)
    similarity[rows, dataset.exclude[rows]] = -np.inf
    expected = np.argsort(-similarity, axis=1)[:, : evaluation.N_RESULTS]
    assert evaluated.rankings.tolist() == expected.tolist()
    np.testing.assert_allclose(
        evaluated.similarities, np.take_along_axis(similarity, expected, axis=1), atol=1e-6
    )
    assert evaluated.neighbours == {"unrestricted": (evaluated.rankings, evaluated.similarities)}


@pytest.mark.parametrize("protocol", ["closed", "held_out_gallery"])
def test_rankings_of_the_label_lookup_are_positions_in_the_gallery(protocol):
    dataset = protocols.view(toy_dataset(), protocol)
    embedded = toy_embeddings(dataset)
    evaluated = evaluation.evaluate(embedded, "label_lookup", [1, 4])
    first = embedded.query_probabilities.argmax(axis=1)
    assert (dataset.gallery_labels[evaluated.rankings] == first[:, None]).all()
    unit = normalise(embedded.query_probabilities)
    assert evaluated.similarities[:, 0] == pytest.approx(unit.max(axis=1))
    for row in evaluated.rankings:
        assert len(set(row)) == evaluation.N_RESULTS
    # Within a class the order is random and not that of the gallery.
    rises = (np.diff(evaluated.rankings, axis=1) > 0).mean()
    assert 0.2 < rises < 0.8
    is_right = (first == dataset.query_labels).astype(float)
    assert evaluated.per_query["precision@4"].tolist() == is_right.tolist()


def test_scores_match_the_rankings(embedded, held_out):
    for embeddings in (embedded, held_out):
        dataset = embeddings.dataset
        for search in searches.SEARCHES:
            evaluated = evaluation.evaluate(embeddings, search, [1, 4])
            hits = dataset.gallery_labels[evaluated.rankings] == dataset.query_labels[:, None]
            hits &= evaluated.rankings >= 0
            for k in (1, 4, 10):
                by_hand = hits[:, :k].mean(axis=1)
                assert evaluated.per_query[f"precision@{k}"].to_numpy() == pytest.approx(by_hand), (
                    search, k,
                )  # fmt: skip


@pytest.mark.parametrize("search", searches.SEARCHES)
def test_a_query_is_never_its_own_result(search, held_out):
    dataset = held_out.dataset
    # Each image has a twin in its class, which must be its nearest image.
    vectors = np.array(held_out.vectors)
    by_class = dataset.queries[np.argsort(dataset.query_labels, kind="stable")]
    vectors[by_class[1::2]] = vectors[by_class[::2]]
    twins = toy_embeddings(dataset, vectors, held_out.probabilities)
    evaluated = evaluation.evaluate(twins, search, [1])
    assert not (dataset.gallery[evaluated.rankings] == dataset.queries[:, None]).any()
    assert (evaluated.per_query["n_relevant"] == 11).all()
    if search in ("unrestricted", "oracle_class"):
        twin = dict(zip(by_class[::2], by_class[1::2], strict=True))
        twin |= {second: first for first, second in twin.items()}
        nearest = dataset.gallery[evaluated.rankings[:, 0]]
        assert nearest.tolist() == [twin[query] for query in dataset.queries]


def test_a_small_class_leaves_empty_positions_in_rankings():
    dataset = toy_dataset(3, 4, 3)
    evaluated = evaluation.evaluate(toy_embeddings(dataset), "predicted_class", [1])
    assert evaluated.rankings.shape == (9, evaluation.N_RESULTS)
    assert (evaluated.rankings[:, :4] >= 0).all()
    assert (evaluated.rankings[:, 4:] == -1).all()
    assert np.isnan(evaluated.similarities[:, 4:]).all()


def test_a_small_gallery_is_ranked_completely():
    dataset = protocols.view(toy_dataset(3, 4, 2), "held_out_gallery")
    evaluated = evaluation.evaluate(toy_embeddings(dataset), "label_lookup", [1])
    assert evaluated.rankings.shape == (6, 6)
    assert (evaluated.rankings[:, 5] == -1).all()
    for query, row in enumerate(evaluated.rankings[:, :5]):
        assert sorted(row) == [position for position in range(6) if position != query]


# Columns


def test_rows_have_query_label_and_predicted_class(embedded, held_out):
    for embeddings in (embedded, held_out):
        dataset = embeddings.dataset
        for search in searches.SEARCHES:
            evaluated = evaluation.evaluate(embeddings, search, [4]).per_query
            assert evaluated["query"].tolist() == dataset.queries.tolist()
            assert evaluated["label"].tolist() == dataset.query_labels.tolist()
            assert evaluated["predicted"].tolist() == embeddings.query_predictions.tolist()
            is_right = evaluated["predicted"] == evaluated["label"]
            assert evaluated["correct"].tolist() == is_right.astype(float).tolist()
            assert list(evaluated)[:5] == ["query", "label", "predicted", "correct", "searched"]
            assert list(evaluated)[5:] == list(metrics.per_query(np.ones((1, 1)), [4, 10]))


def test_searched_is_the_share_of_the_gallery(embedded):
    dataset = embedded.dataset
    labels = np.concatenate([np.repeat(np.arange(4), [20, 16, 12, 8]), dataset.query_labels])
    uneven = toy_embeddings(replace(dataset, labels=labels, fingerprint="uneven"), seed=3)
    sizes = np.array([20, 16, 12, 8])
    searched = {
        search: evaluation.evaluate(uneven, search, [1]).per_query["searched"].to_numpy()
        for search in searches.SEARCHES
    }
    assert (searched["unrestricted"] == 1).all()
    assert (searched["label_lookup"] == 1).all()
    assert searched["oracle_class"] == pytest.approx(sizes[uneven.dataset.query_labels] / 56)
    assert searched["predicted_class"] == pytest.approx(sizes[uneven.query_predictions] / 56)
    soft = searches.search_input(uneven, "soft").restrict_to
    assert searched["soft"] == pytest.approx((soft * sizes).sum(axis=1) / 56)


def test_a_baseline_has_no_prediction(embedded):
    baseline = replace(
        embedded, probabilities=None, artifact=Artifact(Path(), {"key": "a baseline"})
    )
    evaluated = evaluation.evaluate(baseline, "unrestricted", [1]).per_query
    assert (evaluated["predicted"] == -1).all()
    assert evaluated["correct"].isna().all()
    scored = evaluation.evaluate(embedded, "unrestricted", [1]).per_query
    assert evaluated["average_precision"].equals(scored["average_precision"])


def test_the_first_ten_results_are_always_measured(embedded):
    evaluated = evaluation.evaluate(embedded, "unrestricted", [2])
    assert {"precision@2", "precision@10"} <= set(evaluated.per_query)
    assert (
        evaluated.artifact.key
        == evaluation.evaluate(embedded, "unrestricted", [10, 2]).artifact.key
    )


# Caching


def test_each_search_and_view_is_evaluated_once(embedded, held_out, monkeypatch):
    first = {
        (embeddings.dataset.protocol, search): evaluation.evaluate(embeddings, search, [1, 4])
        for embeddings in (embedded, held_out)
        for search in searches.SEARCHES
    }
    assert len({evaluated.artifact.folder for evaluated in first.values()}) == 2 * len(
        searches.SEARCHES
    )

    def refuse(*_, **__):
        raise AssertionError("ranked again")

    monkeypatch.setattr(ranking, "relevant_ranks", refuse)
    for embeddings in (embedded, held_out):
        repeated = evaluation.evaluate(embeddings, "soft", [4, 1])
        expected = first[embeddings.dataset.protocol, "soft"]
        assert repeated.per_query.equals(expected.per_query)
        assert np.array_equal(repeated.rankings, expected.rankings)
    with pytest.raises(AssertionError, match="ranked again"):
        evaluation.evaluate(embedded, "soft", [3])


# Order of measurements


@pytest.fixture
def measured_calls(monkeypatch):
    """Replaces embedding and evaluation by lists: (seed, protocol, draw, epoch) and arguments."""
    embedded_as, evaluated_with = [], []

    def embed_view(view, seed, epoch=None):
        embedded_as.append((seed, view.protocol, view.draw, epoch))
        return toy_embeddings(view)

    def evaluate(embedded, search, ks):
        evaluated_with.append((embedded.dataset.protocol, search, ks))
        return search

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    return embed_view, embedded_as, evaluated_with


def test_states_are_measured_by_seed_and_draws_only_with_the_first_seed(measured_calls):
    embed_view, embedded_as, _ = measured_calls
    states = evaluation.measure(
        toy_dataset(), embed_view=embed_view, measurement=MEASUREMENT, epochs=[7, 2]
    )
    assert embedded_as == [
        (3, "closed", None, None),
        (3, "closed", None, 2),
        (3, "closed", None, 7),
        (3, "held_out_gallery", None, None),
        (3, "unseen_classes", 0, None),
        (3, "unseen_classes", 1, None),
        (1, "closed", None, None),
        (1, "closed", None, 2),
        (1, "closed", None, 7),
        (1, "held_out_gallery", None, None),
    ]
    assert embedded_as == [
        (
            state.seed,
            state.embeddings.dataset.protocol,
            state.embeddings.dataset.draw,
            state.epoch,
        )
        for state in states
    ]


def test_protocols_are_measured_in_the_given_order(measured_calls):
    embed_view, embedded_as, _ = measured_calls
    measurement = MEASUREMENT | {"protocols": ["held_out_gallery", "closed"], "seeds": [0]}
    dataset = toy_dataset()
    evaluation.measure(dataset, embed_view=embed_view, measurement=measurement, epochs=[1])
    assert embedded_as == [
        (0, "held_out_gallery", None, None),
        (0, "held_out_gallery", None, 1),
        (0, "closed", None, None),
    ]
    assert evaluation.first_view(dataset, measurement).protocol == "held_out_gallery"


def test_each_state_is_evaluated_with_every_available_search(measured_calls):
    embed_view, _, evaluated_with = measured_calls
    measurement = MEASUREMENT | {
        "protocols": ["closed", "unseen_classes"],
        "seeds": [0],
        "draws": 1,
    }
    states = evaluation.measure(toy_dataset(), embed_view=embed_view, measurement=measurement)
    assert [state.evaluations for state in states] == [list(searches.SEARCHES), ["unrestricted"]]
    assert all(ks == [1, 4] for _, _, ks in evaluated_with)


def test_hashing_1k_is_also_measured_at_1000():
    dataset = replace(toy_dataset(), protocol="hashing_1k")
    depths = [
        {int(name.partition("@")[2]) for name in evaluated.per_query if "@" in name}
        for evaluated in (
            evaluation.evaluate(toy_embeddings(view), "unrestricted", [1, 4])
            for view in (toy_dataset(), dataset)
        )
    ]
    assert depths == [{1, 4, 10}, {1, 4, 10, 1000}]


def test_measured_states_hold_the_embeddings_and_their_scores():
    measurement = MEASUREMENT | {"seeds": [0]}
    states = evaluation.measure(
        toy_dataset(),
        embed_view=lambda view, seed: toy_embeddings(view, seed=seed),
        measurement=measurement,
    )
    assert len(states) == 4
    for state in states:
        assert [evaluated.search for evaluated in state.evaluations] == searches.available(
            state.embeddings
        )
        for evaluated in state.evaluations:
            queries = state.embeddings.dataset.queries
            assert evaluated.per_query["query"].tolist() == queries.tolist()


# Classification and speed


def test_classification_counts_correct_queries_by_class(embedded):
    table = tables.classification(embedded)
    dataset = embedded.dataset
    assert list(table.index) == [*dataset.classes, "all"]
    is_right = embedded.query_predictions == dataset.query_labels
    for label, name in enumerate(dataset.classes):
        of_class = dataset.query_labels == label
        assert table.loc[name, "queries"] == 12
        assert table.loc[name, "right"] == is_right[of_class].sum()
        assert table.loc[name, "accuracy"].value == is_right[of_class].mean()
    assert table.loc["all", ["queries", "right"]].tolist() == [48, is_right.sum()]
    low, high = uncertainty.confidence_bounds(is_right[:, None].astype(float))
    assert table.loc["all", "accuracy"] == Estimate(is_right.mean(), low[0], high[0])


def test_classes_with_the_names_of_sums_keep_their_rows(embedded):
    names = ["all", "mean over classes", "c", "d"]
    renamed = replace(embedded.dataset, classes=names)
    table = tables.classification(replace(embedded, dataset=renamed))
    assert table.index.tolist() == [*names, "all"]
    assert table["queries"].tolist() == [12, 12, 12, 12, 48]


def test_speed_of_single_queries_is_measured_once(embedded):
    batch_sizes = []

    def encode(images):
        batch_sizes.append(len(images))
        return np.ones((len(images), 6)), None

    speed = evaluation.measure_speed(embedded, encode)
    assert batch_sizes == [104, 104] + [1] * 30
    assert speed.images_per_second > 0
    assert speed.query_milliseconds > 0
    assert evaluation.measure_speed(embedded, encode) == speed
    assert len(batch_sizes) == 32
