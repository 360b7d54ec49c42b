"""Training: what an epoch sees, and that an interrupted run ends as an undisturbed one does."""

import numpy as np
import pytest
from conftest import build_network, empty_project, load_shapes, train_network

from cbir import StudyError, embeddings, protocols, training
from cbir.training import Batches

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


@pytest.mark.parametrize(
    ("moment", "schedule"),
    [("after the epoch is saved", "cosine"), ("before the epoch is saved", "constant")],
)
def test_an_interrupted_training_goes_on_bit_for_bit(
    moment, schedule, tmp_path, monkeypatch, capsys
):
    images = load_shapes()
    given = {"schedule": schedule, "measured_epochs": [2]}
    reference = build_network()
    monkeypatch.chdir(empty_project(tmp_path / "undisturbed"))
    whole = train_network(reference, images, **given)

    monkeypatch.chdir(empty_project(tmp_path / "interrupted"))
    save = training._save

    def interrupt(folder, model, history):
        is_now = len(history) == 2
        if not (is_now and moment.startswith("before")):
            save(folder, model, history)
        if is_now:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "_save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train_network(build_network(), images, **given)
    capsys.readouterr()
    network = build_network()
    resumed = train_network(network, images, **given)
    done = 2 if moment.startswith("after") else 1
    assert f"going on after epoch {done}" in capsys.readouterr().out

    assert are_equal(weights_of(network), weights_of(reference))
    assert resumed.history.drop(columns="seconds").equals(whole.history.drop(columns="seconds"))
    for epoch in (2, 4):
        states = []
        for each in (whole, resumed):
            network.model.load_weights(each.weights_path(epoch))
            states.append(weights_of(network))
        assert are_equal(*states)


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
    for epoch in (1, 2, 3):
        network.model.load_weights(trained.weights_path(epoch))
        assert are_equal(weights_of(network), seen[epoch])
    assert trained.weights_path() == trained.weights_path(3)


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
    expected = {"epoch-001.weights.h5", "epoch-004.weights.h5", "manifest.json"}
    assert names == expected | {training.HISTORY, training.FINGERPRINT}


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
