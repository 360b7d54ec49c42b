"""Weights of a backbone: files of each format, ImageNet's, and those of another study."""

import functools
import hashlib
import http.server
import shutil
import threading
import urllib.request
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from conftest import (
    ROOT,
    build_network,
    empty_project,
    load_shapes,
    train_network,
    write_pictures,
)
from keras.src.legacy.saving import legacy_h5_format
from keras.src.utils import file_utils

from cbir import StudyError, cache
from cbir.images.dataset import load_dataset
from cbir.networks import backbones, models, weights
from cbir.networks.backbones import BACKBONES, INCLUDED, Backbone

CLOSED_PORT = "http://127.0.0.1:9"
IMAGENET_MEANS = (103.939, 116.779, 123.68)  # blue, green, red
OF_IMAGENET = [name for name, backbone in BACKBONES.items() if backbone.imagenet]
MOBILENET_FILE = "mobilenet_2_5_224_tf_no_top.h5"
# Of ImageNet, with its classifier.
REAL = ROOT.parent / "shared" / "weights" / "mobilenet_v1_0.25_224.h5"
REAL_SHA256 = "dc1ff623e6cd99c3cc0dd2821ca0807ba013606af5a4e2afd4488fbf26a8b589"

pytestmark = [
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file"),
    pytest.mark.filterwarnings("ignore:Skipping nested container"),
]


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    """An empty project, and no proxy between it and this machine."""
    root = empty_project(tmp_path / "project")
    monkeypatch.chdir(root)
    monkeypatch.setenv("KERAS_HOME", str(root / "keras"))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)
    return root


def mobilenet(include_top=False, **changes) -> keras.Model:
    arguments = {"alpha": 0.25, "input_shape": (32, 32, 3), "weights": None}
    arguments |= {"classes": 7} if include_top else {}
    return keras.applications.MobileNet(include_top=include_top, **(arguments | changes))


def save(model: keras.Model, path: Path) -> Path:
    """Save the model or its weights, as the name says; `only.h5` has the format of ImageNet's."""
    if path.name.endswith(".weights.h5"):
        model.save_weights(path)
    elif path.name == "only.h5":
        with h5py.File(path, "w") as file:
            legacy_h5_format.save_weights_to_hdf5_group(file, model)
    else:
        model.save(path)
    return path


def same_weights(body: keras.Model, model: keras.Model) -> bool:
    """Whether the body has the weights of a model that may have a classifier behind them."""
    pairs = list(zip(body.get_weights(), model.get_weights(), strict=False))
    return len(pairs) == len(body.weights) and all(np.array_equal(a, b) for a, b in pairs)


def error_message(backbone: str, source, **changes) -> str:
    """The message, of one line, with which building a network with these weights fails."""
    with pytest.raises(StudyError) as caught:
        build_network(backbone, weights=str(source), **changes)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


def does_not_fit(backbone: str, path: Path) -> bool:
    return f"weights: {path} does not fit {backbone} (" in error_message(backbone, path)


@pytest.fixture(scope="module")
def saved() -> dict[bool, keras.Model]:
    """A MobileNet without its classifier, and one with."""
    keras.utils.set_random_seed(5)
    return {include_top: mobilenet(include_top) for include_top in (False, True)}


@pytest.fixture(scope="module")
def wide_mobilenet() -> keras.Model:
    """A MobileNet of another width."""
    return mobilenet(alpha=0.5)


FORMATS = ["whole.h5", "only.h5", "net.weights.h5", "net.keras"]


@pytest.mark.parametrize("include_top", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FORMATS)
def test_weights_of_every_format_are_loaded_with_and_without_a_classifier(
    saved, root, name, include_top
):
    path = save(saved[include_top], root / name)
    network = build_network("mobilenet", weights=str(path), train="head")
    assert same_weights(network.body, saved[include_top])
    assert network.weights.path == path
    assert network.weights.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert network.parameters["pixels"] == "imagenet"


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("backbone", ["cnn", pytest.param("cnn_strong", marks=pytest.mark.slow)])
def test_weights_of_another_backbone_are_refused(saved, root, name, backbone):
    assert does_not_fit(backbone, save(saved[False], root / name))


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_weights_of_the_same_backbone_in_another_width_are_refused(wide_mobilenet, root, name):
    assert does_not_fit("mobilenet", save(wide_mobilenet, root / name))


@pytest.mark.parametrize("name", ["whole.h5", "only.h5"])
def test_a_file_that_lacks_a_layer_is_refused_although_keras_would_load_it(saved, root, name):
    path = save(saved[True], root / name)
    with h5py.File(path, "a") as file:
        group = file if "layer_names" in file.attrs else file["model_weights"]
        names = [layer for layer in group.attrs["layer_names"] if "conv_pw_9" not in str(layer)]
        assert len(names) == len(group.attrs["layer_names"]) - 3  # and its BatchNorm and ReLU
        group.attrs["layer_names"] = names
    mobilenet().load_weights(path, by_name=True)  # says nothing
    assert "(the file has no layer conv_pw_9): use a file" in error_message("mobilenet", path)


@pytest.mark.parametrize("name", ["only.h5", "net.weights.h5"])
def test_a_deeper_network_with_layers_of_the_same_names_is_refused(root, name):
    images = maps = keras.Input((32, 32, 3))
    layers = {"stage1_conv1": 32, "stage1_conv2": 32, "stage1_conv3": 32}
    layers |= {"stage2_conv1": 64, "stage2_conv2": 64, "stage3_conv1": 128}
    for layer, filters in layers.items():
        maps = keras.layers.Conv2D(filters, 3, padding="same", name=layer)(maps)
    assert does_not_fit("cnn", save(keras.Model(images, maps), root / name))


def test_a_layer_without_its_weights_counts_as_missing(saved, root):
    path = save(saved[False], root / "only.h5")
    with h5py.File(path, "a") as file:
        file["conv1"].attrs["weight_names"] = []
    assert "(the file has no layer conv1): use a file" in error_message("mobilenet", path)


def test_a_file_that_nests_the_backbone_in_one_layer_is_refused(saved, root):
    nested = keras.Sequential([keras.Input((32, 32, 3)), saved[False]])
    path = save(nested, root / "only.h5")
    assert "(the file has no layer conv1): use a file" in error_message("mobilenet", path)


@pytest.mark.parametrize("name", ["a.h5", "a.weights.h5", "a.keras", "a.bin", "a"])
@pytest.mark.parametrize("content", [b"", b"not what the name says"])
def test_a_file_that_holds_no_weights_is_refused(root, name, content):
    (root / name).write_bytes(content)
    assert does_not_fit("cnn", root / name)


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_is_cut_off_is_refused(root, name):
    path = save(build_network("cnn").body, root / name)
    path.write_bytes(path.read_bytes()[:100_000])
    assert does_not_fit("cnn", path)


def test_a_refused_file_gives_one_line_and_no_warnings(wide_mobilenet, root):
    path = save(wide_mobilenet, root / "net.weights.h5")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        error_message("mobilenet", path)
    assert [
        str(warning.message)[:60] for warning in caught if warning.category is UserWarning
    ] == []


def test_an_hdf5_file_of_something_else_is_refused(root):
    for name in ("a.h5", "a.weights.h5"):
        with h5py.File(root / name, "w") as file:
            file["pictures"] = np.zeros(3)
        assert does_not_fit("cnn", root / name)


def test_weights_under_the_name_of_another_format_are_refused(root):
    body = build_network("cnn").body
    for name, wrong in (
        ("only.h5", "a.weights.h5"),
        ("net.weights.h5", "a.h5"),
        ("net.keras", "a.h5"),
        ("only.h5", "a.bin"),
    ):
        save(body, root / name).rename(root / wrong)
        assert does_not_fit("cnn", root / wrong)


def rewritten(path: Path, content: dict[str, bytes | None]) -> Path:
    """A copy of a zip file with some of its members replaced, or left out where they are None."""
    copy = path.with_name(f"{len(list(path.parent.iterdir()))}.keras")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(copy, "w") as new:
        for name in old.namelist():
            if content.get(name, b"") is not None:
                new.writestr(name, content.get(name) or old.read(name))
    return copy


def test_the_description_in_a_keras_file_is_neither_executed_nor_read(root, monkeypatch):
    body = build_network("cnn").body
    path = save(body, root / "net.keras")
    copies = [
        rewritten(path, {"config.json": content, "metadata.json": content})
        for content in (b'{"module": "os", "class_name": "system"}', b"not JSON", None)
    ]
    opened, open_member = set(), zipfile.ZipFile.open

    def open_and_note(self, name, *arguments, **options):
        opened.add(getattr(name, "filename", name))
        return open_member(self, name, *arguments, **options)

    monkeypatch.setattr(zipfile.ZipFile, "open", open_and_note)
    for copy in copies:
        assert same_weights(build_network("cnn", weights=str(copy), seed=1).body, body)
    assert opened == {"model.weights.h5"}


def test_a_keras_file_without_weights_or_with_a_damaged_header_is_refused(root):
    path = save(build_network("cnn").body, root / "net.keras")
    assert does_not_fit("cnn", rewritten(path, {"model.weights.h5": None}))
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\1\2") + 10] ^= 32  # how the file in the archive is compressed
    path.write_bytes(content)
    assert does_not_fit("cnn", path)


@pytest.mark.parametrize("name", ["net.weights.h5", "whole.h5"])
def test_weights_that_link_to_another_file_are_refused(saved, root, name):
    path, datasets = save(saved[False], root / name), []
    shutil.copy(path, root / "other.h5")
    with h5py.File(path, "a") as file:
        file.visititems(
            lambda key, item: datasets.append(key) if isinstance(item, h5py.Dataset) else None
        )
        del file[datasets[0]]
        file[datasets[0]] = h5py.ExternalLink("other.h5", datasets[0])
    assert does_not_fit("mobilenet", path)


def test_a_path_is_relative_to_the_root_of_the_project(root, monkeypatch):
    (root / "data").mkdir()
    (root / "data" / "some.h5").write_bytes(b"some")
    monkeypatch.chdir(root / "notebooks")
    file = weights.find("mobilenet", "data/some.h5")
    assert file.path == root / "data" / "some.h5"
    assert file.sha256 == hashlib.sha256(b"some").hexdigest()
    assert (file.source, file.pixels) == ("data/some.h5", "imagenet")


@pytest.mark.parametrize("source", ["nowhere/vgg16.weights.h5", "params", "imagnet"])
def test_a_missing_file_is_refused_with_the_possible_values(root, source):
    assert error_message("vgg16", source) == (
        f"weights: no file {root / source}: use the path of a weights file, imagenet, "
        "study:<study> or none"
    )


def test_random_weights_have_no_file():
    network = build_network("cnn", weights="none")
    assert network.weights == weights.Weights("none", None, "", "scaled")


def test_weights_from_a_file_come_with_the_preprocessing_that_they_expect(root):
    vgg16 = keras.applications.VGG16(include_top=False, weights=None, input_shape=(32, 32, 3))
    path = save(vgg16, root / "vgg16.weights.h5")
    network = build_network("vgg16", weights=str(path), train="head")
    images = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    expected = images[..., ::-1].astype(np.float32) - np.array(IMAGENET_MEANS, np.float32)
    by_hand = np.asarray(vgg16(expected, training=False)).mean(axis=(1, 2))
    features = np.asarray(network.backbone(images, training=False))
    np.testing.assert_allclose(features, by_hand, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("manifest", "pixels"),
    [
        ('{"parameters": {"pixels": "scaled"}}', "scaled"),
        ('{"parameters": {"pixels": "imagenet"}}', "imagenet"),
        # Manifests of other programs, or of other things.
        ('{"parameters": {}}', "imagenet"),
        ('{"parameters": {"pixels": "grey"}}', "imagenet"),
        ("[]", "imagenet"),
        ("not JSON", "imagenet"),
    ],
)
def test_the_pixels_of_a_trained_backbone_come_from_its_manifest(root, manifest, pixels):
    path = root / "artifacts" / "training" / "some" / weights.BACKBONE_FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(b"some")
    (path.parent / "manifest.json").write_text(manifest)
    source = "artifacts/training/some/backbone.weights.h5"
    assert weights.find("vgg16", source).pixels == pixels


def test_a_backbone_of_this_project_gets_the_pixels_that_it_was_trained_on(root, monkeypatch):
    row = replace(BACKBONES["cnn"], preprocess="vgg16")
    monkeypatch.setitem(BACKBONES, "cnn", row)
    write_pictures(root / "data" / "shapes")
    images = load_shapes()
    first = build_network("cnn")
    path = train_network(first, images, epochs=1).artifact.folder / weights.BACKBONE_FILE
    few = np.asarray(images.images[:4])
    expected = first.backbone(few, training=False)
    again = build_network("cnn", weights=str(path), seed=1)
    np.testing.assert_allclose(again.backbone(few, training=False), expected, atol=1e-4)
    # Without its manifest, a file counts as one of ImageNet.
    copy = shutil.copy(path, root / "copy.weights.h5")
    of_copy = build_network("cnn", weights=str(copy))
    assert not np.allclose(of_copy.backbone(few, training=False), expected, atol=0.1)


# Families of keras.applications that this project has no row for.
FURTHER = {
    # Keras numbers its shortcuts (`conv2d_3` is the last); at least 71 pixels.
    "xception": (
        Backbone("Xception", ("block1_conv1", "conv2d_3"), rates=(10, 100), preprocess="xception"),
        72,
    ),
    # Preprocesses by itself.
    "mobilenet_v3": (
        Backbone(
            "MobileNetV3Small", ("conv", "conv_1"), rates=(500, 2000), preprocess=INCLUDED,
            arguments={"alpha": 0.75},
        ),
        32,
    ),
}  # fmt: skip


def number_further_layers() -> None:
    """Build layers, as other networks would, so that Keras gives further ones higher numbers."""
    for _ in range(3):
        keras.layers.Conv2D(1, 1)
        keras.layers.BatchNormalization()


@pytest.mark.slow
@pytest.mark.parametrize("name", FURTHER)
def test_a_further_family_needs_only_a_row_to_be_built_loaded_and_trained(name, root, monkeypatch):
    row, size = FURTHER[name]
    monkeypatch.setitem(BACKBONES, name, row)
    number_further_layers()
    arguments = {"include_top": False, "weights": None, "input_shape": (size, size, 3)}
    arguments |= row.arguments
    model = getattr(keras.applications, row.constructor)(**arguments)
    path = save(model, root / "net.weights.h5")
    number_further_layers()
    network = build_network(
        name, weights=str(path), train="last_blocks:1", image_size=size, input_size=size
    )
    assert same_weights(network.body, model)
    assert network.parameters["first_trained"] == row.blocks[-1]

    images = np.random.default_rng(1).integers(0, 256, (2, size, size, 3)).astype(np.float32)
    prepared = images.copy()
    if row.preprocess != INCLUDED:
        prepared = getattr(keras.applications, row.preprocess).preprocess_input(prepared)
    by_hand = np.asarray(model(prepared, training=False)).mean(axis=(1, 2))
    features = network.backbone(images, training=False)
    np.testing.assert_allclose(features, by_hand, rtol=1e-3, atol=1e-4)

    write_pictures(root / "data" / "shapes", count=8)
    dataset = load_dataset(
        "data/shapes", image_size=size, test_fraction=0.25, validation_fraction=0.2, split_seed=0
    )
    before = {weight.path: np.array(weight) for weight in network.body.weights}
    trained = train_network(network, dataset, epochs=1)
    assert np.isfinite(trained.history["loss"]).all()
    moved = {layer.name for layer in network.body.layers for weight in layer.weights
             if not np.array_equal(weight, before[weight.path])}  # fmt: skip
    names = [layer.name for layer in network.body.layers]
    first = names.index(row.blocks[-1])
    assert row.blocks[-1] in moved
    assert not moved & set(names[:first])


@pytest.mark.parametrize("preprocess", ["densenet", "vgg16", "xception"])
def test_pretrained_weights_get_the_preprocessing_that_the_row_names(preprocess, root, monkeypatch):
    row = replace(BACKBONES["cnn_strong"], preprocess=preprocess)
    monkeypatch.setitem(BACKBONES, "cnn_strong", row)
    path = save(build_network("cnn_strong").body, root / "net.weights.h5")
    network = build_network("cnn_strong", weights=str(path))
    images = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3)).astype(np.float32)
    prepared = getattr(keras.applications, preprocess).preprocess_input(images.copy())
    by_hand = np.asarray(network.body(prepared, training=False)).mean(axis=(1, 2))
    features = network.backbone(images, training=False)
    np.testing.assert_allclose(features, by_hand, rtol=1e-3, atol=1e-4)


def test_too_few_pixels_for_a_network_are_refused_in_one_line(monkeypatch):
    monkeypatch.setitem(BACKBONES, "xception", FURTHER["xception"][0])
    text = error_message("xception", "none", input_size=64)
    assert text.startswith("input_size: Xception cannot be built for 64 pixels: ")
    assert "71x71" in text


def test_a_model_that_preprocesses_by_itself_gets_raw_pixels_whatever_its_weights(monkeypatch):
    monkeypatch.setitem(
        BACKBONES, "cnn_strong", replace(BACKBONES["cnn_strong"], preprocess=INCLUDED)
    )
    network = build_network("cnn_strong")
    images = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3)).astype(np.float32)
    by_hand = np.asarray(network.body(images, training=False)).mean(axis=(1, 2))
    np.testing.assert_allclose(network.backbone(images, training=False), by_hand, rtol=1e-4)


@pytest.mark.parametrize("constructor", ["EfficientNetB0", "EfficientNetB7"])
def test_imagenet_weights_that_need_another_network_are_refused(constructor, monkeypatch):
    row = Backbone(constructor, ("stem_conv",), rates=(1, 1), preprocess=INCLUDED)
    monkeypatch.setitem(BACKBONES, "efficientnet", row)
    file = weights.Weights("some.h5", Path("some.h5"), "", "imagenet")
    with pytest.raises(StudyError) as caught:
        models.load_weights(None, file, "efficientnet")
    assert str(caught.value) == (
        f"weights: some.h5: {constructor} cannot start from ImageNet weights here: use none, or a "
        "row with an EfficientNetV2"
    )


def numbered_model() -> keras.Model:
    """A small network in which Keras numbers all layers but one."""
    images = keras.Input((8, 8, 3))
    maps = images
    for width in (4, 5):
        maps = keras.layers.Conv2D(width, 3, activation="relu")(maps)
        maps = keras.layers.BatchNormalization()(maps)
    return keras.Model(images, keras.layers.Conv2D(2, 1, name="own")(maps))


def test_an_h5_file_of_layers_that_keras_numbers_is_refused(root):
    path = save(numbered_model(), root / "only.h5")
    with pytest.raises(StudyError) as caught:
        models.load_weights(
            numbered_model(), weights.Weights("only.h5", path, "", "imagenet"), "cnn"
        )
    assert f"{path} does not fit cnn (Keras numbers its layers (batch_norm" in str(caught.value)
    assert "use a .weights.h5 or .keras file" in str(caught.value)


def test_numbered_layers_get_the_names_of_the_first_network_of_a_process():
    number_further_layers()
    model = numbered_model()
    models.renumber_layers(model)
    names = [layer.name for layer in model.layers if layer.weights]
    assert names == ["conv2d", "batch_normalization", "conv2d_1", "batch_normalization_1", "own"]


@pytest.mark.skipif(not REAL.is_file(), reason=f"{REAL} is not on this machine")
def test_real_weights_give_the_features_that_keras_itself_gets_from_them():
    network = build_network("mobilenet", weights=str(REAL), train="head", input_size=128)
    assert network.weights.sha256 == REAL_SHA256
    images = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    features = np.asarray(network.backbone(images, training=False))
    whole = keras.applications.MobileNet(
        alpha=0.25, weights=str(REAL), input_shape=(224, 224, 3), classifier_activation=None
    )
    body = mobilenet(input_shape=(128, 128, 3))
    body.set_weights(whole.get_weights()[: len(body.weights)])
    larger = keras.ops.image.resize(images.astype(np.float32), (128, 128), interpolation="bicubic")
    by_hand = np.asarray(body(larger / 127.5 - 1, training=False)).mean(axis=(1, 2))
    np.testing.assert_allclose(features, by_hand, atol=1e-3)
    random = build_network("mobilenet", train="head", input_size=128)
    assert not np.allclose(features, random.backbone(images, training=False), atol=0.1)


@pytest.mark.parametrize("backbone", OF_IMAGENET)
def test_the_table_of_imagenet_files_is_that_of_keras(backbone, monkeypatch):
    requests = []

    def get_file(name, address, file_hash=None, **_):
        requests.append((name, address, file_hash))
        raise InterruptedError

    monkeypatch.setattr(file_utils, "get_file", get_file)
    known = BACKBONES[backbone]
    construct = getattr(keras.applications, known.constructor)
    with pytest.raises(InterruptedError):
        construct(
            input_shape=(224, 224, 3), include_top=False, weights="imagenet", **known.arguments
        )
    assert requests == [(known.imagenet.file, known.imagenet.address, known.imagenet.md5)]


def test_mobilenet_has_a_quarter_of_the_width_and_no_md5():
    imagenet = BACKBONES["mobilenet"].imagenet
    assert (imagenet.file, imagenet.md5) == (MOBILENET_FILE, None)
    assert imagenet.address == (
        "https://storage.googleapis.com/tensorflow/keras-applications/mobilenet/" + MOBILENET_FILE
    )


@pytest.mark.parametrize("backbone", sorted(set(BACKBONES) - set(OF_IMAGENET)))
def test_a_network_of_this_project_has_no_imagenet_weights(backbone):
    text = error_message(backbone, "imagenet")
    assert text.startswith(f"weights: {backbone} has no ImageNet weights: use none, ")


@pytest.mark.parametrize("backbone", OF_IMAGENET)
def test_unreachable_imagenet_weights_say_which_file_to_put_where(backbone, root, monkeypatch):
    monkeypatch.setattr(backbones, "KERAS_APPLICATIONS", CLOSED_PORT)
    text = error_message(backbone, "imagenet")
    name = BACKBONES[backbone].imagenet.file
    assert f"put {name} into {root / 'keras' / 'models'}; " in text
    assert "run only architectures that need no download (ARCHITECTURES=...)" in text
    assert "`weights: none`, `train: all`, `head_epochs: 0` and `epochs`" in text
    assert not list((root / "keras" / "models").iterdir())


class Server:
    """Files of a folder over HTTP on this machine, and the paths that were requested."""

    def __init__(self, folder):
        requests = self.requests = []

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_):
                requests.append(self.path)

        handler = functools.partial(Handler, directory=folder)
        self.folder = folder
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def served(saved, tmp_path, monkeypatch):
    """A server in place of Keras' own, with a small MobileNet instead of ImageNet's."""
    folder = tmp_path / "served"
    (folder / "mobilenet").mkdir(parents=True)
    path = save(saved[False], folder / "mobilenet" / "only.h5")
    path = path.rename(folder / "mobilenet" / MOBILENET_FILE)
    server = Server(folder)
    monkeypatch.setattr(backbones, "KERAS_APPLICATIONS", server.address)
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    imagenet = replace(BACKBONES["mobilenet"].imagenet, md5=md5)
    row = replace(BACKBONES["mobilenet"], imagenet=imagenet)
    monkeypatch.setitem(BACKBONES, "mobilenet", row)
    yield server
    server.server.shutdown()
    server.server.server_close()


def test_imagenet_weights_are_downloaded_once_into_the_folder_of_keras(saved, served, root):
    assert weights.missing("mobilenet", "imagenet") == MOBILENET_FILE
    network = build_network("mobilenet", weights="imagenet", train="head")
    file = weights.find("mobilenet", "imagenet")
    assert file.path == root / "keras" / "models" / MOBILENET_FILE
    assert served.requests == [f"/mobilenet/{MOBILENET_FILE}"]
    assert list(file.path.parent.iterdir()) == [file.path]
    assert same_weights(network.body, saved[False])
    assert network.weights == file
    assert file.sha256 == hashlib.sha256(file.path.read_bytes()).hexdigest()
    assert (file.source, file.pixels) == ("imagenet", "imagenet")
    assert weights.missing("mobilenet", "imagenet") == ""


@pytest.mark.parametrize("name", ["mobilenet.weights.h5", "mobilenet.h5"])
def test_a_file_of_the_project_replaces_the_download_and_is_the_source(name, root):
    path = root / "data" / "weights" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"some weights")
    (path.parent / "mobilenet_v2.h5").write_bytes(b"those of another")
    assert weights.missing("mobilenet", "imagenet") == ""
    file = weights.find("mobilenet", "imagenet")
    assert (file.path, file.source) == (path, f"data/weights/{name}")
    assert file.sha256 == hashlib.sha256(b"some weights").hexdigest()
    assert file.pixels == "imagenet"


def test_other_weights_need_no_download(root):
    assert weights.missing("mobilenet", "none") == ""
    assert weights.missing("mobilenet", "nowhere.h5") == ""
    assert weights.missing("mobilenet", "study:base") == ""


def test_a_damaged_download_is_reported_and_fetched_again(saved, served, root):
    path = served.folder / "mobilenet" / MOBILENET_FILE
    whole = path.read_bytes()
    path.write_bytes(b"cut off")
    text = error_message("mobilenet", "imagenet")
    assert "ImageNet weights of mobilenet could not be downloaded" in text
    assert MOBILENET_FILE in text
    path.write_bytes(whole)
    # The rest of the first attempt must not be used as the file.
    assert same_weights(build_network("mobilenet", weights="imagenet").body, saved[False])


def test_a_file_that_the_server_does_not_have_is_reported(served):
    (served.folder / "mobilenet" / MOBILENET_FILE).unlink()
    assert "404" in error_message("mobilenet", "imagenet")


def register(root, study, architecture, backbone, *, pixels="scaled", training="artifacts/t"):
    """Register a trained backbone, as a run does."""
    parameters = {"backbone": backbone, "pixels": pixels}
    weights.register_backbone(study, architecture, parameters, root / training)


def write_weights(root, body: keras.Model, training="artifacts/t") -> Path:
    path = root / training / "backbone.weights.h5"
    path.parent.mkdir(parents=True)
    body.save_weights(path)
    cache.write_manifest(path.parent, [path], key="t", seconds=1.0)
    return path


@pytest.fixture
def base(root):
    """A study that has trained two backbones: the file of one, and that network's body."""
    body = build_network("cnn", seed=3).body
    path = write_weights(root, body)
    (root / "params" / "base").mkdir()
    register(root, "base", "plain", "cnn")
    register(root, "base", "strong", "cnn_strong", training="artifacts/other")
    return path, body


@pytest.mark.parametrize("source", ["study:base", "study:base/plain"])
def test_a_backbone_starts_from_what_it_learnt_in_another_study(base, source):
    path, body = base
    network = build_network("cnn", weights=source)
    assert same_weights(network.body, body)
    assert network.weights.path == path
    assert network.weights.source == source
    assert network.weights.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("pixels", ["scaled", "imagenet"])
def test_the_pixels_of_another_study_are_kept(pixels, root, monkeypatch):
    monkeypatch.setitem(BACKBONES, "cnn", replace(BACKBONES["cnn"], preprocess="vgg16"))
    body = build_network("cnn", seed=3).body
    write_weights(root, body)
    register(root, "base", "plain", "cnn", pixels=pixels)
    network = build_network("cnn", weights="study:base")
    assert network.weights.pixels == network.parameters["pixels"] == pixels
    # ImageNet's pixels are blue, green and red, each less its mean.
    image = np.full((1, 32, 32, 3), 100, np.float32)
    prepared = {"scaled": image / 127.5 - 1, "imagenet": image - np.array(IMAGENET_MEANS)}[pixels]
    by_hand = np.asarray(body(prepared, training=False)).reshape(1, -1)
    np.testing.assert_allclose(
        network.backbone(image, training=False), by_hand, rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize(
    ("source", "what", "values"),
    [
        ("study:nowhere", "nowhere has trained no architecture", "DATA=path/to/folder"),
        ("study:base/nobody", "base has trained no nobody", "STUDY=base"),
        ("study:base/strong", "base has trained no strong", "STUDY=base"),
    ],
)
def test_a_study_without_the_backbone_is_refused(base, source, what, values):
    assert error_message("cnn", source) == (
        f"weights: {source}: the study {what} with the backbone cnn: run "
        f"`make report {values}` first"
    )


def test_two_architectures_with_the_backbone_need_a_name(base, root):
    register(root, "base", "wider", "cnn", training="artifacts/wider")
    assert error_message("cnn", "study:base") == (
        "weights: study:base: plain, wider all have the backbone cnn: name one, as in "
        "study:base/plain"
    )
    assert weights.find("cnn", "study:base/plain").path == base[0]


@pytest.mark.parametrize("is_missing", [True, False])
def test_a_study_whose_file_is_missing_or_damaged_is_refused(is_missing, base):
    content = bytearray(base[0].read_bytes())
    content[-1000] ^= 1
    base[0].write_bytes(content)
    if is_missing:
        shutil.rmtree(base[0].parent)
    assert error_message("cnn", "study:base") == (
        f"weights: study:base: {base[0]} is missing or damaged: run `make report STUDY=base`"
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(value, root):
    body = build_network("cnn").body
    kernel = body.get_layer("stage2_conv1").kernel
    kernel.assign(np.where(np.arange(kernel.shape[-1]) == 3, value, kernel))
    body.save_weights(root / "broken.weights.h5")
    message = error_message("cnn", "broken.weights.h5")
    assert "NaN or infinite values in the layer stage2_conv1: use another file" in message


def test_a_study_with_another_shape_of_the_backbone_is_refused(root):
    body = build_network("cnn_strong").body
    path = write_weights(root, body)
    register(root, "base", "plain", "cnn")
    assert f"weights: {path} does not fit cnn (" in error_message("cnn", "study:base")
