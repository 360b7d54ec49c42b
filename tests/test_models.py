"""Networks: their parts, the effect of every parameter, and weights that stay frozen."""

import functools

import keras
import numpy as np
import pytest
from conftest import build_network

from cbir import StudyError
from cbir.networks import models
from cbir.networks.backbones import BACKBONES
from cbir.networks.choices import POOLINGS


@functools.cache
def built(backbone: str, train: str = "head"):
    """A network shared by tests that do not change it."""
    return build_network(backbone, train=train)


def some_images(count: int = 3, size: int = 32) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def pooled(maps, pooling="avg") -> np.ndarray:
    maps = np.asarray(maps)
    return maps.reshape(len(maps), -1) if pooling == "flatten" else maps.mean(axis=(1, 2))


def same_weights(first: keras.Model, second: keras.Model) -> bool:
    pairs = zip(first.get_weights(), second.get_weights(), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def fit_once(network, model=None, inputs=None) -> set[str]:
    """Train for a few steps; return the paths of the weights that changed."""
    inputs = some_images(6).astype(np.float32) if inputs is None else inputs
    weights = network.model.weights
    before = [np.array(weight) for weight in weights]
    model = model or network.model
    # Runs eagerly, because tracing a deep network takes longer than a few steps.
    model.compile("adam", "sparse_categorical_crossentropy", run_eagerly=True)
    model.fit(inputs, np.arange(6) % 3, epochs=2, batch_size=6, verbose=0)
    pairs = zip(weights, before, strict=True)
    return {weight.path for weight, old in pairs if not np.array_equal(weight, old)}


def weight_paths(model, kind=keras.layers.Layer, excluded=()) -> set[str]:
    """The paths of the weights of all layers of a kind."""
    layers = [layer for layer in model.layers if isinstance(layer, kind)]
    layers = [layer for layer in layers if not isinstance(layer, excluded)]
    return {weight.path for layer in layers for weight in layer.weights}


NORM = keras.layers.BatchNormalization


@pytest.mark.parametrize("backbone", BACKBONES)
def test_probabilities_of_a_picture_sum_to_one(backbone):
    probabilities = np.asarray(built(backbone).model(some_images(), training=False))
    assert probabilities.shape == (3, 3)
    assert (probabilities >= 0).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_blocks_are_names_of_layers_from_input_to_output(backbone):
    blocks, network = BACKBONES[backbone].blocks, built(backbone)
    names = [layer.name for layer in network.body.layers]
    positions = [names.index(block) for block in blocks]
    assert positions == sorted(set(positions))
    # No layer before the first block has weights.
    assert not [layer.name for layer in network.body.layers[: positions[0]] if layer.weights]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_embedding_is_the_input_of_the_classifier(backbone):
    network = build_network(backbone, embedding_dim=7) if backbone == "cnn" else built(backbone)
    width = 7 if backbone == "cnn" else 16
    names = [layer.name for layer in network.head.layers if layer.count_params()]
    assert names == ["standardise"] * (backbone != "cnn") + ["embedding", "classifier"]
    assert network.head.get_layer("embedding").output.shape == (None, width)
    assert network.head.get_layer("classifier").kernel.shape == (width, 3)
    embedding, probabilities = network.encoder(some_images(), training=False)
    layer = network.head.get_layer("classifier")
    expected = keras.ops.softmax(embedding @ layer.kernel + layer.bias)
    np.testing.assert_allclose(expected, probabilities, atol=1e-5)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_encoder_composes_backbone_and_head_encoder(backbone):
    network, images = built(backbone), some_images()
    outputs = network.encoder(images, training=False)
    composed_outputs = network.head_encoder(
        network.backbone(images, training=False), training=False
    )
    for output, composed in zip(outputs, composed_outputs, strict=True):
        np.testing.assert_allclose(output, composed, atol=1e-5)
    np.testing.assert_allclose(outputs[1], network.model(images, training=False), atol=1e-5)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_random_backbones_scale_raw_pixels(backbone):
    network, images = built(backbone), some_images()
    maps = network.body(images.astype(np.float32) / 127.5 - 1, training=False)
    expected = pooled(maps, network.parameters["pooling"])
    features = network.backbone(images, training=False)
    np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-4)
    assert network.parameters["pixels"] == "scaled"


def test_networks_resize_images_to_their_input_size():
    network = build_network("cnn_strong", image_size=24, input_size=40)
    images = some_images(size=24)
    assert network.model.input_shape == (None, 24, 24, 3)
    assert network.body.input_shape == (None, 40, 40, 3)
    resized = keras.ops.image.resize(images.astype(np.float32), (40, 40), interpolation="bicubic")
    expected = pooled(network.body(resized / 127.5 - 1, training=False))
    np.testing.assert_allclose(network.backbone(images, training=False), expected, atol=1e-4)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("feature_maps", [False, True])
def test_pooling_is_in_the_head_if_features_are_maps_or_else_in_the_backbone(pooling, feature_maps):
    network = build_network("cnn_strong", pooling=pooling, feature_maps=feature_maps)
    images = some_images()
    features = np.asarray(network.backbone(images, training=False))
    keeps_maps = feature_maps or pooling in ("gem", "attention")
    width = 4 * 4 * 256 if pooling == "flatten" else 256
    assert network.has_maps == keeps_maps
    assert features.shape == ((3, 4, 4, 256) if keeps_maps else (3, width))
    part = network.head if keeps_maps else network.backbone
    assert part.get_layer("pooling").output.shape == (None, width)
    np.testing.assert_allclose(
        network.head(features, training=False), network.model(images, training=False), atol=1e-5
    )


def test_pooling_in_backbone_or_head_gives_the_same_result():
    pooled_in_backbone = build_network("cnn_strong", pooling="max")
    pooled_in_head = build_network("cnn_strong", pooling="max", feature_maps=True)
    assert same_weights(pooled_in_backbone.model, pooled_in_head.model)
    images = some_images()
    np.testing.assert_allclose(
        pooled_in_backbone.model(images, training=False),
        pooled_in_head.model(images, training=False),
        atol=1e-6,
    )


def test_weights_of_pooling_are_trained_with_the_head():
    for pooling, count in {"gem": 1, "attention": 256}.items():
        network = build_network("cnn_strong", train="head", pooling=pooling)
        assert network.head.get_layer("pooling").count_params() == count
        assert network.head.get_layer("pooling").trainable_variables
        assert network.size["trained"] == network.size["head"] - 2 * 256  # statistics


def test_attention_gives_a_weight_for_every_position():
    network = build_network("cnn_strong", pooling="attention")
    network.head.get_layer("pooling").direction.assign(
        np.random.default_rng(0).normal(size=(256, 1))
    )
    weights = np.asarray(network.attention(some_images(), training=False))
    assert weights.shape == (3, 4, 4)
    np.testing.assert_allclose(weights.sum(axis=(1, 2)), 1, atol=1e-5)
    maps = np.asarray(network.backbone(some_images(), training=False))
    features = (maps * weights[..., None]).sum(axis=(1, 2))
    layer = network.head.get_layer("embedding")
    expected = np.maximum(features @ np.asarray(layer.kernel) + np.asarray(layer.bias), 0)
    np.testing.assert_allclose(
        network.encoder(some_images(), training=False)[0], expected, atol=1e-4
    )


def embeddings_of(**changes) -> tuple[np.ndarray, np.ndarray]:
    """Pooled features and embeddings of some images."""
    network = build_network("cnn_strong", **changes)
    images = some_images(8)
    embeddings = np.asarray(network.encoder(images, training=False)[0])
    return np.asarray(network.backbone(images, training=False)), embeddings


def test_a_penultimate_embedding_is_a_dense_layer_without_negative_values():
    features, embeddings = embeddings_of(embedding="penultimate", embedding_dim=16)
    assert embeddings.shape == (8, 16)
    assert embeddings.min() == 0 < embeddings.max()


def test_a_projection_is_a_dense_layer_with_negative_values():
    _, penultimate = embeddings_of(embedding="penultimate")
    _, projection = embeddings_of(embedding="projection")
    assert projection.min() < 0
    # With the same seed, they differ only in the negative values.
    np.testing.assert_allclose(np.maximum(projection, 0), penultimate, atol=1e-5)


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_a_pooled_embedding_is_the_pooled_features(pooling):
    features, embeddings = embeddings_of(embedding="pooled", embedding_dim=5, pooling=pooling)
    assert embeddings.shape == (8, 256)
    np.testing.assert_allclose(embeddings, features, atol=1e-5)


def test_dropout_drops_its_share_of_the_embedding_only_in_training():
    head = build_network(embedding="pooled", pooling="avg", dropout=0.25).head
    (dropout,) = (layer for layer in head.layers if isinstance(layer, keras.layers.Dropout))
    ones = np.ones((40, 128), np.float32)
    dropped = np.asarray(dropout(ones, training=True))
    assert 0.2 < np.mean(dropped == 0) < 0.3
    assert np.array_equal(dropout(ones, training=False), ones)


def test_the_plain_cnn_drops_half_of_the_share_after_every_pooling():
    body = build_network("cnn", dropout=0.4).body
    assert [body.get_layer(f"stage{stage}_dropout").rate for stage in (1, 2)] == [0.2, 0.2]


@pytest.mark.parametrize("backbone", ["cnn", "mobilenet"])
def test_training_does_not_change_a_frozen_backbone(backbone):
    network = build_network(backbone, train="head")
    assert network.is_frozen
    features = np.asarray(network.backbone(some_images(6), training=False))
    head_weights, body_weights = weight_paths(network.head), weight_paths(network.body)
    for model, inputs in ((network.head, features), (network.model, None)):
        changed = fit_once(network, model, inputs)
        assert not changed & body_weights
        assert changed & head_weights
    statistics = network.head.get_layer("standardise").count_params()
    assert network.size["trained"] == network.size["head"] - statistics


def test_training_all_layers_changes_all_weights():
    network = build_network("cnn_strong", train="all", dropout=0.0)
    assert not network.is_frozen
    assert fit_once(network) >= weight_paths(network.body) | weight_paths(network.head)
    statistics = sum(2 * norm.gamma.shape[0] for norm in network.body.layers if type(norm) is NORM)
    assert network.size["trained"] == network.size["total"] - statistics


def test_training_the_last_blocks_changes_only_these_without_batch_norm():
    network = build_network("cnn_strong", train="last_blocks:2", dropout=0.0)
    assert network.parameters["first_trained"] == "stage2_conv1"
    convolutions = [f"stage{stage}_conv{index}/kernel" for stage in (2, 3) for index in (1, 2)]
    assert fit_once(network) - weight_paths(network.head) == set(convolutions)
    assert not network.is_frozen


@pytest.mark.parametrize(
    ("backbone", "count", "first", "prefixes"),
    [
        ("cnn", 1, "stage3_conv1", ("stage3",)),
        ("mobilenet", 1, "conv_dw_13", ("conv_dw_13", "conv_pw_13")),
        ("mobilenet", 14, "conv1", ("conv",)),
        ("resnet50", 3, "conv5_block1_1_conv", ("conv5",)),
        ("vgg16", 2, "block4_conv1", ("block4", "block5")),
    ],
)
def test_a_block_extends_to_the_first_layer_of_the_next(backbone, count, first, prefixes):
    network = build_network(backbone, train=f"last_blocks:{count}")
    body = network.body
    assert network.parameters["first_trained"] == first
    convolutions = [layer for layer in body.layers if layer.weights and not isinstance(layer, NORM)]
    trained = [layer.name for layer in convolutions if layer.trainable_variables]
    assert trained == [layer.name for layer in convolutions if layer.name.startswith(prefixes)]
    assert trained[0] == first


def test_training_does_not_change_batch_norm_of_a_previously_frozen_backbone():
    network = build_network("cnn_strong", train="all", was_frozen=True, dropout=0.0)
    changed, norms = fit_once(network), weight_paths(network.body, NORM)
    assert len(norms) == 7 * 4
    assert not changed & norms
    assert changed >= weight_paths(network.body, excluded=NORM) | weight_paths(
        network.head, excluded=NORM
    )


def test_batch_norm_of_a_previously_frozen_backbone_stays_in_inference_mode():
    images = some_images(4).astype(np.float32)
    norms = {}
    for was_frozen in (True, False):
        network = build_network("cnn_strong", was_frozen=was_frozen)
        pairs = [network.backbone(images, training=training) for training in (True, False)]
        norms[was_frozen] = np.allclose(*pairs, atol=1e-5)
    assert norms == {True: True, False: False}


def test_batch_norm_has_a_momentum_for_short_studies():
    for backbone in ("cnn_strong", "mobilenet", "resnet50"):
        norms = [layer for layer in built(backbone).body.layers if isinstance(layer, NORM)]
        assert norms
        assert {layer.momentum for layer in norms} == {models.BATCH_NORM_MOMENTUM}


@pytest.mark.parametrize("backbone", ["cnn", "mobilenet"])
def test_initial_weights_depend_only_on_the_seed(backbone):
    network, other_seed = built(backbone), build_network(backbone, train="head", seed=1)
    assert not same_weights(network.backbone, other_seed.backbone)
    assert not same_weights(network.head, other_seed.head)
    if backbone != "resnet50":  # a third ResNet would take too long
        assert same_weights(network.model, build_network(backbone, train="head", seed=0).model)


def test_random_weights_of_vgg16_have_the_variance_of_he_initialisation():
    *_, last = (layer for layer in built("vgg16").body.layers if layer.weights)
    kernel = keras.ops.convert_to_numpy(last.kernel)
    # An output is a sum of 3 x 3 x 512 products; He et al. use 2 divided by that number.
    assert kernel.std() == pytest.approx((2 / (3 * 3 * 512)) ** 0.5, rel=0.01)
    assert same_weights(built("vgg16").body, build_network("vgg16", train="head").body)


@pytest.mark.parametrize("backbone", ["cnn_strong", "mobilenet"])
def test_the_table_of_layers_contains_all_parameters_once(backbone):
    network = build_network(backbone, train="last_blocks:2", pooling="gem")
    table = network.layers()
    assert table["parameters"].sum() == network.size["total"]
    assert table["trained"].sum() == network.size["trained"] < network.size["total"]
    assert table["layer"].iloc[-1] == "classifier"
    assert table["part"].unique().tolist() == ["backbone", "head"]
    # A body of many layers is one row.
    assert (table["layer"] == "body").sum() == (backbone == "mobilenet")


def test_the_table_of_blocks_contains_all_parameters_once():
    network = build_network("mobilenet", train="last_blocks:2", dropout=0)
    *blocks, total = network.blocks().to_dict("records")
    assert [row["block"] for row in blocks] == list(BACKBONES["mobilenet"].blocks)
    assert total["block"] == "all"
    for column in ("parameters", "trained", "convolutions", "batch_norms"):
        assert sum(row[column] for row in blocks) == total[column]
    assert total["parameters"] == network.size["backbone"]
    assert [row["trained"] > 0 for row in blocks] == [False] * 12 + [True] * 2
    assert total["output"] == "1 × 1 × 256"


def test_multiplications_are_kernel_weights_times_positions():
    first, second, third, total = build_network("cnn").blocks()["multiplications"]
    assert first == 32 * 32 * (9 * 3 * 32 + 9 * 32 * 32)
    assert second == 16 * 16 * (9 * 32 * 64 + 9 * 64 * 64)
    assert third == 8 * 8 * 9 * 64 * 128
    assert total == pytest.approx(first + second + third)


def test_an_unknown_backbone_is_rejected_with_the_known_ones():
    with pytest.raises(StudyError, match="unknown backbone 'alexnet'.*cnn, .*resnet50, vgg16"):
        build_network("alexnet")
