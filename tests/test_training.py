"""Training: what an epoch sees, and that an interrupted run ends as an undisturbed one does."""

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


@pytest.mark.slow
def test_the_loss_falls_on_pictures_that_can_be_learnt(images, elsewhere):
    history = train_network(build_network(), images, epochs=8).history
    assert history["loss"].iloc[-1] < 0.5 * history["loss"].iloc[0]
    assert history["accuracy"].iloc[-1] > 0.8


def test_an_epoch_sees_what_its_protocol_trains_on_and_nothing_else(images, elsewhere, monkeypatch):
    seen = []

    class Watching(Batches):
        def __init__(self, *given, positions, **more):
            super().__init__(*given, positions=positions, **more)
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
    "augmentation": list(AUGMENTATIONS),
}


@pytest.mark.parametrize(
    ("done", "given"),
    [
        (1, {"schedule": "constant"}),
        pytest.param(2, {}, marks=pytest.mark.slow),
        pytest.param(1, UNUSUAL, marks=pytest.mark.slow),
    ],
)
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
    assert f"resuming after epoch {done}" in capsys.readouterr().out

    assert are_equal(weights_of(network), weights_of(reference))
    assert resumed.history.drop(columns="seconds").equals(whole.history.drop(columns="seconds"))
    for epoch in (2, None):
        states = []
        for each in (whole, resumed):
            network.model.load_weights(each.weights_path(epoch))
            states.append(weights_of(network))
        assert are_equal(*states)


def interrupted(monkeypatch, images, done: int, build=build_network, **given):
    """A training that is stopped in or after its second epoch, when `done` epochs are saved."""
    save = training.save_checkpoint

    def interrupt(folder, model, history, best):
        if len(history) <= done:
            save(folder, model, history, best)
        if len(history) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "save_checkpoint", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train_network(build(), images, **given)


@pytest.mark.slow
def test_an_interrupted_training_ends_with_the_best_epoch_before_the_interruption(
    images, elsewhere, monkeypatch, capsys
):
    seen = {}
    fit = training._fit_epoch

    def watch(model, batches, validation, epoch, *given, **names):
        row = fit(model, batches, validation, epoch, *given, **names)
        seen[epoch] = [weight.copy() for weight in model.get_weights()]
        return row | {"val_accuracy": [0.5, 0.9, 0.9, 0.7, 1.0][epoch - 1]}

    monkeypatch.setattr(training, "_fit_epoch", watch)
    given = {"epochs": 5, "early_stopping": 2, "measured_epochs": []}
    interrupted(monkeypatch, images, 2, **given)
    network = build_network()
    resumed = train_network(network, images, **given)
    assert "resuming after epoch 2" in capsys.readouterr().out
    assert list(seen) == [1, 2, 3, 4]
    assert resumed.history["val_accuracy"].tolist() == [0.5, 0.9, 0.9, 0.7]
    assert resumed.best_epoch == 2
    assert are_equal(weights_of(network), seen[2])


@pytest.fixture
def invented(monkeypatch):
    """Epochs without work: after each, every weight is its number, and its accuracy is given."""

    def of(*accuracies: float):
        def fit(model, batches, validation, epoch, *given, **names):
            model.set_weights([np.full_like(each, epoch) for each in model.get_weights()])
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


class ResourceExhaustedError(Exception):
    """Called as TensorFlow's is."""


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
@pytest.mark.usefixtures("elsewhere")
def test_too_little_memory_for_a_batch_is_reported_in_one_line_that_names_the_key(
    error, images, stages, monkeypatch
):
    def fit(*_, **__):
        raise error

    for prefix, (network, features) in stages.items():
        monkeypatch.setattr(type(network.model), "fit", fit)
        with pytest.raises(StudyError) as caught:
            train_network(network, images, features=features)
        # A head sees no pixels that could be fewer.
        end = "" if prefix else ", or lower input_size"
        assert str(caught.value) == (
            f"out of memory with {prefix}batch_size 8: lower it in params/ "
            f"(results depend on it){end}"
        )


def test_any_other_error_of_an_epoch_stays_what_it_is(images, elsewhere, monkeypatch):
    network = build_network()

    def fit(*_, **__):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(type(network.model), "fit", fit)
    with pytest.raises(RuntimeError, match="shapes differ"):
        train_network(network, images)


@pytest.mark.parametrize("loss", [np.nan, np.inf])
@pytest.mark.usefixtures("elsewhere")
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
def of_head(undisturbed):
    """Builds networks whose heads alone are trained, on a backbone that has learnt something."""
    path = str(undisturbed[1].artifact.folder / "backbone.weights.h5")

    def build(pooling="gem", **changes):
        # Another seed: the backbone has learnt to suit the head that its own seed began with.
        return build_network(weights=path, train="head", pooling=pooling, seed=1, **changes)

    return build


@pytest.fixture(scope="module")
def maps(of_head, images):
    """The feature maps that the heads of this backbone pool, each in its way."""
    found = [inference.frozen_features(of_head(way), images) for way in LEARNT_POOLINGS]
    (features,) = {each.folder: each for each in found}.values()
    assert np.load(features.folder / "features.npy", mmap_mode="r").dtype == np.float16
    return features


@pytest.mark.slow
@pytest.mark.parametrize("pooling", LEARNT_POOLINGS)
@pytest.mark.usefixtures("elsewhere")
def test_what_a_pooling_learns_is_learnt_on_kept_maps(pooling, of_head, maps, images):
    network = of_head(pooling)
    learnt = network.head.get_layer("pooling").trainable_variables[0]
    before, body = np.array(learnt), [each.copy() for each in network.body.get_weights()]
    given = {"epochs": 6, "learning_rate": 0.02, "measured_epochs": []}
    history = train_network(network, images, features=maps, **given).history
    assert np.abs(np.array(learnt) - before).max() > 0.002
    assert history["loss"].iloc[-1] < 0.8 * history["loss"].iloc[0]
    assert are_equal(body, network.body.get_weights())


@pytest.mark.slow
@pytest.mark.parametrize("early_stopping", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("short_epochs")
def test_an_interrupted_training_of_a_head_goes_on_bit_for_bit(
    early_stopping, of_head, images, tmp_path, monkeypatch
):
    maps = inference.frozen_features(of_head(), images)
    given = {"features": maps, "epochs": 4, "measured_epochs": [], "batch_size": 4}
    given |= {"early_stopping": early_stopping}

    def fit(*arguments, **names):
        row = training_fit(*arguments, **names)
        # The first epoch is the best, so that its state is kept through the interruption.
        return row | {"val_accuracy": 1 / arguments[3]}

    training_fit = training._fit_epoch
    if early_stopping:
        monkeypatch.setattr(training, "_fit_epoch", fit)
    ends = []
    for place, done in (("undisturbed", None), ("interrupted", 1)):
        monkeypatch.chdir(empty_project(tmp_path / place))
        if done:
            interrupted(monkeypatch, images, done, build=of_head, **given)
        network = of_head()
        trained = train_network(network, images, **given)
        ends.append((weights_of(network), trained))
    (whole, undisturbed), (resumed, again) = ends
    assert are_equal(whole, resumed)
    pair = [each.history.drop(columns="seconds") for each in (undisturbed, again)]
    assert pair[0].equals(pair[1])
    assert undisturbed.best_epoch == again.best_epoch == (1 if early_stopping else 4)
    # Nothing that served to go on is left.
    names = {path.name for path in again.artifact.folder.iterdir()}
    expected = {"final.weights.h5", "backbone.weights.h5", "manifest.json"}
    assert names == expected | {training.HISTORY}


@pytest.mark.usefixtures("short_epochs")
def test_the_whole_network_is_written_once_whatever_the_epochs_of_its_head(
    of_head, maps, images, elsewhere, monkeypatch
):
    saved, save = [], keras.Model.save_weights

    def note(model, path, *given, **names):
        saved.append(path.name)
        save(model, path, *given, **names)

    monkeypatch.setattr(keras.Model, "save_weights", note)
    given = {"features": maps, "measured_epochs": [], "early_stopping": 4}
    history = train_network(of_head(), images, **given).history
    assert len(history) == 4
    assert saved == [training.FINAL, "backbone.weights.h5"]


@pytest.mark.usefixtures("elsewhere")
def test_a_training_that_breaks_a_weight_names_epoch_and_layer(images, monkeypatch):
    network, fit = build_network(), keras.Model.fit

    def broken(model, *given, **names):
        logs = fit(model, *given, **names)
        if names["epochs"] == 2:
            bias = network.body.get_layer("stage2_conv1").bias
            bias.assign(np.full(bias.shape, np.inf))
        return logs

    monkeypatch.setattr(keras.Model, "fit", broken)
    with pytest.raises(StudyError, match="epoch 2 .NaN or infinite values in layer stage2_conv1"):
        train_network(network, images, epochs=3)


@pytest.mark.faults
@pytest.mark.usefixtures("elsewhere")
def test_a_training_with_a_damaged_checkpoint_starts_again(images, monkeypatch, capsys):
    epochs, given = [], {"early_stopping": 3, "epochs": 3}

    def stop(model, batches, validation, epoch, *rest, **names):
        epochs.append(epoch)
        raise KeyboardInterrupt

    interrupted(monkeypatch, images, 1, **given)
    Path("artifacts").rename("whole")
    network = build_network()
    monkeypatch.setattr(training, "_fit_epoch", stop)
    files = ("state", "epoch-001.weights.h5")
    # The last header of the archive: how its file is compressed, and the first letter of its name.
    headers = [(damage, files[0]) for damage in (10, 46)]
    both = itertools.product(("flipped", "cut"), files)
    for damage, file in [("none", files[0]), *both, *headers]:
        shutil.copytree("whole", "artifacts")
        (path,) = Path("artifacts/training").rglob(file)
        content = bytearray(path.read_bytes())
        is_header = isinstance(damage, int)
        place = content.rindex(b"PK\1\2") + damage if is_header else len(content) // 2
        content[place] ^= 32 * is_header + (damage == "flipped")
        path.write_bytes(content[: len(content) // (2 if damage == "cut" else 1)])
        with pytest.raises(KeyboardInterrupt):
            train_network(network, images, **given)
        output = capsys.readouterr().out
        assert ("resuming" in output) == (damage == "none")
        assert ("is damaged (" in output and "starting again" in output) == (damage != "none")
        shutil.rmtree("artifacts")
    assert epochs == [2] + [1] * 6


@pytest.mark.slow
def test_how_many_steps_are_taken_at_once_changes_nothing(
    of_head, maps, images, tmp_path, monkeypatch
):
    batches = len(images.train) // 2
    assert batches > 8
    assert batches % 8  # the last time in an epoch there are fewer
    ends = []
    for steps in (1, 8, training.STEPS_AT_ONCE):
        monkeypatch.chdir(empty_project(tmp_path / str(steps)))
        monkeypatch.setattr(training, "STEPS_AT_ONCE", steps)
        network = of_head()
        given = {"features": maps, "batch_size": 2, "epochs": 2}
        history = train_network(network, images, **given).history
        assert network.head.steps_per_execution == steps
        ends.append((network.head.get_weights(), history.drop(columns="seconds")))
    for weights, history in ends[1:]:
        for one, other in zip(weights, ends[0][0], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(history, ends[0][1], rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "given"),
    [
        ({"embedding": "projection"}, {}),
        pytest.param({}, {"optimizer": "adamw", "weight_decay": 0.01}, marks=pytest.mark.slow),
    ],
    ids=["projection", "adamw"],
)
@pytest.mark.usefixtures("elsewhere")
def test_a_head_learns_in_each_way(changes, given, of_head, images):
    network = of_head("avg", **changes)
    features = inference.frozen_features(network, images)
    given = given | {"epochs": 6, "learning_rate": 0.02, "measured_epochs": []}
    before = network.head.get_weights()
    history = train_network(network, images, features=features, **given).history
    assert history["loss"].iloc[-1] < 0.8 * history["loss"].iloc[0]
    pairs = zip(before, network.head.get_weights(), strict=True)
    assert not any(np.array_equal(old, new) for old, new in pairs)


@pytest.mark.slow
@pytest.mark.usefixtures("elsewhere")
def test_weight_decay_leaves_a_head_with_smaller_weights(of_head, maps, images):
    given = {"features": maps, "optimizer": "adamw", "learning_rate": 0.02}
    sizes = []
    for decay in (0.0, 5.0):
        network = of_head()
        train_network(network, images, weight_decay=decay, epochs=2, **given)
        sizes.append(np.abs(network.head.get_layer("embedding").kernel).mean())
    assert sizes[1] < 0.9 * sizes[0]


@pytest.mark.slow
@pytest.mark.usefixtures("elsewhere")
def test_of_a_network_trained_in_part_the_frozen_layers_stay_as_they_were(images):
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
    # BatchNorm and its statistics among the frozen ones.
    trained = {f"stage3_conv{place}/kernel" for place in (1, 2)}
    assert moved == trained | {weight.path for weight in network.head.weights}


@pytest.mark.slow
@pytest.mark.parametrize(
    "policy", ["mixed_bfloat16", pytest.param("mixed_float16", marks=pytest.mark.slow)]
)
@pytest.mark.usefixtures("elsewhere")
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


def test_each_seed_and_each_epoch_has_an_order_of_its_own(images, elsewhere, monkeypatch):
    orders = []

    def fit(model, batches, *given, **names):
        orders.append(tuple(batches.positions.tolist()))
        return dict.fromkeys(("accuracy", "loss", "val_accuracy", "val_loss"), 0.5)

    monkeypatch.setattr(training, "_fit_epoch", fit)
    network = build_network()
    for seed in (0, 1):
        train_network(network, images, seed=seed, epochs=2, measured_epochs=[])
    assert len(set(orders)) == 4
    assert all(sorted(order) == images.train.tolist() for order in orders)


@pytest.mark.slow
def test_the_seed_of_training_decides_its_course(images, undisturbed, elsewhere):
    again, other = build_network(), build_network()
    train_network(again, images)
    train_network(other, images, seed=1)
    assert are_equal(weights_of(again), weights_of(undisturbed[0]))
    assert not are_equal(weights_of(other), weights_of(undisturbed[0]))


def test_measured_epochs_keep_the_state_of_their_epoch(images, elsewhere, monkeypatch):
    seen = {}

    class Watching(training.EpochProgress):
        def on_epoch_end(self, epoch, logs=None):
            seen[epoch + 1] = [weight.copy() for weight in self.model.get_weights()]

    monkeypatch.setattr(training, "EpochProgress", Watching)
    network = build_network()
    trained = train_network(network, images, epochs=3, measured_epochs=[2, 1])
    assert are_equal(weights_of(network), seen[3])
    for epoch, path in ((1, 1), (2, 2), (3, None)):
        network.model.load_weights(trained.weights_path(path))
        assert are_equal(weights_of(network), seen[epoch])


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
    assert names == expected | {"manifest.json", training.HISTORY}


def test_the_backbone_is_kept_for_other_studies_to_start_from(undisturbed):
    network, trained = undisturbed
    path = trained.artifact.folder / "backbone.weights.h5"
    other = build_network(weights=str(path), seed=5)
    assert are_equal(other.body.get_weights(), network.body.get_weights())
    assert not are_equal(other.head.get_weights(), network.head.get_weights())


def test_a_trained_network_is_rebuilt_from_its_folder(undisturbed, tmp_path):
    network, trained = undisturbed
    rebuilt = training.open_network(trained.artifact.folder)
    assert rebuilt.parameters == network.parameters
    assert are_equal(weights_of(rebuilt), weights_of(network))
    with pytest.raises(StudyError, match="no trained network in .*: run the study again"):
        training.open_network(tmp_path)


@pytest.mark.usefixtures("short_epochs")
@pytest.mark.parametrize("backbone", ["cnn", pytest.param("cnn_strong", marks=pytest.mark.slow)])
def test_a_head_trained_on_frozen_features_serves_the_whole_network(backbone, images):
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
