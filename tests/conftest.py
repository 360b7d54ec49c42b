"""Fixtures and builders: projects with small pictures and a small study, networks, toy data."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from filelock import FileLock
from PIL import Image

# jsonschema compiles a grammar for a format that no notebook has, which takes a second.
sys.modules.setdefault("rfc3987_syntax", None)
# Tests need no protection against power loss, and waiting for the disk takes a tenth of their time.
os.fsync = lambda file: None

from cbir.retrieval import uncertainty  # noqa: E402
from cbir.studies import params  # noqa: E402

ROOT = Path(__file__).parent.parent

STUDY = {
    "dataset": "data/shapes",
    "image_size": 32,
    "test_fraction": 0.25,
    "validation_fraction": 0.2,
    "split_seed": 0,
    "training_images": 0,
    "test_images": 0,
    "min_images": 0,
    "damaged": "use",
    "max_megapixels": 180,
    "seeds": [0],
    "protocols": ["closed"],
    "unseen": 1,
    "draws": 2,
    "ks": [1, 5, 10],
}
# Every parameter with a default.
DEFAULTS = {key: row.default for key, row in params.PARAMETERS.items() if row.default is not None}
CNN = {key: value for key, value in DEFAULTS.items() if key not in STUDY} | {
    "backbone": "cnn",
    "pooling": "flatten",
    "embedding_dim": 16,
    "dropout": 0.1,
    "epochs": 3,
    "measured_epochs": [1],
    "batch_size": 8,
}
# A frozen backbone with a head.
FROZEN = {"pooling": "avg", "train": "head", "head_epochs": 2, "head_batch_size": 8}
FROZEN |= {"epochs": 0, "measured_epochs": []}

# The slowest files start first, so that no worker is still busy with one of them at the end.
LONGEST = [
    "test_study_networks.py", "test_study_changes.py", "test_training.py", "test_weights.py",
    "test_search_cli.py", "test_models.py", "test_study.py", "test_runner.py", "test_explorer.py",
    "test_architecture.py", "test_gradients.py", "test_notebooks.py", "test_embeddings.py",
    "test_sentences.py", "test_ranking.py", "test_engines.py",
]  # fmt: skip


def pytest_collection_modifyitems(items) -> None:
    """Sort the slowest files first."""
    positions = {name: position for position, name in enumerate(LONGEST)}
    items.sort(key=lambda item: positions.get(item.path.name, len(LONGEST)))


def write_pictures(folder: Path, classes=("circle", "cross", "square"), count=16, size=24) -> None:
    """Write pictures of noise with a bright region that depends on the class."""
    random = np.random.default_rng(0)
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = random.integers(0, 90, (size, size, 3), dtype=np.uint8)
            pixels[label * 6 : label * 6 + 6, :, label % 3] += 150
            Image.fromarray(pixels).save(folder / name / f"{name}-{number:02d}.png")


def write_study(root: Path, name: str, shared: dict, architectures: dict[str, dict]) -> None:
    """Write params/<name>/ with its YAML files."""
    folder = root / "params" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(shared))
    for architecture, content in architectures.items():
        (folder / f"{architecture}.yaml").write_text(yaml.safe_dump(content))


def make_project(root: Path) -> Path:
    """A project with the real notebooks and the study `tiny`: CNN trained, the others frozen."""
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    write_pictures(root / "data" / "shapes")
    write_study(
        root,
        "tiny",
        STUDY,
        {
            "cnn": CNN,
            "resnet50": CNN | FROZEN | {"backbone": "resnet50"},
            "vgg16": CNN | FROZEN | {"backbone": "vgg16"},
        },
    )
    return root


def cbir(root: Path, *arguments: str, timeout: float = 900, **environment: str):
    """Run the command in a project and return the finished process with its output as text."""
    return subprocess.run(
        [sys.executable, "-m", "cbir", *arguments],
        cwd=root,
        env={**os.environ, "KERAS_HOME": str(root / "keras"), **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture
def closed_figures():
    """Close the figures of a test, which matplotlib otherwise keeps."""
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A new project as the working directory."""
    root = make_project(tmp_path)
    monkeypatch.chdir(root)
    monkeypatch.setenv("KERAS_HOME", str(root / "keras"))
    return root


@pytest.fixture(scope="module")
def shared_project(tmp_path_factory):
    """One project for all tests of a module, as the working directory."""
    root = make_project(tmp_path_factory.mktemp("project"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("KERAS_HOME", str(root / "keras"))
        yield root


@pytest.fixture(scope="module")
def small_cnn():
    """Replace the plain CNN by a narrow one with one convolution per stage, which trains faster."""
    from keras import Input, Model, layers

    from cbir.networks import cnns

    def small(*, input_shape, include_top, weights, dropout):
        inputs = maps = Input(input_shape)
        for stage, filters in ((1, 8), (2, 16)):
            name = f"stage{stage}_conv1"
            maps = layers.Conv2D(filters, 3, padding="same", activation="relu", name=name)(maps)
            maps = layers.MaxPooling2D()(maps)
            maps = layers.Dropout(dropout / 2)(maps)
        maps = layers.Conv2D(128, 3, padding="same", activation="relu", name="stage3_conv1")(maps)
        return Model(inputs, maps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cnns, "plain_cnn", small)
        yield


@pytest.fixture
def short_epochs(monkeypatch):
    """Shorten epochs on features to ten steps."""
    from cbir.networks import training

    monkeypatch.setattr(training, "HEAD_STEPS", 10)


def empty_project(root: Path) -> Path:
    """A project without contents, which keeps its own artifacts."""
    for name in ("params", "notebooks"):
        (root / name).mkdir(parents=True)
    return root


def load_shapes():
    """The small pictures of `make_project` in the working directory."""
    from cbir.images.dataset import load_dataset

    return load_dataset(
        "data/shapes", image_size=32, test_fraction=0.25, validation_fraction=0.2, split_seed=0
    )


def build_network(backbone="cnn", **changes):
    """A small network for three classes."""
    from cbir.networks import models

    settings = {name: DEFAULTS[name] for name in params.names_in("network") if name != "backbone"}
    settings |= {"pooling": "flatten" if backbone == "cnn" else "avg", "embedding_dim": 16}
    settings |= {"dropout": 0.2, "mixed_precision": False}
    settings |= {"image_size": 32, "n_classes": 3, "seed": 0}
    return models.build(backbone, **(settings | changes))


def train_network(network, dataset, *, seed=0, features=None, head=None, **changes):
    """Train a network for a few epochs."""
    from cbir.networks import training
    from cbir.studies import params

    names = [name for name in params.names_in("training") if not name.startswith("head_")]
    settings = {name: params.PARAMETERS[name].default for name in names}
    settings |= {"epochs": 4, "measured_epochs": [1], "batch_size": 8, "learning_rate": 0.002}
    return training.train(
        network, dataset, settings | changes, seed=seed, features=features, head=head
    )


def save_trained(study="tiny", name="cnn", **changes):
    """Train a small network on the small pictures and save the run, without a notebook."""
    from cbir.networks import architecture, inference
    from cbir.reporting.runs import save_run
    from cbir.retrieval import evaluation

    parameters = CNN | {"epochs": 6, "measured_epochs": []} | changes
    groups = {
        group: {key: parameters[key] for key in params.names_in(group)}
        for group in ("network", "training", "embedding")
    }
    measurement = {name: STUDY[name] for name in params.MEASUREMENT}
    dataset, small_architecture = load_shapes(), architecture.Architecture(**groups)
    view = evaluation.first_view(dataset, measurement)
    network, trained = small_architecture.train(view, 0)
    states = evaluation.measure(
        dataset, embed_view=small_architecture.embed, measurement=measurement
    )
    speed = evaluation.measure_speed(
        states[0].embeddings, inference.make_encoder(network, states[0].embeddings)
    )
    return save_run(
        study, name, measurement=measurement, states=states, speed=speed, network=network,
        training=trained,
    )  # fmt: skip


def made_once(tmp_path_factory, name: str, make) -> Path:
    """A copy for this process of a folder that `make` writes once for all test processes."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    with FileLock(base / f"{name}.lock"):
        if not (base / name).exists():
            make(base / f"{name} unfinished")
            (base / f"{name} unfinished").rename(base / name)
        return shutil.copytree(base / name, tmp_path_factory.mktemp(name) / name)


@pytest.fixture(scope="session")
def finished_project(tmp_path_factory) -> Path:
    """A project with a study of two finished architectures."""

    def make(root: Path) -> None:
        empty_project(root)
        write_pictures(root / "data" / "shapes")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(root)
            patch.setenv("KERAS_HOME", str(root / "keras"))
            save_trained("tiny", "cnn")
            save_trained(
                "tiny", "whitened", whitening=4, test_time_flips=True, epochs=2, pooling="attention"
            )

    return made_once(tmp_path_factory, "finished", make)


@pytest.fixture(scope="module")
def finished_study(finished_project):
    """The project with the finished study, as the working directory."""
    yield from work_in(finished_project)


def work_in(project: Path) -> Iterator[Path]:
    """Make the project the working directory and the home of Keras until the fixture ends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        patch.setenv("KERAS_HOME", str(project / "keras"))
        yield project


@pytest.fixture(scope="module")
def measured_project(tmp_path_factory):
    """A project with the study of `runs`, as the working directory."""
    import invented

    protocols = ["closed", "held_out_gallery", "unseen_classes"]

    def make(root: Path) -> None:
        make_project(root)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(root)
            invented.save_network("cnn", 2.0, seeds=[3, 1], protocols=protocols)
            invented.save_network("vgg16", 3.0, epochs=())
            invented.save_baseline("raw_pixels", protocols=protocols)

    yield from work_in(made_once(tmp_path_factory, "measured", make))


@pytest.fixture(scope="module")
def runs(measured_project):
    """Three runs on the small pictures: one of two seeds and three protocols, and a baseline."""
    from cbir.reporting.runs import read_run

    return {name: read_run("tiny", name) for name in ("cnn", "vgg16", "raw_pixels")}


def toy_dataset(n_classes=4, n_train=14, n_test=12, **changes):
    """A data set of black images in random order, `n_train` and `n_test` per class."""
    from cbir.images.dataset import Dataset, stratified_split

    parameters = {"dataset": "toy", "validation_fraction": 0.25, "split_seed": 0} | changes
    random = np.random.default_rng(n_classes)
    classes = [f"class {label}" for label in range(n_classes)]
    parts = [random.permutation(np.repeat(np.arange(n_classes), n)) for n in (n_train, n_test)]
    train, validation = stratified_split(
        parts[0], parameters["validation_fraction"], parameters["split_seed"], classes, "validation"
    )
    count = n_classes * (n_train + n_test)
    return Dataset(
        parameters=parameters,
        classes=classes,
        images=np.zeros((count, 1, 1, 3), np.uint8),
        labels=np.concatenate(parts),
        names=[f"image {position}" for position in range(count)],
        train=train,
        validation=validation,
        gallery=np.arange(len(parts[0])),
        queries=np.arange(len(parts[0]), count),
        fingerprint=f"{n_classes} {n_train} {n_test}",
    )


def toy_embeddings(dataset, vectors=None, probabilities=None, seed=0):
    """Embeddings of a toy data set, random by default; the artifact key depends on their values."""
    from cbir.cache import Artifact, digest
    from cbir.networks.embeddings import Embeddings, normalise

    random = np.random.default_rng(seed)
    n, n_classes = len(dataset.labels), len(dataset.classes)
    random_values = random.normal(size=(n, 6)), random.dirichlet(np.ones(n_classes), n)
    vectors = normalise(random_values[0] if vectors is None else vectors)
    probabilities = random_values[1] if probabilities is None else probabilities
    probabilities = np.asarray(probabilities, np.float32)
    key = digest([vectors.tolist(), probabilities.tolist()])
    return Embeddings(Artifact(Path(), {"key": key}), dataset, vectors, probabilities)


@pytest.fixture(scope="module")
def few_queries():
    """Let a few queries be enough for a significant difference."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uncertainty, "MIN_QUERIES", 1)
        yield
