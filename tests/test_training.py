"""Training: what an epoch sees, and that an interrupted run ends as an undisturbed one does."""

from types import SimpleNamespace

import numpy as np
import pytest
from conftest import build_network, empty_project, load_shapes, train_network

from cbir import StudyError
from cbir.images import protocols
from cbir.networks import checkpoints, embeddings, training
from cbir.networks.training import Batches
from cbir.studies import limits

pytestmark = pytest.mark.usefixtures("shared_project")


@pytest.fixture(scope="module")
def images(shared_project):
    return load_shapes()


@pytest.fixture(scope="module")
def undisturbed(images, shared_project):
    """A network and its training, run to the end at once."""
    network = build_network()
    return network, train_network(network, images)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Another project: nothing is cached there."""
    monkeypatch.chdir(empty_project(tmp_path / "elsewhere"))


def weights_of(network):
    return [weight.copy() for weight in network.model.get_weights()]


def are_equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_batches_follow_the_positions_and_end_with_what_is_left():
    inputs = np.arange(10, dtype=np.uint8)[:, None] * 2
    labels = np.arange(10) + 100
    batches = Batches(inputs, labels, np.array([7, 0, 3, 9, 5]), batch_size=2)
    parts = [batches[place] for place in range(len(batches))]
    assert [part[0].ravel().tolist() for part in parts] == [[14, 0], [6, 18], [10]]
    assert [part[1].tolist() for part in parts] == [[107, 100], [103, 109], [105]]
    assert {part[0].dtype for part in parts} == {np.dtype(np.float32)}


def test_batches_read_a_memory_mapped_array(tmp_path):
    np.save(tmp_path / "images.npy", np.full((5, 2, 2, 3), 255, np.uint8))
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    inputs, _ = Batches(mapped, np.zeros(5), np.arange(5), 4)[1]
    assert inputs.shape == (1, 2, 2, 3)
    assert inputs.max() == 255  # scaling is the network's own work


def test_the_loss_falls_on_pictures_that_can_be_learnt(images, elsewhere):
    history = train_network(build_network(), images, epochs=8).history
    assert history["loss"].iloc[-1] < 0.5 * history["loss"].iloc[0]
    assert history["accuracy"].iloc[-1] > 0.8


def test_an_epoch_sees_what_its_protocol_trains_on_and_nothing_else(images, elsewhere, monkeypatch):
    seen = []

    class Watching(Batches):
        def __init__(self, inputs, labels, positions, batch_size):
            super().__init__(inputs, labels, positions, batch_size)
            seen.append(sorted(positions))

    monkeypatch.setattr(training, "Batches", Watching)
    view = protocols.view(images, "unseen_classes", unseen=1, draw=0)
    train_network(build_network(), view, epochs=1)
    assert seen == [view.validation.tolist(), view.train.tolist()]
    (apart,) = protocols.unseen_labels(view)
    assert not (images.labels[np.concatenate(seen)] == apart).any()
    assert len(view.train) < len(images.train)


def test_the_history_has_a_row_per_epoch(undisturbed):
    history = undisturbed[1].history
    assert history.index.tolist() == [1, 2, 3, 4]
    assert set(history) == {"accuracy", "loss", "val_accuracy", "val_loss", "seconds"}
    assert np.isfinite(history.to_numpy()).all()


def test_validation_figures_are_of_the_validation_images(undisturbed, images):
    network, trained = undisturbed
    probabilities = np.asarray(
        network.model(np.asarray(images.images[images.validation]), training=False)
    )
    labels = images.labels[images.validation]
    right = (probabilities.argmax(axis=1) == labels).mean()
    loss = -np.log(probabilities[np.arange(len(labels)), labels]).mean()
    last = trained.history.iloc[-1]
    assert last["val_accuracy"] == pytest.approx(right)
    assert last["val_loss"] == pytest.approx(loss, rel=1e-3)


UNUSUAL = {
    "optimizer": "sgd",
    "schedule": "one_cycle",
    "weight_decay": 0.001,
    "label_smoothing": 0.1,
    "augmentation": list(limits.AUGMENTATIONS),
}


@pytest.mark.parametrize(("done", "given"), [(2, {}), (1, {"schedule": "constant"}), (1, UNUSUAL)])
def test_an_interrupted_training_goes_on_bit_for_bit(done, given, tmp_path, monkeypatch, capsys):
    images = load_shapes()
    given = given | {"epochs": 3, "measured_epochs": [2]}
    reference = build_network()
    monkeypatch.chdir(empty_project(tmp_path / "undisturbed"))
    whole = train_network(reference, images, **given)

    monkeypatch.chdir(empty_project(tmp_path / "interrupted"))
    interrupted(monkeypatch, images, done, **given)
    capsys.readouterr()
    network = build_network()
    resumed = train_network(network, images, **given)
    assert f"going on after epoch {done}" in capsys.readouterr().out

    assert are_equal(weights_of(network), weights_of(reference))
    assert resumed.history.drop(columns="seconds").equals(whole.history.drop(columns="seconds"))
    for epoch in (2, None):
        states = []
        for each in (whole, resumed):
            network.model.load_weights(each.weights_path(epoch))
            states.append(weights_of(network))
        assert are_equal(*states)


def interrupted(monkeypatch, images, done: int, **given):
    """A training that is stopped in or after its second epoch, when `done` epochs are saved."""
    save = checkpoints.save

    def interrupt(folder, model, history):
        if len(history) <= done:
            save(folder, model, history)
        if len(history) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train_network(build_network(), images, **given)


def test_an_interrupted_training_ends_with_the_best_epoch_before_the_interruption(
    images, elsewhere, monkeypatch, capsys
):
    seen = {}
    fit = training._fit_epoch

    def watch(model, batches, validation, epoch, progress):
        row = fit(model, batches, validation, epoch, progress)
        seen[epoch] = [weight.copy() for weight in model.get_weights()]
        return row | {"val_accuracy": [0.5, 0.9, 0.9, 0.7, 1.0][epoch - 1]}

    monkeypatch.setattr(training, "_fit_epoch", watch)
    given = {"epochs": 5, "early_stopping": 2, "measured_epochs": []}
    interrupted(monkeypatch, images, 2, **given)
    network = build_network()
    resumed = train_network(network, images, **given)
    assert "going on after epoch 2" in capsys.readouterr().out
    assert list(seen) == [1, 2, 3, 4]
    assert resumed.history["val_accuracy"].tolist() == [0.5, 0.9, 0.9, 0.7]
    assert resumed.best_epoch == 2
    assert are_equal(weights_of(network), seen[2])


@pytest.fixture
def invented(monkeypatch):
    """Epochs without work: after each, every weight is its number, and its accuracy is given."""

    def of(*accuracies: float):
        def fit(model, batches, validation, epoch, progress):
            model.set_weights([np.full_like(each, epoch) for each in model.get_weights()])
            return {"accuracy": 0, "loss": 1, "val_loss": 1, "val_accuracy": accuracies[epoch - 1]}

        monkeypatch.setattr(training, "_fit_epoch", fit)

    return of


@pytest.mark.parametrize(
    ("accuracies", "early_stopping", "ends"),
    [
        ([0.5, 0.9, 0.9, 0.7, 1.0], 2, (4, 2)),
        ([0.5, 0.9, 0.9, 0.7, 1.0], 3, (5, 5)),
        ([0.5, 0.9, 0.9, 0.7, 0.8], 0, (5, 5)),
        ([0.8, 0.8, 0.9, 0.9, 0.9], 1, (2, 1)),
        ([0.6, 0.7, 0.8, 0.9, 0.9], 1, (5, 4)),
        ([0.9, 0.5, 0.95, 0.5, 0.5], 2, (5, 3)),
    ],
)
@pytest.mark.usefixtures("elsewhere")
def test_early_stopping_ends_with_the_weights_of_the_first_of_the_best_epochs(
    accuracies, early_stopping, ends, images, invented
):
    epochs, best = ends
    invented(*accuracies)
    network = build_network()
    given = {"epochs": 5, "early_stopping": early_stopping, "measured_epochs": [1, 2]}
    trained = train_network(network, images, **given)
    assert trained.history["val_accuracy"].tolist() == accuracies[:epochs]
    assert trained.best_epoch == best
    assert all((weight == best).all() for weight in weights_of(network))
    for epoch in (1, 2):
        network.model.load_weights(trained.weights_path(epoch))
        assert all((weight == epoch).all() for weight in weights_of(network))
    # Read from disk, it is the same again.
    again = build_network()
    assert train_network(again, images, **given).best_epoch == best
    assert all((weight == best).all() for weight in weights_of(again))


def test_images_that_change_cannot_train_a_head_on_kept_features(images):
    network = build_network(train="head")
    frozen = embeddings.features(network, images)
    with pytest.raises(StudyError, match="augmentation: a frozen backbone sees each image once"):
        train_network(network, images, features=frozen, augmentation=["flip"])


class ResourceExhaustedError(Exception):
    """Called as TensorFlow's is."""


@pytest.mark.parametrize(
    "error", [ResourceExhaustedError("a\nb"), RuntimeError("RESOURCE_EXHAUSTED: a\nb")]
)
def test_too_little_memory_for_a_batch_is_told_in_one_line(error, images, elsewhere, monkeypatch):
    network = build_network()

    def fit(*_, **__):
        raise error

    monkeypatch.setattr(type(network.model), "fit", fit)
    with pytest.raises(StudyError, match="^out of memory with batch_size 8: lower it") as caught:
        train_network(network, images)
    assert "\n" not in str(caught.value)


def test_any_other_error_of_an_epoch_stays_what_it_is(images, elsewhere, monkeypatch):
    network = build_network()

    def fit(*_, **__):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(type(network.model), "fit", fit)
    with pytest.raises(RuntimeError, match="shapes differ"):
        train_network(network, images)


@pytest.mark.parametrize("loss", [np.nan, np.inf])
def test_a_training_that_diverges_is_told_in_one_line(loss, images, elsewhere, monkeypatch):
    network = build_network()
    history = {"accuracy": [0.1], "loss": [loss], "val_accuracy": [0.1], "val_loss": [1.0]}
    monkeypatch.setattr(
        type(network.model), "fit", lambda *_, **__: SimpleNamespace(history=history)
    )
    with pytest.raises(StudyError, match="^training diverged in epoch 1: lower learning_rate$"):
        train_network(network, images)


def test_the_seed_of_training_decides_its_course(images, undisturbed, elsewhere):
    again, other = build_network(), build_network()
    train_network(again, images)
    train_network(other, images, seed=1)
    assert are_equal(weights_of(again), weights_of(undisturbed[0]))
    assert not are_equal(weights_of(other), weights_of(undisturbed[0]))


def test_measured_epochs_keep_the_state_of_their_epoch(images, elsewhere, monkeypatch):
    seen = {}

    class Watching(training.Progress):
        def on_epoch_end(self, epoch, logs=None):
            seen[epoch + 1] = [weight.copy() for weight in self.model.get_weights()]

    monkeypatch.setattr(training, "Progress", Watching)
    network = build_network()
    trained = train_network(network, images, epochs=3, measured_epochs=[2, 1])
    assert are_equal(weights_of(network), seen[3])
    for epoch, path in ((1, 1), (2, 2), (3, None)):
        network.model.load_weights(trained.weights_path(path))
        assert are_equal(weights_of(network), seen[epoch])


def test_a_measured_epoch_beyond_the_last_is_refused(images):
    with pytest.raises(StudyError, match=r"measured_epochs: \[9\].*epochs: 4"):
        train_network(build_network(), images, measured_epochs=[1, 9])


def test_the_same_parameters_train_once(images, undisturbed, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("trained again")

    network = build_network()
    monkeypatch.setattr(type(network.model), "fit", refuse)
    again = train_network(network, images)
    assert again.artifact.folder == undisturbed[1].artifact.folder
    assert again.history.equals(undisturbed[1].history)
    assert are_equal(weights_of(network), weights_of(undisturbed[0]))
    with pytest.raises(AssertionError, match="trained again"):
        train_network(build_network(), images, learning_rate=0.003)


def test_what_served_to_go_on_is_gone_at_the_end(undisturbed):
    trained = undisturbed[1]
    names = {path.name for path in trained.artifact.folder.iterdir()}
    expected = {"epoch-001.weights.h5", "final.weights.h5", "backbone.weights.h5"}
    assert names == expected | {"manifest.json", checkpoints.HISTORY, training.FINGERPRINT}


def test_the_backbone_is_kept_for_other_studies_to_start_from(undisturbed):
    network, trained = undisturbed
    path = trained.artifact.folder / "backbone.weights.h5"
    other = build_network(weights=str(path), seed=5)
    assert are_equal(other.body.get_weights(), network.body.get_weights())
    assert not are_equal(other.head.get_weights(), network.head.get_weights())


@pytest.mark.parametrize("backbone", ["cnn", "vgg16"])
def test_a_head_trained_on_frozen_features_serves_the_whole_network(backbone, images):
    network = build_network(backbone, train="head")
    start = [weight.copy() for weight in network.backbone.get_weights()]
    frozen = embeddings.features(network, images)
    trained = train_network(network, images, features=frozen, epochs=5)
    assert are_equal(start, network.backbone.get_weights())
    features = np.load(frozen.folder / "features.npy")
    from_features = np.asarray(network.head(features, training=False))
    whole = np.asarray(network.model(np.asarray(images.images), training=False))
    np.testing.assert_allclose(whole, from_features, atol=1e-4)
    right = from_features[images.validation].argmax(axis=1)
    accuracy = (right == images.labels[images.validation]).mean()
    assert trained.history["val_accuracy"].iloc[-1] == pytest.approx(accuracy)
