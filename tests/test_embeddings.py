"""Embeddings: unit vectors in the order of the images, for each measured state."""

from dataclasses import replace

import keras
import numpy as np
import pytest
from conftest import build_network, empty_project, load_shapes, train_network

from cbir import StudyError
from cbir.images import protocols
from cbir.networks import architecture, baselines, embeddings, inference
from cbir.networks.embeddings import fit_whitening, normalise

pytestmark = pytest.mark.usefixtures("small_cnn", "shared_project", "short_epochs")


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
        patch.setattr(inference, "BATCH_SIZE", 7)
        return architecture.embed(*trained, images)


def weights_of(model):
    return [weight.copy() for weight in model.get_weights()]


def are_equal(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


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


def test_rows_are_in_the_order_of_the_images(embedded, trained, images):
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


def test_another_view_uses_its_rows_of_the_same_vectors(embedded, images):
    view = protocols.view(images, "unseen_classes", unseen=1, draw=0)
    for dataset in (view, protocols.view(images, "held_out_gallery")):
        viewed = replace(embedded, dataset=dataset)
        assert viewed.artifact is embedded.artifact
        assert np.array_equal(viewed.gallery, embedded.vectors[dataset.gallery])
        assert np.array_equal(viewed.query, embedded.vectors[dataset.queries])
        assert np.array_equal(viewed.query_probabilities, embedded.probabilities[dataset.queries])


def test_protocols_that_train_alike_share_embeddings(embedded, trained, images):
    held_out = architecture.embed(*trained, protocols.view(images, "held_out_gallery"))
    assert held_out.artifact.folder == embedded.artifact.folder
    assert held_out.dataset.protocol == "held_out_gallery"


def test_stored_embeddings_are_opened_from_their_folder(embedded, trained, images, tmp_path):
    whitened = architecture.embed(*trained, images, whitening=3)
    baseline = embeddings.embed_baseline("random", images, 0)
    for stored in (embedded, whitened, baseline):
        opened = embeddings.Embeddings.open(stored.artifact.folder, images)
        assert opened.artifact == stored.artifact
        assert np.array_equal(opened.vectors, stored.vectors)
    assert embedded.whitening is None
    assert whitened.whitening["axes"].shape == (16, 3)
    assert baseline.probabilities is None
    with pytest.raises(StudyError, match="no embeddings in .*: run the study again"):
        embeddings.Embeddings.open(tmp_path, images)


def test_the_table_of_sizes_counts_images_and_bytes(embedded, images):
    table = embedded.sizes()
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


def test_a_measured_epoch_has_the_embeddings_of_its_state(embedded, trained, images):
    network, training = trained
    final = weights_of(network.model)
    measured = architecture.embed(network, training, images, epoch=1)
    assert are_equal(weights_of(network.model), final)
    assert measured.artifact.folder != embedded.artifact.folder
    assert not np.allclose(measured.query, embedded.query, atol=1e-3)
    network_of_epoch = build_network(seed=9)
    network_of_epoch.model.load_weights(training.weights_path(1))
    expected, _ = network_of_epoch.encoder(np.asarray(images.images), training=False)
    np.testing.assert_allclose(measured.vectors, normalise(expected), atol=1e-5)


def test_the_last_epoch_by_number_is_the_final_state(embedded, trained, images):
    assert architecture.embed(*trained, images, epoch=4).artifact.key == embedded.artifact.key


def test_embeddings_are_computed_once(embedded, trained, images, monkeypatch):
    def refuse(*_):
        raise AssertionError("embedded again")

    monkeypatch.setattr(inference, "predict", refuse)
    assert architecture.embed(*trained, images).artifact.folder == embedded.artifact.folder


@pytest.mark.parametrize(
    ("weights", "layer"),
    [
        ({"embedding": 3e38}, "embedding"),
        ({"embedding": 3e38, "stage2_conv1": np.nan}, "stage2_conv1"),
    ],
    ids=["too large weights", "broken weights"],
)
def test_nan_embeddings_are_refused_with_epoch_and_layer(
    weights, layer, trained, images, monkeypatch
):
    load = keras.Model.load_weights

    def broken(model, path):
        load(model, path)
        for weight in model.weights:
            name = weight.path.split("/")[-2]
            weight.assign(np.full(weight.shape, weights[name]) if name in weights else weight)

    message = f"after epoch 1, the layer {layer} has NaN or infinite values"
    with monkeypatch.context() as patch:
        patch.setattr(keras.Model, "load_weights", broken)
        with pytest.raises(StudyError, match=message):
            architecture.embed(*trained, images, epoch=1, whitening=2)
    trained[0].model.load_weights(trained[1].weights_path())


def test_a_trained_backbone_has_no_frozen_features(trained, images):
    assert inference.frozen_features(trained[0], images) is None


@pytest.fixture(scope="module")
def body_weights(trained, tmp_path_factory):
    """A file of backbone weights for networks to start from."""
    path = tmp_path_factory.mktemp("weights") / "body.weights.h5"
    trained[0].body.save_weights(path)
    return str(path)


@pytest.fixture(scope="module")
def frozen(body_weights):
    """Builds networks with this backbone, frozen."""

    def build(**changes):
        settings = {"weights": body_weights, "train": "head", "pooling": "avg"}
        return build_network(**(settings | changes))

    return build


def test_frozen_features_are_computed_once_for_all_heads_seeds_and_views(
    frozen, images, monkeypatch, tmp_path
):
    predict, steps = inference.predict, []

    def count(model, inputs, outputs, what):
        steps.append(what)
        predict(model, inputs, outputs, what)

    monkeypatch.setattr(inference, "predict", count)
    heads = [{"pooling": "max"}, {"pooling": "max", "seed": 1}]
    heads += [{"pooling": "max", "embedding": "projection", "embedding_dim": 4, "dropout": 0.5}]
    networks = [frozen(**head) for head in heads]
    folders = {inference.frozen_features(network, images).folder for network in networks}
    unseen = protocols.view(images, "unseen_classes", unseen=1, draw=1)
    folders.add(inference.frozen_features(networks[0], unseen).folder)
    assert len(folders) == 1
    assert steps == ["features"]
    features = np.load(folders.pop() / "features.npy")
    expected = networks[0].backbone(np.asarray(images.images), training=False)
    np.testing.assert_allclose(features, expected, atol=1e-4)

    training = train_network(
        networks[0], images, features=inference.frozen_features(networks[0], images), epochs=1
    )
    for whitening in (0, 4):
        architecture.embed(networks[0], training, images, whitening=whitening)
    assert steps == ["features", "embeddings", "embeddings"]


def test_trainable_poolings_share_the_maps_of_a_frozen_backbone(frozen, images):
    poolings = [{"pooling": "gem"}, {"pooling": "attention"}, {"feature_maps": True}]
    artifacts = [inference.frozen_features(frozen(**pooling), images) for pooling in poolings]
    assert len({artifact.folder for artifact in artifacts}) == 1
    path = artifacts[0].folder / "features.npy"
    maps = np.load(path)
    assert (maps.dtype, maps.shape) == (np.float16, (len(images.images), 8, 8, 128))
    assert path.stat().st_size == 128 + len(images.images) * 8 * 8 * 128 * 2
    pooled = inference.frozen_features(frozen(), images)
    features = np.load(pooled.folder / "features.npy")
    assert (features.dtype, features.shape) == (np.float32, (len(images.images), 128))
    assert (pooled.folder / "features.npy").stat().st_size == 128 + features.nbytes
    # float16 has 11 significant bits.
    means = maps.astype(np.float64).mean(axis=(1, 2))
    np.testing.assert_allclose(means, features, rtol=2**-11, atol=1e-5)
    assert features.std() > 100 * 1e-5


def test_each_fixed_pooling_has_its_own_features(frozen, images):
    artifacts = [
        inference.frozen_features(frozen(pooling=pooling), images) for pooling in ("avg", "max")
    ]
    assert artifacts[0].folder != artifacts[1].folder


def test_random_backbones_of_different_seeds_have_separate_features(images):
    networks = [build_network(train="head", seed=seed) for seed in (0, 1)]
    assert len({inference.frozen_features(network, images).folder for network in networks}) == 2


def test_embeddings_from_frozen_features_equal_those_from_the_images(images):
    network = build_network(train="head")
    frozen = inference.frozen_features(network, images)
    training = train_network(network, images, features=frozen, epochs=2)
    embedded = architecture.embed(network, training, images)
    expected, probabilities = network.encoder(np.asarray(images.images), training=False)
    np.testing.assert_allclose(embedded.vectors, normalise(expected), atol=1e-4)
    np.testing.assert_allclose(embedded.probabilities, probabilities, atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [{}, {"test_time_flips": True}, {"whitening": 3}, {"test_time_flips": True, "whitening": 3}],
    ids=str,
)
def test_the_encoder_reproduces_the_stored_embeddings(settings, trained, images, monkeypatch):
    stored = architecture.embed(*trained, images, **settings)
    monkeypatch.setattr(inference, "BATCH_SIZE", 20)
    encode = inference.make_encoder(trained[0], stored)
    vectors, probabilities = encode(images.images)
    np.testing.assert_allclose(probabilities, stored.probabilities, atol=1e-5)
    assert vectors.shape == (len(images.images), 3 if "whitening" in settings else 16)
    np.testing.assert_allclose(vectors, stored.vectors, atol=1e-4)
    np.testing.assert_allclose(encode(images.images[47][None])[0], vectors[47][None], atol=1e-4)


def test_embeddings_with_flips_are_means_over_an_image_and_its_mirror_image(
    embedded, trained, images
):
    flipped = architecture.embed(*trained, images, test_time_flips=True)
    assert flipped.artifact.folder != embedded.artifact.folder
    pixels = np.asarray(images.images)
    outputs = [trained[0].encoder(batch, training=False) for batch in (pixels, pixels[:, :, ::-1])]
    vectors, probabilities = (np.mean(pair, axis=0) for pair in zip(*outputs, strict=True))
    np.testing.assert_allclose(flipped.vectors, normalise(vectors), atol=1e-5)
    np.testing.assert_allclose(flipped.probabilities, probabilities, atol=1e-5)
    assert np.abs(flipped.vectors - embedded.vectors).max() > 1e-3


def test_an_image_and_its_mirror_image_get_the_same_embedding_with_flips(trained, images):
    mirrored = replace(images, images=images.images[:, :, ::-1], fingerprint="mirrored")
    pairs = [
        [architecture.embed(*trained, dataset, test_time_flips=flips).vectors
         for dataset in (images, mirrored)]
        for flips in (True, False)
    ]  # fmt: skip
    np.testing.assert_allclose(*pairs[0], atol=1e-5)
    assert not np.allclose(*pairs[1], atol=1e-3)


@pytest.mark.parametrize("pooling", ["avg", pytest.param("gem", marks=pytest.mark.slow)])
def test_frozen_features_of_mirror_images_are_computed_once_for_all_heads(
    pooling, body_weights, images, tmp_path, monkeypatch
):
    monkeypatch.chdir(empty_project(tmp_path / "elsewhere"))
    predict, steps = inference.predict, []

    def count(model, inputs, outputs, what):
        steps.append((what, len(inputs)))
        predict(model, inputs, outputs, what)

    monkeypatch.setattr(inference, "predict", count)
    pixels = np.asarray(images.images)
    for seed in (0, 1):
        settings = {"weights": body_weights, "train": "head", "pooling": pooling, "seed": seed}
        network = build_network(**settings)
        frozen = inference.frozen_features(network, images)
        training = train_network(network, images, features=frozen, epochs=1)
        if not seed:
            # Without flips, the mirror images are not computed.
            architecture.embed(network, training, images)
            assert steps == [("features", 1), ("embeddings", 1)]
        flipped = architecture.embed(network, training, images, test_time_flips=True)
        outputs = [network.encoder(batch, training=False) for batch in (pixels, pixels[:, :, ::-1])]
        vectors, probabilities = (np.mean(pair, axis=0) for pair in zip(*outputs, strict=True))
        # Maps are stored as float16.
        tolerance = 1e-3 if pooling == "gem" else 1e-4
        np.testing.assert_allclose(flipped.vectors, normalise(vectors), atol=tolerance)
        np.testing.assert_allclose(flipped.probabilities, probabilities, atol=tolerance)
        unflipped = normalise(outputs[0][0])
        assert np.abs(flipped.vectors - unflipped).max() > 2 * tolerance
    assert steps[2:] == [("features", 1), ("embeddings", 2), ("embeddings", 2)]


def test_whitened_training_images_have_unit_covariance(embedded, trained, images):
    stored = architecture.embed(*trained, images, whitening=4)
    assert stored.artifact.folder != embedded.artifact.folder
    assert stored.vectors.shape == (len(images.images), 4)
    np.testing.assert_allclose(np.linalg.norm(stored.vectors, axis=1), 1, atol=1e-6)
    assert np.array_equal(stored.probabilities, embedded.probabilities)
    whitened = (embedded.vectors - stored.whitening["mean"]) @ stored.whitening["axes"]
    training_rows = whitened[images.train]
    np.testing.assert_allclose(training_rows.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(np.cov(training_rows.T), np.eye(4), atol=1e-3)
    np.testing.assert_allclose(stored.vectors, normalise(whitened), atol=1e-5)


def test_whitening_keeps_the_directions_of_highest_variance(embedded, trained, images):
    stored = architecture.embed(*trained, images, whitening=3)
    unit = np.asarray(embedded.vectors, np.float64)
    training_rows = unit[images.train]
    widths, directions = np.linalg.eigh(np.cov(training_rows.T))
    axes = directions[:, -3:] / np.sqrt(widths[-3:])
    by_hand = normalise((unit - training_rows.mean(axis=0)) @ axes)
    # The sign of an axis does not change similarities.
    np.testing.assert_allclose(stored.vectors @ stored.vectors.T, by_hand @ by_hand.T, atol=1e-3)


def test_whitening_depends_on_the_training_images(trained, images):
    unseen = protocols.view(images, "unseen_classes", unseen=1, draw=0)
    whitened = [
        architecture.embed(*trained, view, whitening=3).vectors for view in (images, unseen)
    ]
    assert not np.allclose(*(np.abs(vectors) for vectors in whitened), atol=1e-2)


@pytest.mark.parametrize(("shape", "maximum"), [((9, 3), 3), ((3, 9), 3)])
def test_too_many_whitening_dimensions_are_refused(shape, maximum):
    vectors = np.random.default_rng(0).normal(size=shape)
    assert fit_whitening(vectors, maximum)["axes"].shape == (shape[1], maximum)
    message = (
        f"^whitening: 4 dimensions are too many for {shape[1]}-dimensional embeddings of "
        f"{shape[0]} training images: use at most {maximum}$"
    )
    with pytest.raises(StudyError, match=message):
        fit_whitening(vectors, 4)


def test_whitening_does_not_amplify_a_constant_dimension():
    vectors = np.random.default_rng(0).normal(size=(20, 3)) * [1, 1, 0]
    fitted = fit_whitening(vectors, 3)
    whitened = (normalise(vectors) - fitted["mean"]) @ fitted["axes"]
    assert np.isfinite(whitened).all()
    assert np.abs(whitened[:, 2]).max() < 0.1


@pytest.mark.parametrize("baseline", baselines.BASELINES)
def test_a_baseline_has_embeddings_and_no_probabilities(baseline, images):
    embedded = embeddings.embed_baseline(baseline, images, seed=0)
    described = baselines.describe_images(baseline, images.images, 0)
    assert np.array_equal(embedded.vectors, normalise(described))
    assert embedded.probabilities is None
    assert isinstance(embedded.vectors, np.memmap)
    assert np.array_equal(embedded.query, embedded.vectors[images.queries])


def test_a_baseline_is_described_once_for_all_views(images, monkeypatch):
    first = embeddings.embed_baseline("raw_pixels", images, seed=0)

    def refuse(*_):
        raise AssertionError("described again")

    monkeypatch.setattr(baselines, "describe_images", refuse)
    held_out = protocols.view(images, "held_out_gallery")
    second = embeddings.embed_baseline("raw_pixels", held_out, seed=0)
    assert second.artifact.folder == first.artifact.folder
    assert second.dataset is held_out


def test_random_vectors_depend_only_on_the_seed(images):
    first, second, repeated = (
        embeddings.embed_baseline("random", images, seed) for seed in (0, 1, 0)
    )
    assert not np.array_equal(first.vectors, second.vectors)
    assert np.array_equal(first.vectors, repeated.vectors)


def test_nan_vectors_are_refused_in_one_line():
    with pytest.raises(StudyError, match="NaN or infinite values") as caught:
        normalise(np.array([[1, np.nan]]))
    assert "\n" not in str(caught.value)
