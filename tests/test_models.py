"""Networks: their parts, what a frozen backbone keeps, and where pretrained weights come from."""

import functools
import hashlib
import http.server
import inspect
import threading
import urllib.request

import keras
import numpy as np
import pytest
from conftest import build_network
from keras.src.applications import resnet, vgg16
from keras.src.backend import config

from cbir import StudyError, limits, models, sources
from cbir.models import BACKBONES

CLOSED_PORT = "http://127.0.0.1:9/"
NOTOP = "{}_weights_tf_dim_ordering_tf_kernels_notop.h5"
IMAGENET_MEANS = (103.939, 116.779, 123.68)  # blue, green, red


@functools.cache
def built(backbone: str, train: str = "head"):
    """A network that the tests only read."""
    return build_network(backbone, train=train)


def some_images(count: int = 3, size: int = 32) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def body_of(network) -> keras.Model:
    return network.backbone.get_layer(f"{network.model.name}_body")


def pooled(maps) -> np.ndarray:
    maps = np.asarray(maps)
    return maps.mean(axis=(1, 2)) if maps.ndim == 4 else maps


def same_weights(one: keras.Model, other: keras.Model) -> bool:
    pairs = zip(one.get_weights(), other.get_weights(), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


@pytest.fixture
def keras_home(tmp_path, monkeypatch):
    """An empty folder for Keras's downloads, and no proxy between it and this machine."""
    home = tmp_path / "keras"
    home.mkdir()
    monkeypatch.setenv("KERAS_HOME", str(home))
    monkeypatch.setattr(config, "_KERAS_DIR", str(home))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)
    return home


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory):
    """Weights of a VGG16 without its classifier, as Keras 3 saves them, and the model itself."""
    keras.utils.set_random_seed(5)
    model = keras.applications.VGG16(include_top=False, weights=None, input_shape=(32, 32, 3))
    path = tmp_path_factory.mktemp("weights") / "vgg16.weights.h5"
    model.save_weights(path)
    return path, model


@pytest.mark.parametrize("backbone", BACKBONES)
def test_probabilities_of_a_picture_sum_to_one(backbone):
    probabilities = np.asarray(built(backbone).model(some_images(), training=False))
    assert probabilities.shape == (3, 3)
    assert (probabilities >= 0).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_embedding_lies_directly_under_the_classifier(backbone):
    network = build_network(backbone, embedding_dim=7) if backbone == "cnn" else built(backbone)
    width = 7 if backbone == "cnn" else 16
    names = [layer.name for layer in network.head.layers if layer.count_params()]
    assert names == ["embedding", "classifier"]
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
    scaled = images.astype(np.float32) / 127.5 - 1
    by_hand = pooled(body_of(network)(scaled, training=False))
    features = network.backbone(images, training=False)
    np.testing.assert_allclose(features, by_hand, rtol=1e-3, atol=1e-4)


def test_pictures_of_another_size_are_resized_inside_the_network():
    network, images = build_network(image_size=24, input_size=40), some_images(size=24)
    assert network.model.input_shape == (None, 24, 24, 3)
    assert body_of(network).input_shape == (None, 40, 40, 3)
    resized = keras.ops.image.resize(images.astype(np.float32), (40, 40), interpolation="bicubic")
    by_hand = body_of(network)(resized / 127.5 - 1, training=False)
    np.testing.assert_allclose(network.backbone(images, training=False), by_hand, atol=1e-4)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_frozen_backbone_is_unmoved_by_training_head_or_whole(backbone):
    network, images = build_network(backbone, train="head"), some_images(6)
    before = [weight.copy() for weight in network.backbone.get_weights()]
    head_before = [weight.copy() for weight in network.head.get_weights()]
    features = np.asarray(network.backbone(images, training=False))
    labels = np.arange(6) % 3
    for model, inputs in ((network.head, features), (network.model, images.astype(np.float32))):
        # Eagerly: tracing a deep network takes longer than running it a few times.
        model.compile("adam", "sparse_categorical_crossentropy", run_eagerly=True)
        model.fit(inputs, labels, epochs=2, batch_size=6, verbose=0)
    after = network.backbone.get_weights()
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    moved = zip(head_before, network.head.get_weights(), strict=True)
    assert any(not np.array_equal(a, b) for a, b in moved)
    assert network.size["trained"] == network.size["head"]


def test_a_backbone_that_is_trained_moves():
    network = build_network("cnn", train="all")
    before = [weight.copy() for weight in network.backbone.get_weights()]
    network.model.compile("adam", "sparse_categorical_crossentropy", run_eagerly=True)
    network.model.fit(some_images(6).astype(np.float32), np.arange(6) % 3, verbose=0)
    after = network.backbone.get_weights()
    assert all(not np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert network.size["trained"] == network.size["total"]


def test_a_residual_network_from_scratch_has_statistics_that_follow_within_a_short_study():
    norms = [
        layer
        for layer in body_of(built("resnet50")).layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    assert norms
    assert {layer.momentum for layer in norms} == {models.BATCH_NORM_MOMENTUM}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_seed_alone_decides_the_initial_weights(backbone):
    first, other = built(backbone), build_network(backbone, train="head", seed=1)
    assert not same_weights(first.backbone, other.backbone)
    assert not same_weights(first.head, other.head)
    if backbone != "resnet50":  # a third ResNet would take more time than it would tell
        assert same_weights(first.model, build_network(backbone, train="head", seed=0).model)


def test_an_unknown_backbone_is_refused_with_those_that_are_known():
    with pytest.raises(StudyError, match="unknown backbone 'alexnet'.*cnn, resnet50, vgg16"):
        build_network("alexnet")


def test_weights_from_a_file_are_loaded_with_the_preprocessing_they_expect(vgg_file):
    path, saved = vgg_file
    network, images = build_network("vgg16", weights=str(path), train="head"), some_images()
    assert same_weights(body_of(network), saved)
    assert network.weights == hashlib.sha256(path.read_bytes()).hexdigest()
    expected = images[..., ::-1].astype(np.float32) - np.array(IMAGENET_MEANS, np.float32)
    by_hand = pooled(saved(expected, training=False))
    features = np.asarray(network.backbone(images, training=False))
    np.testing.assert_allclose(features, by_hand, rtol=1e-3, atol=1e-3)


def test_weights_in_keras_older_file_format_are_loaded(vgg_file, tmp_path):
    _, saved = vgg_file
    path = tmp_path / "whole_model.h5"
    saved.save(path)
    assert same_weights(body_of(build_network("vgg16", weights=str(path))), saved)


def one_line(caught) -> str:
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_missing_weights_file_is_named():
    with pytest.raises(StudyError) as caught:
        build_network("vgg16", weights="nowhere/vgg16.weights.h5")
    text = one_line(caught)
    assert "nowhere/vgg16.weights.h5" in text
    assert "none" in text


@pytest.mark.filterwarnings("ignore:Skipping nested container")
def test_weights_of_another_network_are_refused(vgg_file):
    path, _ = vgg_file
    with pytest.raises(StudyError) as caught:
        build_network("cnn", weights=str(path))
    text = one_line(caught)
    assert str(path) in text
    assert "does not fit cnn" in text


def test_a_file_that_holds_no_weights_is_refused(tmp_path):
    path = tmp_path / "vgg16.weights.h5"
    path.write_bytes(b"not HDF5 at all")
    with pytest.raises(StudyError) as caught:
        build_network("vgg16", weights=str(path))
    assert str(path) in one_line(caught)


def test_a_file_with_another_ending_is_refused(vgg_file, tmp_path):
    path = tmp_path / "vgg16.bin"
    path.write_bytes(b"something")
    with pytest.raises(StudyError) as caught:
        build_network("vgg16", weights=str(path))
    assert str(path) in one_line(caught)


def test_the_table_of_imagenet_weights_is_that_of_keras():
    name = NOTOP.format("resnet50")
    md5 = resnet.WEIGHTS_HASHES["resnet50"][1]
    assert sources.IMAGENET["resnet50"] == (name, resnet.BASE_WEIGHTS_PATH + name, md5)
    name, address, md5 = sources.IMAGENET["vgg16"]
    assert (name, address) == (NOTOP.format("vgg16"), vgg16.WEIGHTS_PATH_NO_TOP)
    assert md5 in inspect.getsource(vgg16)


def test_parameters_name_the_backbones_that_models_builds():
    assert tuple(models.BACKBONES) == limits.BACKBONES


def test_the_plain_cnn_has_no_imagenet_weights():
    with pytest.raises(StudyError, match="cnn has no ImageNet weights"):
        build_network("cnn", weights="imagenet")


@pytest.mark.parametrize("backbone", ["resnet50", "vgg16"])
def test_unreachable_imagenet_weights_say_which_file_to_put_where(
    backbone, keras_home, monkeypatch
):
    name = NOTOP.format(backbone)
    monkeypatch.setitem(sources.IMAGENET, backbone, (name, CLOSED_PORT + name, "0" * 32))
    with pytest.raises(StudyError) as caught:
        build_network(backbone, weights="imagenet")
    text = one_line(caught)
    assert NOTOP.format(backbone) in text
    assert str(keras_home / "models") in text
    assert "weights: none" in text
    assert not list((keras_home / "models").glob("*.h5"))


class Server:
    """Files of a folder over HTTP on this machine, and which were asked for."""

    def __init__(self, folder):
        asked = self.asked = []

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_):
                asked.append(self.path)

        handler = functools.partial(Handler, directory=folder)
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """ResNet-50 in the place of ImageNet's: the folder of its file, and the model itself."""
    folder = tmp_path_factory.mktemp("published")
    model = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(32, 32, 3))
    model.save(folder / NOTOP.format("resnet50"))
    return folder, model


@pytest.fixture
def served(published, tmp_path, monkeypatch):
    """A server that Keras takes for that of the ImageNet weights, and the folder it serves."""
    name = NOTOP.format("resnet50")
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / name).hardlink_to(published[0] / name)
    server = Server(folder)
    md5 = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setitem(sources.IMAGENET, "resnet50", (name, server.address + name, md5))
    yield server, folder
    server.server.shutdown()
    server.server.server_close()


def test_imagenet_weights_are_downloaded_once_into_the_folder_of_keras(
    keras_home, published, served
):
    name = NOTOP.format("resnet50")
    network = build_network("resnet50", weights="imagenet", train="head")
    path = models.find_weights("resnet50", "imagenet")
    assert path == keras_home / "models" / name
    assert served[0].asked == [f"/{name}"]
    assert same_weights(body_of(network), published[1])
    assert network.weights == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_damaged_download_is_reported_and_fetched_again(keras_home, published, served):
    name = NOTOP.format("resnet50")
    (served[1] / name).unlink()
    (served[1] / name).write_bytes(b"cut off")
    with pytest.raises(StudyError) as caught:
        build_network("resnet50", weights="imagenet")
    assert name in one_line(caught)
    (served[1] / name).unlink()
    (served[1] / name).hardlink_to(published[0] / name)
    # What the first attempt left behind must not be taken for the file.
    assert same_weights(body_of(build_network("resnet50", weights="imagenet")), published[1])
