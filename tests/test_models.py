"""Networks: their parts, what each parameter makes of them, and what a frozen part keeps."""

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
    """A network that the tests only read."""
    return build_network(backbone, train=train)


def some_images(count: int = 3, size: int = 32) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def pooled(maps, pooling="avg") -> np.ndarray:
    maps = np.asarray(maps)
    return maps.reshape(len(maps), -1) if pooling == "flatten" else maps.mean(axis=(1, 2))


def same_weights(one: keras.Model, other: keras.Model) -> bool:
    pairs = zip(one.get_weights(), other.get_weights(), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def fit_once(network, model=None, inputs=None) -> set[str]:
    """Train for a few steps; the paths of the backbone's and the head's weights that moved."""
    inputs = some_images(6).astype(np.float32) if inputs is None else inputs
    weights = network.model.weights
    before = [np.array(weight) for weight in weights]
    model = model or network.model
    # Eagerly: tracing a deep network takes longer than running it a few times.
    model.compile("adam", "sparse_categorical_crossentropy", run_eagerly=True)
    model.fit(inputs, np.arange(6) % 3, epochs=2, batch_size=6, verbose=0)
    pairs = zip(weights, before, strict=True)
    return {weight.path for weight, old in pairs if not np.array_equal(weight, old)}


def paths(model, of=keras.layers.Layer, but=()) -> set[str]:
    """Of all weights of the layers of a kind."""
    chosen = [each for each in model.layers if isinstance(each, of) and not isinstance(each, but)]
    return {weight.path for layer in chosen for weight in layer.weights}


NORM = keras.layers.BatchNormalization


@pytest.mark.parametrize("backbone", BACKBONES)
def test_probabilities_of_a_picture_sum_to_one(backbone):
    probabilities = np.asarray(built(backbone).model(some_images(), training=False))
    assert probabilities.shape == (3, 3)
    assert (probabilities >= 0).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_blocks_of_a_backbone_are_names_of_its_layers_from_the_picture_on(backbone):
    blocks, network = BACKBONES[backbone].blocks, built(backbone)
    names = [layer.name for layer in network.body.layers]
    places = [names.index(block) for block in blocks]
    assert places == sorted(set(places))
    # Nothing that has weights comes before the first block.
    assert not [layer.name for layer in network.body.layers[: places[0]] if layer.weights]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_embedding_lies_directly_under_the_classifier(backbone):
    network = build_network(backbone, embedding_dim=7) if backbone == "cnn" else built(backbone)
    width = 7 if backbone == "cnn" else 16
    names = [layer.name for layer in network.head.layers if layer.count_params()]
    assert names == ["standardise"] * (backbone != "cnn") + ["embedding", "classifier"]
    assert network.head.get_layer("embedding").output.shape == (None, width)
    assert network.head.get_layer("classifier").kernel.shape == (width, 3)
    embedding, probabilities = network.encoder(some_images(), training=False)
    layer = network.head.get_layer("classifier")
    by_hand = keras.ops.softmax(embedding @ layer.kernel + layer.bias)
    np.testing.assert_allclose(by_hand, probabilities, atol=1e-5)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_encoder_is_the_head_encoder_after_the_backbone(backbone):
    network, images = built(backbone), some_images()
    whole = network.encoder(images, training=False)
    in_two_steps = network.head_encoder(network.backbone(images, training=False), training=False)
    for one, other in zip(whole, in_two_steps, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    np.testing.assert_allclose(whole[1], network.model(images, training=False), atol=1e-5)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_random_backbones_scale_raw_pixels_by_themselves(backbone):
    network, images = built(backbone), some_images()
    maps = network.body(images.astype(np.float32) / 127.5 - 1, training=False)
    by_hand = pooled(maps, network.parameters["pooling"])
    features = network.backbone(images, training=False)
    np.testing.assert_allclose(features, by_hand, rtol=1e-3, atol=1e-4)
    assert network.parameters["pixels"] == "scaled"


def test_pictures_of_another_size_are_resized_inside_the_network():
    network = build_network("cnn_strong", image_size=24, input_size=40)
    images = some_images(size=24)
    assert network.model.input_shape == (None, 24, 24, 3)
    assert network.body.input_shape == (None, 40, 40, 3)
    resized = keras.ops.image.resize(images.astype(np.float32), (40, 40), interpolation="bicubic")
    by_hand = pooled(network.body(resized / 127.5 - 1, training=False))
    np.testing.assert_allclose(network.backbone(images, training=False), by_hand, atol=1e-4)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("feature_maps", [False, True])
def test_each_pooling_lies_in_the_backbone_or_where_maps_are_kept_in_the_head(
    pooling, feature_maps
):
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


def test_where_the_head_pools_makes_no_difference_to_the_result():
    inside = build_network("cnn_strong", pooling="max")
    of_head = build_network("cnn_strong", pooling="max", feature_maps=True)
    assert same_weights(inside.model, of_head.model)
    images = some_images()
    np.testing.assert_allclose(
        inside.model(images, training=False), of_head.model(images, training=False), atol=1e-6
    )


def test_what_a_pooling_learns_is_trained_with_the_head():
    for pooling, count in {"gem": 1, "attention": 256}.items():
        network = build_network("cnn_strong", train="head", pooling=pooling)
        assert network.head.get_layer("pooling").count_params() == count
        assert network.head.get_layer("pooling").trainable_variables
        assert network.size["trained"] == network.size["head"] - 2 * 256  # statistics


def test_attention_gives_a_weight_for_each_position_of_each_picture():
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
    by_hand = np.maximum(features @ np.asarray(layer.kernel) + np.asarray(layer.bias), 0)
    np.testing.assert_allclose(
        network.encoder(some_images(), training=False)[0], by_hand, atol=1e-4
    )


def embeddings_of(**changes) -> tuple[np.ndarray, np.ndarray]:
    """Pooled features and embeddings of some pictures."""
    network = build_network("cnn_strong", **changes)
    images = some_images(8)
    embeddings = np.asarray(network.encoder(images, training=False)[0])
    return np.asarray(network.backbone(images, training=False)), embeddings


def test_a_penultimate_embedding_is_a_dense_layer_that_is_never_negative():
    features, embeddings = embeddings_of(embedding="penultimate", embedding_dim=16)
    assert embeddings.shape == (8, 16)
    assert embeddings.min() == 0 < embeddings.max()


def test_a_projection_is_a_dense_layer_that_may_be_negative():
    _, penultimate = embeddings_of(embedding="penultimate")
    _, projection = embeddings_of(embedding="projection")
    assert projection.min() < 0
    # The same seed: the one is the other without what is negative.
    np.testing.assert_allclose(np.maximum(projection, 0), penultimate, atol=1e-5)


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_a_pooled_embedding_is_what_the_pooling_gives(pooling):
    features, embeddings = embeddings_of(embedding="pooled", embedding_dim=5, pooling=pooling)
    assert embeddings.shape == (8, 256)
    np.testing.assert_allclose(embeddings, features, atol=1e-5)


def test_dropout_drops_that_share_of_the_embedding_while_training_alone():
    head = build_network(embedding="pooled", pooling="avg", dropout=0.25).head
    (dropout,) = (layer for layer in head.layers if isinstance(layer, keras.layers.Dropout))
    ones = np.ones((40, 128), np.float32)
    dropped = np.asarray(dropout(ones, training=True))
    assert 0.2 < np.mean(dropped == 0) < 0.3
    assert np.array_equal(dropout(ones, training=False), ones)


def test_the_plain_cnn_drops_half_of_that_share_after_each_pooling():
    body = build_network("cnn", dropout=0.4).body
    assert [body.get_layer(f"stage{stage}_dropout").rate for stage in (1, 2)] == [0.2, 0.2]


@pytest.mark.parametrize("backbone", ["cnn", "mobilenet"])
def test_a_frozen_backbone_is_unmoved_by_training_head_or_whole(backbone):
    network = build_network(backbone, train="head")
    assert network.is_frozen
    features = np.asarray(network.backbone(some_images(6), training=False))
    of_head, of_body = paths(network.head), paths(network.body)
    for model, inputs in ((network.head, features), (network.model, None)):
        moved = fit_once(network, model, inputs)
        assert not moved & of_body
        assert moved & of_head
    statistics = network.head.get_layer("standardise").count_params()
    assert network.size["trained"] == network.size["head"] - statistics


def test_a_network_that_is_trained_moves_as_a_whole():
    network = build_network("cnn_strong", train="all", dropout=0.0)
    assert not network.is_frozen
    assert fit_once(network) >= paths(network.body) | paths(network.head)
    statistics = sum(2 * norm.gamma.shape[0] for norm in network.body.layers if type(norm) is NORM)
    assert network.size["trained"] == network.size["total"] - statistics


def test_the_last_blocks_alone_move_and_batch_norm_stays_as_it_is():
    network = build_network("cnn_strong", train="last_blocks:2", dropout=0.0)
    assert network.parameters["first_trained"] == "stage2_conv1"
    convolutions = [f"stage{stage}_conv{place}/kernel" for stage in (2, 3) for place in (1, 2)]
    assert fit_once(network) - paths(network.head) == set(convolutions)
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
def test_a_block_has_all_layers_from_its_first_to_that_of_the_next(
    backbone, count, first, prefixes
):
    network = build_network(backbone, train=f"last_blocks:{count}")
    body = network.body
    assert network.parameters["first_trained"] == first
    convolutions = [layer for layer in body.layers if layer.weights and not isinstance(layer, NORM)]
    trained = [layer.name for layer in convolutions if layer.trainable_variables]
    assert trained == [layer.name for layer in convolutions if layer.name.startswith(prefixes)]
    assert trained[0] == first


def test_batch_norm_of_a_backbone_that_was_frozen_stays_as_it_is():
    network = build_network("cnn_strong", train="all", was_frozen=True, dropout=0.0)
    moved, norms = fit_once(network), paths(network.body, NORM)
    assert len(norms) == 7 * 4
    assert not moved & norms
    assert moved >= paths(network.body, but=NORM) | paths(network.head, but=NORM)


def test_batch_norm_of_a_backbone_that_was_frozen_uses_its_own_statistics_in_training():
    images = some_images(4).astype(np.float32)
    norms = {}
    for was_frozen in (True, False):
        network = build_network("cnn_strong", was_frozen=was_frozen)
        pairs = [network.backbone(images, training=training) for training in (True, False)]
        norms[was_frozen] = np.allclose(*pairs, atol=1e-5)
    assert norms == {True: True, False: False}


def test_batch_norm_follows_within_a_short_study():
    for backbone in ("cnn_strong", "mobilenet", "resnet50"):
        norms = [layer for layer in built(backbone).body.layers if isinstance(layer, NORM)]
        assert norms
        assert {layer.momentum for layer in norms} == {models.BATCH_NORM_MOMENTUM}


@pytest.mark.parametrize("backbone", ["cnn", "mobilenet"])
def test_the_seed_alone_decides_the_initial_weights(backbone):
    first, other = built(backbone), build_network(backbone, train="head", seed=1)
    assert not same_weights(first.backbone, other.backbone)
    assert not same_weights(first.head, other.head)
    if backbone != "resnet50":  # a third ResNet would take more time than it would tell
        assert same_weights(first.model, build_network(backbone, train="head", seed=0).model)


def test_random_weights_of_vgg16_suit_its_relus():
    *_, last = (layer for layer in built("vgg16").body.layers if layer.weights)
    kernel = keras.ops.convert_to_numpy(last.kernel)
    # Each output sums 3 x 3 x 512 products; He et al. give the sum twice their variance.
    assert kernel.std() == pytest.approx((2 / (3 * 3 * 512)) ** 0.5, rel=0.01)
    assert same_weights(built("vgg16").body, build_network("vgg16", train="head").body)


@pytest.mark.parametrize("backbone", ["cnn_strong", "mobilenet"])
def test_the_table_of_layers_has_all_parameters_once(backbone):
    network = build_network(backbone, train="last_blocks:2", pooling="gem")
    table = network.layers()
    assert table["parameters"].sum() == network.size["total"]
    assert table["trained"].sum() == network.size["trained"] < network.size["total"]
    assert table["layer"].iloc[-1] == "classifier"
    assert table["part"].unique().tolist() == ["backbone", "head"]
    # A body of many layers is one row.
    assert (table["layer"] == "body").sum() == (backbone == "mobilenet")


def test_the_blocks_of_a_backbone_hold_all_of_its_parameters_once():
    network = build_network("mobilenet", train="last_blocks:2", dropout=0)
    *blocks, whole = network.blocks().to_dict("records")
    assert [row["block"] for row in blocks] == list(BACKBONES["mobilenet"].blocks)
    assert whole["block"] == "all"
    for column in ("parameters", "trained", "convolutions", "batch_norms"):
        assert sum(row[column] for row in blocks) == whole[column]
    assert whole["parameters"] == network.size["backbone"]
    assert [row["trained"] > 0 for row in blocks] == [False] * 12 + [True] * 2
    assert whole["output"] == "1 × 1 × 256"


def test_multiplications_are_kernel_weights_times_positions():
    first, second, third, whole = build_network("cnn").blocks()["multiplications"]
    assert first == 32 * 32 * (9 * 3 * 32 + 9 * 32 * 32)
    assert second == 16 * 16 * (9 * 32 * 64 + 9 * 64 * 64)
    assert third == 8 * 8 * 9 * 64 * 128
    assert whole == pytest.approx(first + second + third)


def test_an_unknown_backbone_is_refused_with_those_that_are_known():
    with pytest.raises(StudyError, match="unknown backbone 'alexnet'.*cnn, .*resnet50, vgg16"):
        build_network("alexnet")
