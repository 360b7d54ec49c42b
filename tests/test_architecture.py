"""Training of an architecture: first the head, then the whole network."""

import hashlib
import io
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import sklearn.datasets
from conftest import DEFAULTS, ROOT, build_network, empty_project, load_shapes
from PIL import Image

from cbir import StudyError, cache
from cbir.images import protocols
from cbir.images.dataset import Dataset
from cbir.networks import architecture, inference, models, training
from cbir.networks.embeddings import normalise
from cbir.studies import params

SMALL = {"backbone": "cnn_strong", "embedding_dim": 8, "dropout": 0.1, "mixed_precision": False}
NETWORK = {name: (DEFAULTS | SMALL)[name] for name in params.names_in("network")}
SHORT = {"head_epochs": 2, "head_batch_size": 16, "head_learning_rate": 0.03, "epochs": 1}
SHORT |= {"measured_epochs": [1], "batch_size": 10, "schedule": "constant"}
SHORT |= {"learning_rate": 0.001, "augmentation": ["flip"]}
TRAINING = {name: (DEFAULTS | SHORT)[name] for name in params.names_in("training")}
EMBEDDING = {name: DEFAULTS[name] for name in params.names_in("embedding")}
# ImageNet weights and CIFAR-10 images, which are not part of the project.
REAL = ROOT.parent / "shared" / "weights" / "resnet50_imagenet_pruned_notop.weights.h5"
CIFAR = ROOT.parent / "shared" / "data" / "cifar10.zip"


@pytest.fixture(scope="module")
def images(shared_project):
    return load_shapes()


# Order of steps, with training and embedding replaced


@pytest.fixture
def calls(monkeypatch):
    """Replaces building, training and embedding by lists of their arguments."""
    built, trained, embedded = [], [], []

    def build(*, backbone, train, image_size, n_classes, seed, was_frozen):
        assert (backbone, n_classes) == ("cnn", 3)
        built.append((train, seed, was_frozen))
        return f"network of seed {seed}"

    def train(network, dataset, settings, **options):
        trained.append((network, dataset.protocol, dataset.draw, settings | options))
        return f"training {len(trained)}"

    def embed(network, trained_network, dataset, epoch, **options):
        embedded.append((network, trained_network, dataset.protocol, epoch, options))

    monkeypatch.setattr(models, "build", build)
    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(
        inference, "frozen_features", lambda network, dataset: f"features of {network}"
    )
    monkeypatch.setattr(architecture, "embed", embed)
    return built, trained, embedded


def architecture_of(train: str, **changes) -> architecture.Architecture:
    return architecture.Architecture(
        {"backbone": "cnn", "train": train}, TRAINING | changes, EMBEDDING
    )


def test_an_architecture_trains_once_per_seed_and_split(images, calls):
    _, trained, embedded = calls
    embed = architecture_of("all", head_epochs=0).embed
    held_out = protocols.view(images, "held_out_gallery")
    embed(images, 4)
    embed(images, 4, epoch=2)
    embed(held_out, 4)
    embed(images, 5)
    for draw in (0, 1):
        embed(protocols.view(images, "unseen_classes", unseen=1, draw=draw), 5)
    assert [arguments[:3] for arguments in trained] == [
        ("network of seed 4", "closed", None),
        ("network of seed 5", "closed", None),
        ("network of seed 5", "unseen_classes", 0),
        ("network of seed 5", "unseen_classes", 1),
    ]
    assert [options["seed"] for *_, options in trained] == [4, 5, 5, 5]
    assert [arguments[:4] for arguments in embedded] == [
        ("network of seed 4", "training 1", "closed", None),
        ("network of seed 4", "training 1", "closed", 2),
        ("network of seed 4", "training 1", "held_out_gallery", None),
        ("network of seed 5", "training 2", "closed", None),
        ("network of seed 5", "training 3", "unseen_classes", None),
        ("network of seed 5", "training 4", "unseen_classes", None),
    ]
    assert all(options == EMBEDDING for *_, options in embedded)


def test_without_head_epochs_there_is_one_stage(images, calls):
    built, trained, _ = calls
    architecture_of("all", head_epochs=0).train(images, 4)
    assert built == [("all", 4, False)]
    ((*_, settings),) = trained
    expected = {name: value for name, value in TRAINING.items() if not name.startswith("head_")}
    assert settings == expected | {"seed": 4, "head": None}


def test_the_head_stage_comes_first_and_has_its_own_settings(images, calls):
    built, trained, _ = calls
    _, result = architecture_of("last_blocks:2").train(images, 4)
    assert built == [("head", 4, True), ("last_blocks:2", 4, True)]
    (*_, first), (*_, last) = trained
    expected = {"epochs": 2, "batch_size": 16, "learning_rate": 0.03}
    expected |= {"measured_epochs": [], "augmentation": [], "seed": 4}
    assert {name: first[name] for name in expected} == expected
    assert first["features"] == "features of network of seed 4"
    assert "head" not in first
    expected = {"epochs": 1, "batch_size": 10, "learning_rate": 0.001, "measured_epochs": [1]}
    expected |= {"augmentation": ["flip"], "head": "training 1", "seed": 4}
    assert {name: last[name] for name in expected} == expected
    assert "features" not in last
    assert result == "training 2"


def test_a_frozen_backbone_has_only_the_head_stage(images, calls):
    built, trained, _ = calls
    _, result = architecture_of("head", epochs=0).train(images, 4)
    assert built == [("head", 4, True)]
    assert len(trained) == 1
    assert result == "training 1"


# Real training


def values_of(model):
    return [weight.copy() for weight in model.get_weights()]


def learnt_values_of(model):
    return [np.array(weight) for weight in model.trainable_variables]


def are_equal(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.fixture(scope="module")
def two_stages(images, tmp_path_factory):
    """A network trained in two stages, and weights and learning rate before each epoch."""
    starts, fit = [], training._fit_epoch

    def watch(model, *arguments, **options):
        learnt = learnt_values_of(model)
        starts.append((values_of(model), learnt, float(model.optimizer.learning_rate)))
        return fit(model, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(empty_project(tmp_path_factory.mktemp("two stages")))
        patch.setattr(training, "_fit_epoch", watch)
        settings = TRAINING | {"augmentation": []}
        yield *architecture.Architecture(NETWORK, settings, EMBEDDING).train(images, 3), starts


@pytest.fixture
def untrained(images):
    return architecture.Architecture(NETWORK, TRAINING, EMBEDDING).build(images, 3)


def test_too_many_whitening_dimensions_are_refused_before_training(images, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("trained")

    monkeypatch.setattr(training, "train", refuse)
    monkeypatch.setattr(inference, "frozen_features", refuse)
    few_training_images, count = replace(images, train=images.train[:7]), len(images.train)
    assert count > 8
    for embedding, dataset, width, maximum in (
        ("penultimate", images, 8, 8),
        ("pooled", images, 256, count),
        ("projection", few_training_images, 8, 7),
    ):
        network = NETWORK | {"embedding": embedding}
        architectures = [
            architecture.Architecture(network, TRAINING, EMBEDDING | {"whitening": size})
            for size in (maximum, maximum + 1)
        ]
        assert architectures[0].build(dataset, 3).embedding_width == width
        with pytest.raises(StudyError) as caught:
            architectures[1].train(dataset, 3)
        assert str(caught.value) == (
            f"whitening: {maximum + 1} dimensions are too many for {width}-dimensional embeddings "
            f"of {len(dataset.train)} training images: use at most {maximum}"
        )


def test_the_second_stage_starts_from_the_trained_head(two_stages, untrained):
    network, result, starts = two_stages
    weights, learnt, rates = zip(*starts, strict=True)
    assert rates == pytest.approx((0.03, 0.03, 0.001))
    head, backbone = values_of(untrained.head), values_of(untrained.backbone)
    assert are_equal(learnt[0], learnt_values_of(untrained.head))
    untrained.model.load_weights(result.head.weights_path())
    assert are_equal(weights[2], values_of(untrained.model))
    # The head stage changes only the head, the second stage both.
    assert are_equal(values_of(untrained.backbone), backbone)
    assert not are_equal(values_of(untrained.head), head)
    assert not are_equal(values_of(network.head), values_of(untrained.head))
    assert not are_equal(values_of(network.backbone), backbone)


def test_batch_norm_keeps_its_statistics_through_both_stages(two_stages):
    network, *_ = two_stages
    norms = [layer for layer in network.body.layers if layer.name.endswith("_bn")]
    assert len(norms) == 7
    for layer in norms:
        assert (np.asarray(layer.moving_mean) == 0).all()
        assert (np.asarray(layer.moving_variance) == 1).all()


def test_stages_have_a_row_per_epoch(two_stages):
    _, result, _ = two_stages
    table = result.stages
    assert table.index.tolist() == [1, 2, 3]
    assert table["stage"].tolist() == ["head", "head", "backbone and head"]
    assert table["loss"].tolist() == [*result.head.history["loss"], *result.history["loss"]]
    assert result.best_epoch == 1


def test_training_seconds_include_stages_and_features(two_stages):
    _, result, _ = two_stages
    assert result.features is None
    features = result.head.features.seconds
    assert features > 0
    assert result.head.seconds == pytest.approx(result.head.history["seconds"].sum() + features)
    assert result.seconds == pytest.approx(result.stages["seconds"].sum() + features)


def test_a_fine_tuned_network_embeds_images_and_not_frozen_features(
    two_stages, images, tmp_path, monkeypatch
):
    network, result, _ = two_stages
    monkeypatch.chdir(empty_project(tmp_path / "elsewhere"))
    embedded = architecture.embed(network, result, images, epoch=1, **EMBEDDING)
    expected, _ = network.encoder(np.asarray(images.images), training=False)
    np.testing.assert_allclose(embedded.vectors, normalise(expected), atol=1e-5)


# Heads on features of a frozen backbone


def features_of(vectors: np.ndarray, monkeypatch) -> None:
    """Let every architecture use these features instead of those of its backbone."""

    def make(folder):
        np.save(folder / inference.FEATURES, vectors)

    key = hashlib.sha256(vectors.tobytes()).hexdigest()
    artifact = cache.cached("features", make, parameters={"of": key}, package="networks")
    monkeypatch.setattr(inference, "frozen_features", lambda *_, **__: artifact)


def head_on(
    vectors, labels, n_train: int, monkeypatch, tmp_path, *, epochs: int = 1, backbone: str = "cnn"
):
    """A trained head of 256 units and its data set; the last images are queries."""
    monkeypatch.chdir(empty_project(tmp_path))
    features_of(vectors.astype(np.float32), monkeypatch)
    classes = [str(label) for label in np.unique(labels)]
    n = len(labels)
    dataset = Dataset(
        parameters={},
        classes=classes,
        images=np.zeros((n, 32, 32, 3), np.uint8),
        labels=labels.astype(np.int64),
        names=[str(position) for position in range(n)],
        train=np.arange(n_train),
        validation=np.arange(n_train, n_train + n_train // 4),
        gallery=np.arange(n_train + n_train // 4),
        queries=np.arange(n_train + n_train // 4, n),
        fingerprint="",
    )
    settings = params.complete(
        data={"dataset": "digits"},
        measurement={"seeds": [0], "protocols": ["closed"]},
        network={"backbone": backbone, "train": "head", "dropout": 0.5},
        training={"head_epochs": epochs},
    )
    recipe = architecture.Architecture(settings.network, settings.training, settings.embedding)
    return recipe.train(dataset, 0), dataset


def accuracies(network, vectors, dataset) -> tuple[float, float]:
    """Accuracy of the head and of a logistic regression with C chosen on validation images."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def score(model, part):
        return model.score(vectors[part], dataset.labels[part])

    models_of_c = [
        make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=500)).fit(
            vectors[dataset.train], dataset.labels[dataset.train]
        )
        for c in (1e-3, 1e-2, 1e-1, 1)
    ]
    best = max(models_of_c, key=lambda model: score(model, dataset.validation))
    probabilities = network.head.predict(vectors[dataset.queries], verbose=0)
    correct = probabilities.argmax(axis=1) == dataset.labels[dataset.queries]
    return correct.mean(), score(best, dataset.queries)


@pytest.mark.parametrize("scale", [0.01, pytest.param(100.0, marks=pytest.mark.slow)])
def test_a_head_matches_logistic_regression_at_any_feature_scale(scale, monkeypatch, tmp_path):
    digits = sklearn.datasets.load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    # The backbone `cnn` has 128 channels; those without information are constant.
    vectors = np.pad(digits.data[order], ((0, 0), (0, 64))) * scale
    (network, result), dataset = head_on(
        vectors, digits.target[order], 640, monkeypatch, tmp_path, epochs=20
    )
    head, regression = accuracies(network, vectors.astype(np.float32), dataset)
    assert regression > 0.94
    assert head >= regression - 0.01
    # Training stopped early.
    assert len(result.history) == result.best_epoch + 5


@pytest.mark.slow
@pytest.mark.skipif(
    not (REAL.is_file() and CIFAR.is_file()), reason=f"{REAL} or {CIFAR} is not on this machine"
)
def test_a_head_on_real_features_matches_logistic_regression(monkeypatch, tmp_path):
    random = np.random.default_rng(0)
    with zipfile.ZipFile(CIFAR) as archive:
        names = random.choice(
            [n for n in archive.namelist() if "/train/" in n], 3250, replace=False
        )
        images = [np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in names]
    _, labels = np.unique([name.split("/")[2] for name in names], return_inverse=True)
    network = build_network("resnet50", weights=str(REAL), train="head", input_size=64)
    vectors = network.backbone.predict(np.stack(images), verbose=0)
    (network, _), dataset = head_on(
        vectors, labels, 1000, monkeypatch, tmp_path, epochs=20, backbone="resnet50"
    )
    head, regression = accuracies(network, vectors, dataset)
    assert regression > 0.65
    assert head >= regression - 0.01


def test_a_head_standardises_its_features_with_the_training_images(monkeypatch, tmp_path):
    random = np.random.default_rng(0)
    scales = np.exp(random.normal(0, 1, 128))
    vectors = (random.normal(3, 1, (400, 128)) * scales).astype(np.float32)
    labels = np.arange(400) % 4
    (network, _), dataset = head_on(vectors, labels, 160, monkeypatch, tmp_path)
    mean, variance = network.head.get_layer("standardise").get_weights()
    training_rows = vectors[dataset.train]
    np.testing.assert_allclose(mean, training_rows.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(variance, training_rows.var(axis=0), rtol=1e-3)


def test_a_head_trained_on_few_images_takes_as_many_steps(monkeypatch, tmp_path):
    vectors = np.random.default_rng(0).normal(size=(40, 128))
    labels = np.arange(40) % 4
    steps = []
    with monkeypatch.context() as patch:
        fit = training._fit_epoch

        def count(model, batches, *arguments, **options):
            steps.append(len(batches))
            return fit(model, batches, *arguments, **options)

        patch.setattr(training, "_fit_epoch", count)
        head_on(vectors, labels, 20, patch, tmp_path)
    # Every batch is full, although it is larger than the training set.
    assert set(steps) == {100}
