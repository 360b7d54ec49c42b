"""Training: the images of an epoch, the history, and a training that was interrupted."""

import itertools
import shutil
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from conftest import build_network, empty_project, load_shapes, train_network

from cbir import StudyError
from cbir.images import protocols
from cbir.networks import inference, models, training
from cbir.networks.choices import AUGMENTATIONS, LEARNT_POOLINGS
from cbir.networks.training import Batches

pytestmark = pytest.mark.usefixtures("small_cnn", "shared_project")


@pytest.fixture(scope="module")
def images(shared_project):
    return load_shapes()


@pytest.fixture(scope="module")
def uninterrupted(images, shared_project):
    """A network and its training, which was not interrupted."""
    network = build_network()
    return network, train_network(network, images)


@pytest.fixture
def other_project(tmp_path, monkeypatch):
    """Another project, with an empty cache."""
    monkeypatch.chdir(empty_project(tmp_path / "other_project"))


def weights_of(network):
    return [weight.copy() for weight in network.model.get_weights()]


def are_equal(weights, expected):
    pairs = zip(weights, expected, strict=True)
    return all(np.array_equal(array, expected_array) for array, expected_array in pairs)


def test_batches_follow_the_positions_and_the_last_one_may_be_smaller():
    inputs = np.arange(10, dtype=np.uint8)[:, None] * 2
    labels = np.arange(10) + 100
    batches = Batches(inputs, labels, np.array([7, 0, 3, 9, 5]), batch_size=2)
    parts = [batches[index] for index in range(len(batches))]
    assert [part[0].ravel().tolist() for part in parts] == [[14, 0], [6, 18], [10]]
    assert [part[1].tolist() for part in parts] == [[107, 100], [103, 109], [105]]
    assert {part[0].dtype for part in parts} == {np.dtype(np.float32)}


def test_batches_read_a_memory_mapped_array(tmp_path):
    np.save(tmp_path / "images.npy", np.full((5, 2, 2, 3), 255, np.uint8))
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    inputs, _ = Batches(mapped, np.zeros(5), np.arange(5), 4)[1]
    assert inputs.shape == (1, 2, 2, 3)
    assert inputs.max() == 255  # the network scales them itself


@pytest.mark.slow
def test_the_loss_falls_in_training(images, other_project):
    history = train_network(build_network(), images, epochs=8).history
    assert history["loss"].iloc[-1] < 0.5 * history["loss"].iloc[0]
    assert history["accuracy"].iloc[-1] > 0.8


def test_an_epoch_uses_only_the_training_and_validation_images_of_its_protocol(
    images, other_project, monkeypatch
):
    positions_seen = []

    class Recording(Batches):
        def __init__(self, *arguments, positions, **options):
            super().__init__(*arguments, positions=positions, **options)
            positions_seen.append(sorted(positions))

    monkeypatch.setattr(training, "Batches", Recording)
    view = protocols.view(images, "unseen_classes", unseen=1, draw=0)
    train_network(build_network(), view, epochs=1)
    assert positions_seen == [view.validation.tolist(), view.train.tolist()]
    (unseen_label,) = protocols.unseen_labels(view)
    assert not (images.labels[np.concatenate(positions_seen)] == unseen_label).any()
    assert len(view.train) < len(images.train)


def test_the_history_has_one_row_per_epoch(uninterrupted):
    history = uninterrupted[1].history
    assert history.index.tolist() == [1, 2, 3, 4]
    assert set(history) == {"accuracy", "loss", "val_accuracy", "val_loss", "seconds"}
    assert np.isfinite(history.to_numpy()).all()


def test_validation_figures_are_of_the_validation_images(uninterrupted, images):
    network, trained = uninterrupted
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
    "augmentation": list(AUGMENTATIONS),
}


@pytest.mark.parametrize(
    ("done", "arguments"),
    [
        (1, {"schedule": "constant"}),
        pytest.param(2, {}, marks=pytest.mark.slow),
        pytest.param(1, UNUSUAL, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_training_ends_with_the_same_bits_as_an_uninterrupted_one(
    done, arguments, tmp_path, monkeypatch, capsys
):
    images = load_shapes()
    arguments = arguments | {"epochs": 3, "measured_epochs": [2]}
    reference = build_network()
    monkeypatch.chdir(empty_project(tmp_path / "uninterrupted"))
    whole = train_network(reference, images, **arguments)

    monkeypatch.chdir(empty_project(tmp_path / "interrupted"))
    interrupt_training(monkeypatch, images, done, **arguments)
    capsys.readouterr()
    network = build_network()
    resumed = train_network(network, images, **arguments)
    assert f"resuming after epoch {done}" in capsys.readouterr().out

    assert are_equal(weights_of(network), weights_of(reference))
    assert resumed.history.drop(columns="seconds").equals(whole.history.drop(columns="seconds"))
    for epoch in (2, None):
        states = []
        for trained in (whole, resumed):
            network.model.load_weights(trained.weights_path(epoch))
            states.append(weights_of(network))
        assert are_equal(*states)


def interrupt_training(monkeypatch, images, done: int, build=build_network, **arguments):
    """Stop a training in or after its second epoch, when `done` epochs are saved."""
    save = training.save_checkpoint

    def interrupt(folder, model, history, best):
        if len(history) <= done:
            save(folder, model, history, best)
        if len(history) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "save_checkpoint", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train_network(build(), images, **arguments)


@pytest.mark.slow
def test_an_interrupted_training_ends_with_the_best_epoch_before_the_interruption(
    images, other_project, monkeypatch, capsys
):
    weights_by_epoch = {}
    fit = training._fit_epoch

    def watch(model, batches, validation, epoch, *arguments, **names):
        row = fit(model, batches, validation, epoch, *arguments, **names)
        weights_by_epoch[epoch] = [weight.copy() for weight in model.get_weights()]
        return row | {"val_accuracy": [0.5, 0.9, 0.9, 0.7, 1.0][epoch - 1]}

    monkeypatch.setattr(training, "_fit_epoch", watch)
    arguments = {"epochs": 5, "early_stopping": 2, "measured_epochs": []}
    interrupt_training(monkeypatch, images, 2, **arguments)
    network = build_network()
    resumed = train_network(network, images, **arguments)
    assert "resuming after epoch 2" in capsys.readouterr().out
    assert list(weights_by_epoch) == [1, 2, 3, 4]
    assert resumed.history["val_accuracy"].tolist() == [0.5, 0.9, 0.9, 0.7]
    assert resumed.best_epoch == 2
    assert are_equal(weights_of(network), weights_by_epoch[2])


@pytest.fixture
def epochs_without_work(monkeypatch):
    """Replace epochs: afterwards every weight is the epoch's number, its accuracy a given one."""

    def of(*accuracies: float):
        def fit(model, batches, validation, epoch, *arguments, **names):
            model.set_weights([np.full_like(weight, epoch) for weight in model.get_weights()])
            return {"accuracy": 0, "loss": 1, "val_loss": 1, "val_accuracy": accuracies[epoch - 1]}

        monkeypatch.setattr(training, "_fit_epoch", fit)

    return of


@pytest.mark.parametrize(
    ("accuracies", "early_stopping", "ends"),
    [
        ([0.5, 0.9, 0.9, 0.7, 1.0], 2, (4, 2)),
        ([0.5, 0.9, 0.9, 0.7, 0.8], 0, (5, 5)),
        pytest.param([0.5, 0.9, 0.9, 0.7, 1.0], 3, (5, 5), marks=pytest.mark.slow),
        pytest.param([0.8, 0.8, 0.9, 0.9, 0.9], 1, (2, 1), marks=pytest.mark.slow),
        pytest.param([0.6, 0.7, 0.8, 0.9, 0.9], 1, (5, 4), marks=pytest.mark.slow),
        pytest.param([0.9, 0.5, 0.95, 0.5, 0.5], 2, (5, 3), marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("other_project")
def test_early_stopping_ends_with_the_weights_of_the_first_of_the_best_epochs(
    accuracies, early_stopping, ends, images, epochs_without_work
):
    epochs, best = ends
    epochs_without_work(*accuracies)
    network = build_network()
    arguments = {"epochs": 5, "early_stopping": early_stopping, "measured_epochs": [1, 2]}
    trained = train_network(network, images, **arguments)
    assert trained.history["val_accuracy"].tolist() == accuracies[:epochs]
    assert trained.best_epoch == best
    assert all((weight == best).all() for weight in weights_of(network))
    for epoch in (1, 2):
        network.model.load_weights(trained.weights_path(epoch))
        assert all((weight == epoch).all() for weight in weights_of(network))
    # A training read from disk ends the same.
    again = build_network()
    assert train_network(again, images, **arguments).best_epoch == best
    assert all((weight == best).all() for weight in weights_of(again))


class ResourceExhaustedError(Exception):
    """An error with the name of TensorFlow's."""


@pytest.fixture
def stages(images):
    """A network to train as a whole, and one whose head is trained on features."""
    frozen = build_network(train="head", pooling="avg")
    return {
        "": (build_network(), None),
        "head_": (frozen, inference.frozen_features(frozen, images)),
    }


@pytest.mark.parametrize(
    "error", [ResourceExhaustedError("a\nb"), RuntimeError("RESOURCE_EXHAUSTED: a\nb")]
)
@pytest.mark.usefixtures("other_project")
def test_too_little_memory_for_a_batch_is_reported_in_one_line_that_names_the_key(
    error, images, stages, monkeypatch
):
    def fit(*_, **__):
        raise error

    for prefix, (network, features) in stages.items():
        monkeypatch.setattr(type(network.model), "fit", fit)
        with pytest.raises(StudyError) as caught:
            train_network(network, images, features=features)
        # The head's input does not depend on input_size.
        end = "" if prefix else ", or lower input_size"
        assert str(caught.value) == (
            f"out of memory with {prefix}batch_size 8: lower it in params/ "
            f"(results depend on it){end}"
        )


def test_other_errors_of_an_epoch_are_raised_unchanged(images, other_project, monkeypatch):
    network = build_network()

    def fit(*_, **__):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(type(network.model), "fit", fit)
    with pytest.raises(RuntimeError, match="shapes differ"):
        train_network(network, images)


@pytest.mark.parametrize("loss", [np.nan, np.inf])
@pytest.mark.usefixtures("other_project")
def test_a_training_that_diverges_is_reported_in_one_line_that_names_the_key(
    loss, images, stages, monkeypatch
):
    history = {"accuracy": [0.1], "loss": [loss], "val_accuracy": [0.1], "val_loss": [1.0]}
    for prefix, (network, features) in stages.items():
        monkeypatch.setattr(
            type(network.model), "fit", lambda *_, **__: SimpleNamespace(history=history)
        )
        with pytest.raises(StudyError) as caught:
            train_network(network, images, features=features)
        assert str(caught.value) == (
            "training diverged in epoch 1 (NaN or infinite values in the loss): "
            f"lower {prefix}learning_rate"
        )


@pytest.fixture(scope="module")
def build_head_network(uninterrupted):
    """A function that builds networks with a trained, frozen backbone."""
    path = str(uninterrupted[1].artifact.folder / "backbone.weights.h5")

    def build(pooling="gem", **changes):
        # Another seed, since the backbone was trained with the head of its own seed.
        return build_network(weights=path, train="head", pooling=pooling, seed=1, **changes)

    return build


@pytest.fixture(scope="module")
def maps(build_head_network, images):
    """The feature maps of this backbone, which are the same for every learnt pooling."""
    by_folder = {}
    for pooling in LEARNT_POOLINGS:
        features = inference.frozen_features(build_head_network(pooling), images)
        by_folder[features.folder] = features
    (features,) = by_folder.values()
    assert np.load(features.folder / "features.npy", mmap_mode="r").dtype == np.float16
    return features


@pytest.mark.slow
@pytest.mark.parametrize("pooling", LEARNT_POOLINGS)
@pytest.mark.usefixtures("other_project")
def test_a_pooling_is_trained_on_stored_feature_maps(pooling, build_head_network, maps, images):
    network = build_head_network(pooling)
    learnt = network.head.get_layer("pooling").trainable_variables[0]
    before, body = np.array(learnt), [weight.copy() for weight in network.body.get_weights()]
    arguments = {"epochs": 6, "learning_rate": 0.02, "measured_epochs": []}
    history = train_network(network, images, features=maps, **arguments).history
    assert np.abs(np.array(learnt) - before).max() > 0.002
    assert history["loss"].iloc[-1] < 0.8 * history["loss"].iloc[0]
    assert are_equal(body, network.body.get_weights())


@pytest.mark.slow
@pytest.mark.parametrize("early_stopping", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("short_epochs")
def test_an_interrupted_training_of_a_head_ends_with_the_same_bits_as_an_uninterrupted_one(
    early_stopping, build_head_network, images, tmp_path, monkeypatch
):
    maps = inference.frozen_features(build_head_network(), images)
    arguments = {"features": maps, "epochs": 4, "measured_epochs": [], "batch_size": 4}
    arguments |= {"early_stopping": early_stopping}

    def fit(*arguments, **names):
        row = training_fit(*arguments, **names)
        # The first epoch is the best, so that its state is kept through the interruption.
        return row | {"val_accuracy": 1 / arguments[3]}

    training_fit = training._fit_epoch
    if early_stopping:
        monkeypatch.setattr(training, "_fit_epoch", fit)
    ends = []
    for project, done in (("uninterrupted", None), ("interrupted", 1)):
        monkeypatch.chdir(empty_project(tmp_path / project))
        if done:
            interrupt_training(monkeypatch, images, done, build=build_head_network, **arguments)
        network = build_head_network()
        trained = train_network(network, images, **arguments)
        ends.append((weights_of(network), trained))
    (uninterrupted_weights, uninterrupted_training), (resumed_weights, resumed_training) = ends
    assert are_equal(uninterrupted_weights, resumed_weights)
    histories = [trained.history for _, trained in ends]
    histories = [history.drop(columns="seconds") for history in histories]
    assert histories[0].equals(histories[1])
    assert (
        uninterrupted_training.best_epoch
        == resumed_training.best_epoch
        == (1 if early_stopping else 4)
    )
    # No checkpoint is left.
    names = {path.name for path in resumed_training.artifact.folder.iterdir()}
    expected = {"final.weights.h5", "backbone.weights.h5", "manifest.json"}
    assert names == expected | {training.HISTORY}


@pytest.mark.usefixtures("short_epochs")
def test_the_network_is_written_once_whatever_the_number_of_epochs_of_its_head(
    build_head_network, maps, images, other_project, monkeypatch
):
    file_names, save = [], keras.Model.save_weights

    def note(model, path, *arguments, **names):
        file_names.append(path.name)
        save(model, path, *arguments, **names)

    monkeypatch.setattr(keras.Model, "save_weights", note)
    arguments = {"features": maps, "measured_epochs": [], "early_stopping": 4}
    history = train_network(build_head_network(), images, **arguments).history
    assert len(history) == 4
    assert file_names == [training.FINAL, "backbone.weights.h5"]


@pytest.mark.usefixtures("other_project")
def test_a_weight_that_is_not_finite_is_reported_with_epoch_and_layer(images, monkeypatch):
    network, fit = build_network(), keras.Model.fit

    def broken(model, *arguments, **names):
        logs = fit(model, *arguments, **names)
        if names["epochs"] == 2:
            bias = network.body.get_layer("stage2_conv1").bias
            bias.assign(np.full(bias.shape, np.inf))
        return logs

    monkeypatch.setattr(keras.Model, "fit", broken)
    with pytest.raises(StudyError, match="epoch 2 .NaN or infinite values in layer stage2_conv1"):
        train_network(network, images, epochs=3)


@pytest.mark.faults
@pytest.mark.usefixtures("other_project")
def test_a_training_with_a_damaged_checkpoint_starts_again(images, monkeypatch, capsys):
    epochs, arguments = [], {"early_stopping": 3, "epochs": 3}

    def stop(model, batches, validation, epoch, *rest, **names):
        epochs.append(epoch)
        raise KeyboardInterrupt

    interrupt_training(monkeypatch, images, 1, **arguments)
    Path("artifacts").rename("whole")
    network = build_network()
    monkeypatch.setattr(training, "_fit_epoch", stop)
    files = ("state", "epoch-001.weights.h5")
    # In the last header of the archive: the file's compression, the first letter of its name.
    headers = [(damage, files[0]) for damage in (10, 46)]
    both = itertools.product(("flipped", "cut"), files)
    for damage, file in [("none", files[0]), *both, *headers]:
        shutil.copytree("whole", "artifacts")
        (path,) = Path("artifacts/training").rglob(file)
        content = bytearray(path.read_bytes())
        is_header = isinstance(damage, int)
        position = content.rindex(b"PK\1\2") + damage if is_header else len(content) // 2
        content[position] ^= 32 * is_header + (damage == "flipped")
        path.write_bytes(content[: len(content) // (2 if damage == "cut" else 1)])
        with pytest.raises(KeyboardInterrupt):
            train_network(network, images, **arguments)
        output = capsys.readouterr().out
        assert ("resuming" in output) == (damage == "none")
        assert ("is damaged (" in output and "starting again" in output) == (damage != "none")
        shutil.rmtree("artifacts")
    assert epochs == [2] + [1] * 6


@pytest.mark.slow
def test_the_number_of_steps_per_execution_does_not_change_the_result(
    build_head_network, maps, images, tmp_path, monkeypatch
):
    batches = len(images.train) // 2
    assert batches > 8
    assert batches % 8  # the last time in an epoch there are fewer
    ends = []
    for steps in (1, 8, training.STEPS_AT_ONCE):
        monkeypatch.chdir(empty_project(tmp_path / str(steps)))
        monkeypatch.setattr(training, "STEPS_AT_ONCE", steps)
        network = build_head_network()
        arguments = {"features": maps, "batch_size": 2, "epochs": 2}
        history = train_network(network, images, **arguments).history
        assert network.head.steps_per_execution == steps
        ends.append((network.head.get_weights(), history.drop(columns="seconds")))
    for weights, history in ends[1:]:
        for array, expected in zip(weights, ends[0][0], strict=True):
            np.testing.assert_allclose(array, expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(history, ends[0][1], rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "arguments"),
    [
        ({"embedding": "projection"}, {}),
        pytest.param({}, {"optimizer": "adamw", "weight_decay": 0.01}, marks=pytest.mark.slow),
    ],
    ids=["projection", "adamw"],
)
@pytest.mark.usefixtures("other_project")
def test_a_head_learns_with_each_embedding_and_optimizer(
    changes, arguments, build_head_network, images
):
    network = build_head_network("avg", **changes)
    features = inference.frozen_features(network, images)
    arguments = arguments | {"epochs": 6, "learning_rate": 0.02, "measured_epochs": []}
    before = network.head.get_weights()
    history = train_network(network, images, features=features, **arguments).history
    assert history["loss"].iloc[-1] < 0.8 * history["loss"].iloc[0]
    pairs = zip(before, network.head.get_weights(), strict=True)
    assert not any(np.array_equal(old, new) for old, new in pairs)


@pytest.mark.slow
@pytest.mark.usefixtures("other_project")
def test_weight_decay_leaves_a_head_with_smaller_weights(build_head_network, maps, images):
    arguments = {"features": maps, "optimizer": "adamw", "learning_rate": 0.02}
    sizes = []
    for decay in (0.0, 5.0):
        network = build_head_network()
        train_network(network, images, weight_decay=decay, epochs=2, **arguments)
        sizes.append(np.abs(network.head.get_layer("embedding").kernel).mean())
    assert sizes[1] < 0.9 * sizes[0]


@pytest.mark.slow
@pytest.mark.usefixtures("other_project")
def test_training_the_last_block_leaves_the_other_layers_unchanged(images):
    network = build_network("cnn_strong", train="last_blocks:1", dropout=0.0)
    # The paths of two networks' weights may differ by a number.
    before = {weight.path: np.array(weight) for weight in network.model.weights}
    history = train_network(network, images, epochs=2).history
    assert np.isfinite(history["loss"]).all()
    moved = {
        weight.path
        for weight in network.model.weights
        if not np.array_equal(weight, before[weight.path])
    }
    # BatchNorm and its statistics are among the frozen weights.
    trained = {f"stage3_conv{number}/kernel" for number in (1, 2)}
    assert moved == trained | {weight.path for weight in network.head.weights}


@pytest.mark.slow
@pytest.mark.parametrize(
    "policy", ["mixed_bfloat16", pytest.param("mixed_float16", marks=pytest.mark.slow)]
)
@pytest.mark.usefixtures("other_project")
def test_a_network_is_trained_in_half_precision(policy, images, monkeypatch):
    monkeypatch.setattr(models, "best_precision", lambda: policy)
    network = build_network(mixed_precision=True, pooling="avg")
    trained = train_network(network, images, learning_rate=0.01, epochs=6)
    assert trained.artifact.manifest["parameters"]["precision"] == policy
    assert network.body.get_layer("stage1_conv1").compute_dtype == policy.removeprefix("mixed_")
    assert {weight.dtype for weight in network.model.trainable_weights} == {"float32"}
    history = trained.history
    assert np.isfinite(history.to_numpy()).all()
    assert history["loss"].iloc[-1] < 0.9 * history["loss"].iloc[0]


def test_the_order_of_images_differs_between_seeds_and_epochs(images, other_project, monkeypatch):
    orders = []

    def fit(model, batches, *arguments, **names):
        orders.append(tuple(batches.positions.tolist()))
        return dict.fromkeys(("accuracy", "loss", "val_accuracy", "val_loss"), 0.5)

    monkeypatch.setattr(training, "_fit_epoch", fit)
    network = build_network()
    for seed in (0, 1):
        train_network(network, images, seed=seed, epochs=2, measured_epochs=[])
    assert len(set(orders)) == 4
    assert all(sorted(order) == images.train.tolist() for order in orders)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_another_seed_other_weights(
    images, uninterrupted, other_project
):
    same_seed, other_seed = build_network(), build_network()
    train_network(same_seed, images)
    train_network(other_seed, images, seed=1)
    assert are_equal(weights_of(same_seed), weights_of(uninterrupted[0]))
    assert not are_equal(weights_of(other_seed), weights_of(uninterrupted[0]))


def test_measured_epochs_keep_the_state_of_their_epoch(images, other_project, monkeypatch):
    weights_by_epoch = {}

    class Recording(training.EpochProgress):
        def on_epoch_end(self, epoch, logs=None):
            weights_by_epoch[epoch + 1] = [weight.copy() for weight in self.model.get_weights()]

    monkeypatch.setattr(training, "EpochProgress", Recording)
    network = build_network()
    trained = train_network(network, images, epochs=3, measured_epochs=[2, 1])
    assert are_equal(weights_of(network), weights_by_epoch[3])
    for epoch, argument in ((1, 1), (2, 2), (3, None)):
        network.model.load_weights(trained.weights_path(argument))
        assert are_equal(weights_of(network), weights_by_epoch[epoch])


def test_the_same_parameters_train_once(images, uninterrupted, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("trained twice")

    network = build_network()
    monkeypatch.setattr(type(network.model), "fit", refuse)
    again = train_network(network, images)
    assert again.artifact.folder == uninterrupted[1].artifact.folder
    assert again.history.equals(uninterrupted[1].history)
    assert are_equal(weights_of(network), weights_of(uninterrupted[0]))
    with pytest.raises(AssertionError, match="trained twice"):
        train_network(build_network(), images, learning_rate=0.003)


def test_checkpoints_are_deleted_at_the_end(uninterrupted):
    trained = uninterrupted[1]
    names = {path.name for path in trained.artifact.folder.iterdir()}
    expected = {"epoch-001.weights.h5", "final.weights.h5", "backbone.weights.h5"}
    assert names == expected | {"manifest.json", training.HISTORY}


def test_the_backbone_is_saved_for_other_studies_to_start_from(uninterrupted):
    network, trained = uninterrupted
    path = trained.artifact.folder / "backbone.weights.h5"
    started = build_network(weights=str(path), seed=5)
    assert are_equal(started.body.get_weights(), network.body.get_weights())
    assert not are_equal(started.head.get_weights(), network.head.get_weights())


def test_a_trained_network_is_rebuilt_from_its_folder(uninterrupted, tmp_path):
    network, trained = uninterrupted
    rebuilt = training.open_network(trained.artifact.folder)
    assert rebuilt.parameters == network.parameters
    assert are_equal(weights_of(rebuilt), weights_of(network))
    with pytest.raises(StudyError, match="no trained network in .*: run the study again"):
        training.open_network(tmp_path)


@pytest.mark.usefixtures("short_epochs")
@pytest.mark.parametrize("backbone", ["cnn", pytest.param("cnn_strong", marks=pytest.mark.slow)])
def test_a_head_trained_on_frozen_features_is_the_head_of_the_whole_network(backbone, images):
    network = build_network(backbone, train="head")
    start = [weight.copy() for weight in network.backbone.get_weights()]
    frozen = inference.frozen_features(network, images)
    trained = train_network(network, images, features=frozen, epochs=5)
    assert are_equal(start, network.backbone.get_weights())
    features = np.load(frozen.folder / "features.npy")
    from_features = np.asarray(network.head(features, training=False))
    whole = np.asarray(network.model(np.asarray(images.images), training=False))
    np.testing.assert_allclose(whole, from_features, atol=1e-4)
    right = from_features[images.validation].argmax(axis=1)
    accuracy = (right == images.labels[images.validation]).mean()
    assert trained.history["val_accuracy"].iloc[-1] == pytest.approx(accuracy)
