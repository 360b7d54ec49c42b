"""Embeddings: unit vectors in the order of the images, one for each state that is measured."""

import numpy as np
import pytest
from conftest import build_network, load_shapes, train_network

from cbir import StudyError, controls, embeddings, models, protocols, recipe, training
from cbir.embeddings import normalise


@pytest.fixture(scope="module")
def images(shared_project):
    return load_shapes()


@pytest.fixture(scope="module")
def trained(images):
    """A trained network and its training, measured after epoch 1 too."""
    network = build_network()
    return network, train_network(network, images)


@pytest.fixture(scope="module")
def embedded(trained, images):
    """Embeddings of the final state, made in several batches with a remainder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embeddings, "BATCH_SIZE", 7)
        return embeddings.embed(*trained, images)


def weights_of(model):
    return [weight.copy() for weight in model.get_weights()]


def are_equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_embeddings_are_float32_of_unit_length(embedded, images):
    assert embedded.vectors.dtype == np.float32
    assert embedded.vectors.shape == (len(images.images), 16)
    np.testing.assert_allclose(np.linalg.norm(embedded.vectors, axis=1), 1, atol=1e-6)


def test_embeddings_and_probabilities_of_all_images_are_memory_mapped(embedded, images):
    for array in (embedded.vectors, embedded.probabilities, embedded.gallery, embedded.query):
        assert isinstance(array, np.memmap)
    assert len(embedded.vectors) == len(embedded.probabilities) == len(images.labels)
    names = {path.name for path in embedded.artifact.folder.iterdir()}
    assert names == {"vectors.npy", "probabilities.npy", "manifest.json"}


def test_rows_stand_in_the_order_of_the_images(embedded, trained, images):
    network, _ = trained
    by_hand, _ = network.encoder(np.asarray(images.images), training=False)
    np.testing.assert_allclose(embedded.vectors, normalise(by_hand), atol=1e-5)
    assert np.array_equal(embedded.gallery, embedded.vectors[images.gallery])
    assert np.array_equal(embedded.query, embedded.vectors[images.queries])


def test_probabilities_are_those_of_the_network(embedded, trained, images):
    expected = trained[0].model.predict(np.asarray(images.images), verbose=0)
    np.testing.assert_allclose(embedded.probabilities, expected, atol=1e-5)
    np.testing.assert_allclose(embedded.query_probabilities, expected[images.queries], atol=1e-5)
    assert embedded.query_predictions.tolist() == expected[images.queries].argmax(axis=1).tolist()


def test_another_view_takes_its_rows_of_the_same_vectors(embedded, images):
    view = protocols.view(images, "unseen_classes", unseen=1, draw=0)
    for dataset in (view, protocols.view(images, "held_out_gallery")):
        other = embedded.of(dataset)
        assert other.artifact is embedded.artifact
        assert np.array_equal(other.gallery, embedded.vectors[dataset.gallery])
        assert np.array_equal(other.query, embedded.vectors[dataset.queries])
        assert np.array_equal(other.query_probabilities, embedded.probabilities[dataset.queries])


def test_protocols_that_train_alike_share_embeddings(embedded, trained, images):
    held_out = embeddings.embed(*trained, protocols.view(images, "held_out_gallery"))
    assert held_out.artifact.folder == embedded.artifact.folder
    assert held_out.dataset.protocol == "held_out_gallery"


def test_the_table_of_what_is_stored_counts_images_and_bytes(embedded, images):
    table = embedded.stored()
    assert table["images"].tolist() == [len(images.gallery), len(images.queries)]
    assert table.loc["gallery", "megabytes"] == len(images.gallery) * 16 * 4 / 1e6


def test_normalised_rows_keep_their_direction():
    vectors = np.array([[3, 4], [0.5, 0], [1e-15, 1e-15]], np.float64)
    half = 1 / np.sqrt(2)
    np.testing.assert_allclose(normalise(vectors), [[0.6, 0.8], [1, 0], [half, half]], atol=1e-6)
    assert normalise(vectors).dtype == np.float32


def test_a_row_of_zeros_gets_a_direction_of_unit_length():
    row = normalise(np.array([[0, 0, 0, 0], [0, 2, 0, 0]]))
    np.testing.assert_allclose(row, [[0.5, 0.5, 0.5, 0.5], [0, 1, 0, 0]])


def test_a_measured_epoch_has_embeddings_of_its_own_state(embedded, trained, images):
    network, training = trained
    final = weights_of(network.model)
    early = embeddings.embed(network, training, images, epoch=1)
    assert are_equal(weights_of(network.model), final)
    assert early.artifact.folder != embedded.artifact.folder
    assert not np.allclose(early.query, embedded.query, atol=1e-3)
    at_that_time = build_network(seed=9)
    at_that_time.model.load_weights(training.weights_path(1))
    expected, _ = at_that_time.encoder(np.asarray(images.images), training=False)
    np.testing.assert_allclose(early.vectors, normalise(expected), atol=1e-5)


def test_the_last_epoch_by_number_is_the_final_state(embedded, trained, images):
    assert embeddings.embed(*trained, images, epoch=4).artifact.key == embedded.artifact.key


def test_embeddings_are_made_once(embedded, trained, images, monkeypatch):
    def refuse(*_):
        raise AssertionError("embedded again")

    monkeypatch.setattr(embeddings, "predict", refuse)
    assert embeddings.embed(*trained, images).artifact.folder == embedded.artifact.folder


def test_a_backbone_that_is_trained_has_no_frozen_features(trained, images):
    assert embeddings.features(trained[0], images) is None


def test_seeds_share_the_frozen_features_of_given_weights(images, trained, tmp_path):
    path = tmp_path / "body.weights.h5"
    trained[0].backbone.get_layer("cnn_body").save_weights(path)
    folders = set()
    for seed in (0, 1):
        network = build_network(weights=str(path), train="head", seed=seed)
        frozen = embeddings.features(network, images)
        folders.add(frozen.folder)
        expected = network.backbone(np.asarray(images.images), training=False)
        np.testing.assert_allclose(np.load(frozen.folder / "features.npy"), expected, atol=1e-4)
    assert len(folders) == 1


def test_seeds_share_no_frozen_features_of_random_weights(images):
    networks = [build_network(train="head", seed=seed) for seed in (0, 1)]
    assert len({embeddings.features(network, images).folder for network in networks}) == 2


def test_embeddings_from_frozen_features_equal_those_from_the_images(images):
    network = build_network(train="head")
    frozen = embeddings.features(network, images)
    training = train_network(network, images, features=frozen, epochs=2)
    embedded = embeddings.embed(network, training, images, frozen)
    expected, probabilities = network.encoder(np.asarray(images.images), training=False)
    np.testing.assert_allclose(embedded.vectors, normalise(expected), atol=1e-4)
    np.testing.assert_allclose(embedded.probabilities, probabilities, atol=1e-4)


def test_one_picture_is_encoded_as_many_are(embedded, trained, images):
    encode = recipe.encoder(trained[0])
    many = encode(images.images)
    np.testing.assert_allclose(normalise(many), embedded.vectors, atol=1e-5)
    for row in (0, 47):
        np.testing.assert_allclose(encode(images.images[row][None]), many[row][None], atol=1e-4)


@pytest.fixture
def trainings(monkeypatch):
    """A recipe without its work: what it trains, and which network and epoch it embeds with."""
    trained, embedded = [], []

    def build(backbone, n_classes, seed):
        assert (backbone, n_classes) == ("cnn", 3)
        return f"network of seed {seed}"

    def train(network, dataset, *, features, seed, epochs):
        assert (features, epochs) == ("features", 9)
        trained.append((network, dataset.protocol, dataset.draw, seed))
        return f"training {len(trained)}"

    def embed(network, done, dataset, features, epoch):
        assert features == "features"
        embedded.append((network, done, dataset.protocol, epoch))

    monkeypatch.setattr(models, "build", build)
    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(embeddings, "features", lambda network, dataset: "features")
    monkeypatch.setattr(embeddings, "embed", embed)
    return trained, embedded


def test_a_recipe_trains_once_for_all_that_is_measured_of_a_seed_and_a_split(images, trainings):
    trained, embedded = trainings
    embed = recipe.Recipe({"backbone": "cnn"}, {"epochs": 9}).embed
    held_out = protocols.view(images, "held_out_gallery")
    embed(images, 4)
    embed(images, 4, epoch=2)
    embed(held_out, 4)
    embed(images, 5)
    for draw in (0, 1):
        embed(protocols.view(images, "unseen_classes", unseen=1, draw=draw), 5)
    assert trained == [
        ("network of seed 4", "closed", None, 4),
        ("network of seed 5", "closed", None, 5),
        ("network of seed 5", "unseen_classes", 0, 5),
        ("network of seed 5", "unseen_classes", 1, 5),
    ]
    assert embedded == [
        ("network of seed 4", "training 1", "closed", None),
        ("network of seed 4", "training 1", "closed", 2),
        ("network of seed 4", "training 1", "held_out_gallery", None),
        ("network of seed 5", "training 2", "closed", None),
        ("network of seed 5", "training 3", "unseen_classes", None),
        ("network of seed 5", "training 4", "unseen_classes", None),
    ]


def test_views_share_the_frozen_features_of_all_images(images):
    network = build_network(train="head")
    unseen = protocols.view(images, "unseen_classes", unseen=1, draw=1)
    folders = {embeddings.features(network, each).folder for each in (images, unseen)}
    assert len(folders) == 1


@pytest.mark.parametrize("control", controls.CONTROLS)
def test_a_control_stands_in_the_place_of_a_network_without_a_classifier(control, images):
    embedded = embeddings.embed_control(control, images, seed=0)
    described = controls.describe_images(control, images.images, 0)
    assert np.array_equal(embedded.vectors, normalise(described))
    assert embedded.probabilities is None
    assert isinstance(embedded.vectors, np.memmap)
    assert np.array_equal(embedded.query, embedded.vectors[images.queries])


def test_a_control_is_described_once_for_all_views(images, monkeypatch):
    first = embeddings.embed_control("raw_pixels", images, seed=0)

    def refuse(*_):
        raise AssertionError("described again")

    monkeypatch.setattr(controls, "describe_images", refuse)
    held_out = protocols.view(images, "held_out_gallery")
    again = embeddings.embed_control("raw_pixels", held_out, seed=0)
    assert again.artifact.folder == first.artifact.folder
    assert again.dataset is held_out


def test_seeds_of_chance_differ_and_come_back(images):
    zero, one, again = (embeddings.embed_control("random", images, seed) for seed in (0, 1, 0))
    assert not np.array_equal(zero.vectors, one.vectors)
    assert np.array_equal(zero.vectors, again.vectors)


def test_broken_weights_are_refused_in_one_line():
    with pytest.raises(StudyError, match="not a finite number") as caught:
        normalise(np.array([[1, np.nan]]))
    assert "\n" not in str(caught.value)
