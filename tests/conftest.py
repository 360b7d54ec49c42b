"""A project of its own for every test that needs one: small pictures, a small study, no network."""

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
# No test outlives a loss of power. Waiting for the disk would take as long as a tenth of the tests.
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
# Every parameter that has a default, and is not of the images or of what is measured.
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

# They take the longest, so they start first: no worker is left alone with one of them at the end.
LONGEST = [
    "test_study_networks.py", "test_study_changes.py", "test_training.py", "test_weights.py",
    "test_search_cli.py", "test_models.py", "test_study.py", "test_runner.py", "test_explorer.py",
    "test_architecture.py", "test_gradients.py", "test_notebooks.py", "test_embeddings.py",
    "test_sentences.py", "test_ranking.py", "test_engines.py",
]  # fmt: skip


def pytest_collection_modifyitems(items) -> None:
    """Put the files that take longest first."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))


def write_pictures(folder: Path, classes=("circle", "cross", "square"), count=16, size=24) -> None:
    """Pictures of noise in which each class brightens another part, so that it can be learnt."""
    random = np.random.default_rng(0)
    for place, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = random.integers(0, 90, (size, size, 3), dtype=np.uint8)
            pixels[place * 6 : place * 6 + 6, :, place % 3] += 150
            Image.fromarray(pixels).save(folder / name / f"{name}-{number:02d}.png")


def write_study(root: Path, name: str, shared: dict, architectures: dict[str, dict]) -> None:
    """params/<name>/ with its YAML files."""
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
    """Run the real command in a project; the finished process with its output as text."""
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
    """Close the test's figures, of which matplotlib otherwise keeps all."""
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A fresh project, made the working directory."""
    root = make_project(tmp_path)
    monkeypatch.chdir(root)
    monkeypatch.setenv("KERAS_HOME", str(root / "keras"))
    return root


@pytest.fixture(scope="module")
def shared_project(tmp_path_factory):
    """One project for all tests of a module, made the working directory."""
    root = make_project(tmp_path_factory.mktemp("project"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("KERAS_HOME", str(root / "keras"))
        yield root


@pytest.fixture(scope="module")
def small_cnn():
    """The plain CNN becomes narrow, with one convolution per stage: it trains faster."""
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
    """Epochs on features have ten steps."""
    from cbir.networks import training

    monkeypatch.setattr(training, "HEAD_STEPS", 10)


def empty_project(root: Path) -> Path:
    """What makes a folder a project, and nothing else: a place with artifacts of its own."""
    for name in ("params", "notebooks"):
        (root / name).mkdir(parents=True)
    return root


def load_shapes():
    """The small pictures of `make_project`, from the project that is the working directory."""
    from cbir.images.dataset import load_dataset

    return load_dataset(
        "data/shapes", image_size=32, test_fraction=0.25, validation_fraction=0.2, split_seed=0
    )


def build_network(backbone="cnn", **changes):
    """A small network, three classes."""
    from cbir.networks import models

    given = {name: DEFAULTS[name] for name in params.names_in("network") if name != "backbone"}
    given |= {"pooling": "flatten" if backbone == "cnn" else "avg", "embedding_dim": 16}
    given |= {"dropout": 0.2, "mixed_precision": False}
    given |= {"image_size": 32, "n_classes": 3, "seed": 0}
    return models.build(backbone, **(given | changes))


def train_network(network, dataset, *, seed=0, features=None, head=None, **changes):
    """A short training."""
    from cbir.networks import training
    from cbir.studies import params

    names = [name for name in params.names_in("training") if not name.startswith("head_")]
    settings = {name: params.PARAMETERS[name].default for name in names}
    settings |= {"epochs": 4, "measured_epochs": [1], "batch_size": 8, "learning_rate": 0.002}
    return training.train(
        network, dataset, settings | changes, seed=seed, features=features, head=head
    )


def save_trained(study="tiny", name="cnn", **changes):
    """A finished run of a small network on the small pictures, without its notebook."""
    from cbir.networks import architecture, inference
    from cbir.reporting.runs import save_run
    from cbir.retrieval import evaluation

    given = CNN | {"epochs": 6, "measured_epochs": []} | changes
    taken = {
        group: {key: given[key] for key in params.names_in(group)}
        for group in ("network", "training", "embedding")
    }
    measurement = {name: STUDY[name] for name in params.MEASUREMENT}
    dataset, chosen = load_shapes(), architecture.Architecture(**taken)
    view = evaluation.first_view(dataset, measurement)
    network, trained = chosen.train(view, 0)
    states = evaluation.measure(dataset, embed_view=chosen.embed, measurement=measurement)
    speed = evaluation.measure_speed(
        states[0].embeddings, inference.make_encoder(network, states[0].embeddings)
    )
    return save_run(
        study, name, measurement=measurement, states=states, speed=speed, network=network,
        training=trained,
    )  # fmt: skip


def made_once(tmp_path_factory, name: str, make) -> Path:
    """A folder of this process with what `make` writes, which only one process of tests makes."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    with FileLock(shared / f"{name}.lock"):
        if not (shared / name).exists():
            make(shared / f"{name} unfinished")
            (shared / f"{name} unfinished").rename(shared / name)
        return shutil.copytree(shared / name, tmp_path_factory.mktemp(name) / name)


@pytest.fixture(scope="session")
def finished_project(tmp_path_factory) -> Path:
    """A project with a study of two finished architectures, made once."""

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
    """The project with the finished study, made the working directory."""
    yield from work_in(finished_project)


def work_in(project: Path) -> Iterator[Path]:
    """The project as the working directory, with Keras' files in it, until the fixture ends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        patch.setenv("KERAS_HOME", str(project / "keras"))
        yield project


@pytest.fixture(scope="module")
def measured_project(tmp_path_factory):
    """A project with the study of `runs`, made the working directory."""
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
    """A data set of labels and places alone, `n_train` and `n_test` images a class, in no order."""
    from cbir.images.dataset import Dataset, stratified_split

    given = {"dataset": "toy", "validation_fraction": 0.25, "split_seed": 0} | changes
    random = np.random.default_rng(n_classes)
    classes = [f"class {label}" for label in range(n_classes)]
    parts = [random.permutation(np.repeat(np.arange(n_classes), n)) for n in (n_train, n_test)]
    train, validation = stratified_split(
        parts[0], given["validation_fraction"], given["split_seed"], classes, "validation"
    )
    count = n_classes * (n_train + n_test)
    return Dataset(
        parameters=given,
        classes=classes,
        images=np.zeros((count, 1, 1, 3), np.uint8),
        labels=np.concatenate(parts),
        names=[f"image {place}" for place in range(count)],
        train=train,
        validation=validation,
        gallery=np.arange(len(parts[0])),
        queries=np.arange(len(parts[0]), count),
        fingerprint=f"{n_classes} {n_train} {n_test}",
    )


def toy_embeddings(dataset, vectors=None, probabilities=None, seed=0):
    """Embeddings of a toy data set: by chance, where none are given; named by their content."""
    from cbir.cache import Artifact, digest
    from cbir.networks.embeddings import Embeddings, normalise

    random = np.random.default_rng(seed)
    n, n_classes = len(dataset.labels), len(dataset.classes)
    by_chance = random.normal(size=(n, 6)), random.dirichlet(np.ones(n_classes), n)
    vectors = normalise(by_chance[0] if vectors is None else vectors)
    probabilities = by_chance[1] if probabilities is None else probabilities
    probabilities = np.asarray(probabilities, np.float32)
    key = digest([vectors.tolist(), probabilities.tolist()])
    return Embeddings(Artifact(Path(), {"key": key}), dataset, vectors, probabilities)


@pytest.fixture(scope="module")
def few_queries():
    """Tests of texts and tables need no more than a few queries for a significant difference."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uncertainty, "MIN_QUERIES", 1)
        yield
