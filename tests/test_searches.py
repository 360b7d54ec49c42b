"""Searches: the classes that each one searches, the lookup by label, and the calibration."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import empty_project, toy_dataset, toy_embeddings
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cbir.images import protocols
from cbir.retrieval import metrics, searches
from cbir.retrieval.searches import SEARCHES, calibrated, fit_temperature, probable


@pytest.fixture(scope="module", autouse=True)
def project(tmp_path_factory):
    """An empty project, the working directory, in which calibrations are stored."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(empty_project(tmp_path_factory.mktemp("project")))
        yield


def softmax(logits) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def cross_entropy(probabilities, labels) -> float:
    return -np.log(probabilities[np.arange(len(labels)), labels]).mean()


# As of a network: float32, some with probabilities of exactly 0, some with ties.
logits = st.tuples(st.integers(1, 6), st.integers(2, 8)).flatmap(
    lambda shape: arrays(
        np.float64, shape, elements=st.one_of(st.floats(-200, 200), st.integers(-2, 2).map(float))
    )
)
softmaxes = logits.map(lambda rows: softmax(rows).astype(np.float32))
temperatures = st.floats(0.05, 20)
masses = st.floats(0.01, 0.9999)


# probable


@settings(max_examples=50, deadline=None)
@given(probabilities=softmaxes, temperature=temperatures, mass=masses)
def test_probable_classes_are_the_fewest_that_reach_the_mass(probabilities, temperature, mass):
    chosen = probable(probabilities, temperature, mass)
    softened = calibrated(probabilities, temperature)
    assert chosen.shape == probabilities.shape
    assert chosen.dtype == bool
    rows = np.arange(len(chosen))
    assert chosen[rows, softened.argmax(axis=1)].all()
    for is_chosen, row in zip(chosen, softened, strict=True):
        falling = np.sort(row)[::-1]
        count = is_chosen.sum()
        # These are the most probable ones, they reach the mass, and one fewer would not.
        assert row[is_chosen].sum() == pytest.approx(falling[:count].sum())
        assert falling[:count].sum() >= mass - 1e-9
        assert count == 1 or falling[: count - 1].sum() < mass + 1e-9


@settings(max_examples=50, deadline=None)
@given(probabilities=softmaxes, temperature=temperatures, mass=masses)
def test_the_predicted_class_is_always_searched(probabilities, temperature, mass):
    chosen = probable(probabilities, temperature, mass)
    assert chosen[np.arange(len(chosen)), probabilities.argmax(axis=1)].all()


@settings(max_examples=50, deadline=None)
@given(probabilities=softmaxes, temperature=temperatures)
def test_a_mass_of_one_searches_all(probabilities, temperature):
    assert probable(probabilities, temperature, 1.0).all()


@settings(max_examples=50, deadline=None)
@given(probabilities=softmaxes, temperature=temperatures, two_masses=st.tuples(masses, masses))
def test_a_greater_mass_searches_all_classes_of_a_smaller_one(
    probabilities, temperature, two_masses
):
    small, large = (probable(probabilities, temperature, mass) for mass in sorted(two_masses))
    assert (large >= small).all()


def test_probable_by_hand():
    rows = np.array([[0.1, 0.6, 0.3], [0.98, 0.01, 0.01], [0.3, 0.4, 0.3]])
    assert probable(rows, 1, 0.5).tolist() == [
        [False, True, False], [True, False, False], [True, True, False],
    ]  # fmt: skip
    assert probable(rows, 1, 0.85).tolist() == [
        [False, True, True], [True, False, False], [True, True, True],
    ]  # fmt: skip
    # Reaching the mass exactly is enough; of equal probabilities, the first class is taken.
    assert probable(np.array([[0.5, 0.5]]), 1, 0.5).tolist() == [[True, False]]
    # At a high temperature the second row needs more classes, at a low one the last needs one.
    assert probable(rows, 20, 0.85)[1].all()
    assert probable(rows, 0.05, 0.85)[2].tolist() == [False, True, False]


# calibrated


@settings(max_examples=50, deadline=None)
@given(probabilities=softmaxes)
def test_a_temperature_of_one_changes_nothing(probabilities):
    calibrated_probabilities = calibrated(probabilities, 1)
    assert calibrated_probabilities.dtype == np.float64
    np.testing.assert_allclose(calibrated_probabilities, probabilities, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(probabilities=softmaxes, two_temperatures=st.tuples(temperatures, temperatures))
def test_a_higher_temperature_is_flatter_and_keeps_the_order(probabilities, two_temperatures):
    cold, hot = (calibrated(probabilities, temperature) for temperature in sorted(two_temperatures))
    for softened in (cold, hot):
        np.testing.assert_allclose(softened.sum(axis=1), 1)
        order = np.argsort(probabilities, axis=1, kind="stable")
        assert (np.diff(np.take_along_axis(softened, order, axis=1), axis=1) >= -1e-12).all()
    assert (hot.max(axis=1) <= cold.max(axis=1) + 1e-12).all()
    assert (hot.min(axis=1) >= cold.min(axis=1) - 1e-12).all()


@settings(max_examples=50, deadline=None)
@given(rows=arrays(np.float64, (4, 5), elements=st.floats(-10, 10)), temperature=st.floats(0.5, 20))
def test_calibrating_divides_the_logits(rows, temperature):
    expected = softmax(rows / temperature)
    np.testing.assert_allclose(calibrated(softmax(rows), temperature), expected, atol=1e-9)


# fit_temperature


def misstated_probabilities(temperature, n=4000, n_classes=5) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities changed by a temperature, and labels drawn from the true probabilities."""
    random = np.random.default_rng(0)
    logits = 2 * random.normal(size=(n, n_classes))
    true = softmax(logits)
    labels = (true.cumsum(axis=1) < random.random((n, 1))).sum(axis=1)
    return softmax(logits * temperature).astype(np.float32), labels


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5, 6.0])
def test_a_known_temperature_is_recovered(temperature):
    probabilities, labels = misstated_probabilities(temperature)
    fitted = fit_temperature(probabilities, labels)
    assert fitted == pytest.approx(temperature, rel=0.1)
    lowest = cross_entropy(calibrated(probabilities, fitted), labels)
    for temperature_nearby in (1.0, 0.9 * fitted, 1.1 * fitted):
        assert lowest <= cross_entropy(calibrated(probabilities, temperature_nearby), labels)


def test_the_temperature_stays_within_its_bounds():
    n = 200_000
    sure = np.full((n, 2), [0.6, 0.4], np.float32)
    assert fit_temperature(sure, np.ones(n, int)) == pytest.approx(20, rel=0.01)
    almost = np.full((n, 2), [0.51, 0.49], np.float32)
    labels = np.zeros(n, int)
    labels[0] = 1
    assert fit_temperature(almost, labels) == pytest.approx(1 / 20, rel=0.01)


@pytest.mark.parametrize(("temperature", "n"), [(0.5, 20), (0.5, 50), (2.5, 20), (2.5, 50)])
def test_few_images_leave_the_temperature_nearer_to_one(temperature, n):
    many, many_labels = misstated_probabilities(temperature)
    few = slice(0, n)
    log_all = np.log(fit_temperature(many, many_labels))
    best = np.tile(many[few], (1000, 1)), np.tile(many_labels[few], 1000)
    log_few, log_best = (
        np.log(fit_temperature(many[few], many_labels[few])),
        np.log(fit_temperature(*best)),
    )
    assert 0 < log_few / log_best < 1
    assert abs(log_few) < abs(log_all)

    def loss(log_temperature: float) -> float:
        softened = calibrated(many[few], np.exp(log_temperature))
        return cross_entropy(softened, many_labels[few]) + log_temperature**2 * 8 / n

    assert loss(log_few) < min(loss(log_few - 0.02), loss(log_few + 0.02))


def test_a_classifier_that_is_always_right_keeps_a_temperature_of_one():
    assert fit_temperature(np.full((50, 2), [0.6, 0.4], np.float32), np.zeros(50, int)) == 1


def test_probabilities_of_exactly_0_and_1_can_be_calibrated():
    certain = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 0]]
    temperature = fit_temperature(certain, np.array([0, 1, 2, 1, 2]))
    assert 1 < temperature <= 20
    assert np.isfinite(calibrated(certain, temperature)).all()


# available


def test_a_classifier_of_the_queries_allows_every_search():
    dataset = toy_dataset()
    embedded = toy_embeddings(dataset)
    assert searches.available(embedded) == list(SEARCHES)
    held_out = replace(embedded, dataset=protocols.view(dataset, "held_out_gallery"))
    assert searches.available(held_out) == list(SEARCHES)
    assert SEARCHES[0] == "unrestricted"


def test_without_a_classifier_of_the_queries_the_search_is_unrestricted():
    dataset = toy_dataset()
    embedded = toy_embeddings(dataset)
    unseen = protocols.view(dataset, "unseen_classes", unseen=1, draw=0)
    assert searches.available(replace(embedded, dataset=unseen)) == ["unrestricted"]
    assert searches.available(replace(embedded, probabilities=None)) == ["unrestricted"]


# search_input


def test_an_unrestricted_search_ranks_the_whole_gallery_by_embedding():
    embedded = toy_embeddings(toy_dataset())
    inputs = searches.search_input(embedded, "unrestricted")
    assert np.array_equal(inputs.query, embedded.query)
    assert np.array_equal(inputs.gallery, embedded.gallery)
    assert inputs.order.tolist() == list(range(len(embedded.gallery)))
    assert inputs.restrict_to is None


def test_a_baseline_has_an_unrestricted_search():
    embedded = replace(toy_embeddings(toy_dataset()), probabilities=None)
    assert searches.search_input(embedded, "unrestricted").restrict_to is None


@pytest.mark.parametrize("search", ["predicted_class", "oracle_class"])
def test_a_search_of_one_class_is_restricted_to_it(search):
    embedded = toy_embeddings(toy_dataset())
    inputs = searches.search_input(embedded, search)
    known = {
        "predicted_class": embedded.query_probabilities.argmax(axis=1),
        "oracle_class": embedded.dataset.query_labels,
    }
    assert (inputs.restrict_to.sum(axis=1) == 1).all()
    assert inputs.restrict_to.argmax(axis=1).tolist() == known[search].tolist()
    assert np.array_equal(inputs.query, embedded.query)
    assert inputs.order.tolist() == list(range(len(embedded.gallery)))


def test_a_soft_search_uses_the_calibrated_probable_classes():
    embedded = toy_embeddings(toy_dataset())
    known = searches.calibrate(embedded)
    inputs = searches.search_input(embedded, "soft")
    expected = probable(embedded.query_probabilities, known.temperature, known.mass)
    assert np.array_equal(inputs.restrict_to, expected)


@pytest.mark.parametrize("protocol", ["closed", "held_out_gallery"])
def test_label_lookup_takes_classes_in_order_of_their_probability(protocol):
    dataset = protocols.view(toy_dataset(5, 9, 6), protocol)
    embedded = toy_embeddings(dataset)
    inputs = searches.search_input(embedded, "label_lookup")
    labels = dataset.gallery_labels[inputs.order]
    assert sorted(inputs.order) == list(range(len(labels)))
    assert (inputs.gallery.argmax(axis=1) == labels).all()
    exclude = np.where(dataset.exclude < 0, -1, np.argsort(inputs.order)[dataset.exclude])
    scores = metrics.evaluate_retrieval(
        inputs.query, dataset.query_labels, inputs.gallery, labels, ks=(1, 4), exclude=exclude
    )
    # The images of a class follow those of all classes that are more probable.
    probabilities = embedded.query_probabilities
    query_labels = dataset.query_labels
    probability_of_class = probabilities[np.arange(len(query_labels)), query_labels]
    sizes = np.bincount(labels, minlength=5)
    before = ((probabilities > probability_of_class[:, None]) * sizes).sum(axis=1)
    relevant = sizes[query_labels] - (dataset.exclude >= 0)
    expected = [
        np.mean(np.arange(1, r + 1) / np.arange(b + 1, b + r + 1))
        for b, r in zip(before, relevant, strict=True)
    ]
    np.testing.assert_allclose(scores["average_precision"], expected)
    assert scores["n_relevant"].tolist() == relevant.tolist()
    is_right = before == 0
    assert is_right.any()
    assert not is_right.all()
    assert (scores["precision@1"] == is_right).all()
    assert (scores["precision@4"] == is_right).all()


def test_label_lookup_uses_no_embedding():
    dataset = toy_dataset()
    embedded = toy_embeddings(dataset)
    other_embeddings = toy_embeddings(dataset, probabilities=embedded.probabilities, seed=1)
    assert not np.array_equal(other_embeddings.query, embedded.query)
    first, second = (
        searches.search_input(embeddings, "label_lookup")
        for embeddings in (embedded, other_embeddings)
    )
    assert np.array_equal(first.query, second.query)
    assert np.array_equal(first.gallery, second.gallery)
    assert np.array_equal(first.order, second.order)


def test_label_lookup_orders_images_of_a_class_at_random():
    embedded = toy_embeddings(toy_dataset(3, 40, 2))
    order = searches.search_input(embedded, "label_lookup").order
    for label in range(3):
        positions = order[embedded.dataset.gallery_labels[order] == label]
        assert 0.3 < (np.diff(positions) > 0).mean() < 0.7


# calibrate


def vectors_near_class(labels, spread, seed) -> np.ndarray:
    """Vectors near the direction of their class."""
    random = np.random.default_rng(seed)
    directions = np.eye(labels.max() + 1)[labels]
    return directions + spread * random.normal(size=directions.shape)


def classifier_probabilities(labels, right, seed, sure=4.0) -> np.ndarray:
    """Probabilities of a classifier whose accuracy is `right`, its second guess mostly right."""
    random = np.random.default_rng(seed)
    n, n_classes = len(labels), labels.max() + 1
    logits = random.normal(size=(n, n_classes))
    logits[np.arange(n), labels] += sure
    wrong = random.random(n) > right
    logits[wrong, (labels[wrong] + 1) % n_classes] += 1.5 * sure
    return softmax(logits)


@pytest.fixture(scope="module")
def trained():
    """Embeddings of a network that is right on two of three images."""
    dataset = toy_dataset(4, 60, 20)
    vectors = vectors_near_class(dataset.labels, 0.3, 0)
    return toy_embeddings(dataset, vectors, classifier_probabilities(dataset.labels, 0.66, 1))


def test_the_mass_is_the_smallest_with_the_best_score_on_validation_images(trained):
    known = searches.calibrate(trained)
    assert list(known.scores) == [str(mass) for mass in searches.MASSES]
    best = max(known.scores.values())
    assert known.mass == min(float(mass) for mass, score in known.scores.items() if score == best)
    dataset = trained.dataset
    labels = dataset.labels[dataset.validation]
    probabilities = trained.probabilities[dataset.validation]
    assert known.temperature == pytest.approx(fit_temperature(probabilities, labels))
    for mass in (0.5, 0.99):
        by_hand = metrics.evaluate_retrieval(
            trained.vectors[dataset.validation],
            labels,
            trained.vectors[dataset.train],
            dataset.labels[dataset.train],
            restrict_to=probable(probabilities, known.temperature, mass),
        )
        mean = by_hand["average_precision"].mean()
        assert known.scores[str(mass)] == pytest.approx(mean)
    # The masses differ, so that there was a choice.
    assert len(set(known.scores.values())) > 3
    assert known.scores["0.5"] < best


def test_usual_similarity_is_reached_by_95_percent_of_the_validation_images(trained):
    dataset, vectors = trained.dataset, np.asarray(trained.vectors, np.float64)
    nearest = (vectors[dataset.validation] @ vectors[dataset.train].T).max(axis=1)
    usual = searches.calibrate(trained).usual_similarity
    assert usual == pytest.approx(np.quantile(nearest, 0.05), abs=1e-6)
    assert 0.93 < (nearest >= usual).mean() < 0.97


def test_the_smallest_of_equally_good_masses_is_chosen():
    dataset = toy_dataset(4, 20, 5)
    certain = np.eye(4)[dataset.labels]
    known = searches.calibrate(toy_embeddings(dataset, certain, 0.97 * certain + 0.0075))
    assert set(known.scores.values()) == {1.0}
    assert known.mass == searches.MASSES[0]


def test_calibration_is_chosen_without_the_queries(trained):
    known = searches.calibrate(trained)
    dataset, queries = trained.dataset, trained.dataset.queries
    random = np.random.default_rng(7)
    vectors, probabilities = np.array(trained.vectors), np.array(trained.probabilities)
    vectors[queries] = random.normal(size=vectors[queries].shape)
    probabilities[queries] = random.dirichlet(np.ones(4), len(queries))
    labels = dataset.labels.copy()
    labels[queries] = random.permutation(labels[queries])
    other_dataset = replace(dataset, labels=labels, fingerprint="other queries")
    assert searches.calibrate(toy_embeddings(other_dataset, vectors, probabilities)) == known


def test_calibration_follows_the_validation_images(trained):
    known = searches.calibrate(trained)
    dataset = trained.dataset
    surer = np.array(trained.probabilities)
    surer[dataset.validation] = calibrated(surer[dataset.validation], 0.5)
    vectors = np.array(trained.vectors)
    changed = searches.calibrate(toy_embeddings(dataset, vectors, surer))
    assert known.temperature < changed.temperature < 2 * known.temperature
    moved = vectors.copy()
    moved[dataset.validation] = np.random.default_rng(3).normal(size=(len(dataset.validation), 4))
    changed = searches.calibrate(toy_embeddings(dataset, moved, trained.probabilities))
    assert changed.temperature == known.temperature
    assert changed.scores != known.scores


def test_protocols_with_the_same_training_share_a_calibration(trained, monkeypatch):
    known = searches.calibrate(trained)

    def refuse(*_):
        raise AssertionError("calibrated again")

    monkeypatch.setattr(searches, "fit_temperature", refuse)
    held_out = replace(trained, dataset=protocols.view(trained.dataset, "held_out_gallery"))
    assert searches.calibrate(held_out) == known
    with pytest.raises(AssertionError, match="calibrated again"):
        searches.calibrate(replace(trained, dataset=replace(trained.dataset, fingerprint="x")))
