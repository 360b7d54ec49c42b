"""Training, an epoch at a time, so that an interrupted run goes on as if nothing had happened.

What an epoch sees follows from the seed and the epoch's number alone: the order of the images and
the state of the random layers. After each epoch the weights, the optimizer and the history are
moved to disk. A run that was stopped therefore ends with the weights of one that was not.
"""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from cbir import StudyError
from cbir.cache import Artifact, cached, file_digest, write_text
from cbir.data import Dataset
from cbir.models import Network
from cbir.progress import Ticker, duration

STATE, HISTORY, FINGERPRINT = "state.npz", "history.json", "weights.sha256"


class Batches(keras.utils.PyDataset):
    """Batches of (inputs, labels), read from a memory-mapped array as they are asked for.

    Args:
        inputs: (n, ...) images or features.
        labels: (n,) int.
        positions: which rows, in this order.
        batch_size: rows in a batch; the last one may be smaller.
    """

    def __init__(self, inputs, labels, positions, batch_size):
        # With two threads or more Keras reads ahead by itself and switches tf.data's autotuning
        # off, whose thread otherwise holds up the end of each epoch (by up to its length).
        super().__init__(workers=2)
        self.inputs, self.labels = inputs, labels
        self.positions, self.batch_size = positions, batch_size

    def __len__(self) -> int:
        return math.ceil(len(self.positions) / self.batch_size)

    def __getitem__(self, batch: int):
        rows = self.positions[batch * self.batch_size : (batch + 1) * self.batch_size]
        return np.asarray(self.inputs[rows], np.float32), np.asarray(self.labels[rows])


class Progress(keras.callbacks.Callback):
    """A line every few seconds while an epoch or a prediction is under way."""

    def __init__(self, batches: int, what: str, every: float = 5.0):
        super().__init__()
        self.ticker = Ticker(batches, what, every)

    def on_train_batch_end(self, batch, logs=None):
        self.ticker.reached(batch + 1)

    def on_predict_batch_end(self, batch, logs=None):
        self.ticker.reached(batch + 1)


@dataclass(frozen=True)
class Training:
    """A finished training.

    Attributes:
        artifact: where its weights stand, and what they were made from.
        history: a row per epoch: accuracy, loss, val_accuracy, val_loss, seconds.
    """

    artifact: Artifact
    history: pd.DataFrame

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the file of the final weights."""
        return (self.artifact.folder / FINGERPRINT).read_text("utf-8")

    def weights_path(self, epoch: int | None = None) -> Path:
        """The weights after an epoch that was to be measured, or the final ones."""
        return self.artifact.folder / _weights_name(epoch or int(self.history.index[-1]))


def train(
    network: Network,
    dataset: Dataset,
    *,
    features: Artifact | None,
    epochs: int,
    measured_epochs: list[int],
    batch_size: int,
    learning_rate: float,
    schedule: str,
    seed: int,
) -> Training:
    """Train a network on the training images; it holds the final weights afterwards.

    Args:
        network: from `models.build`.
        dataset: trains on `dataset.train`, reports on `dataset.validation`.
        features: the frozen backbone's output for all images (`embeddings.features`), to train
            the head on; None to train on the images themselves.
        epochs: passes over the training images.
        measured_epochs: epochs whose weights are kept besides the final ones.
        batch_size: images in a step.
        learning_rate: Adam's, at its highest.
        schedule: "constant"; or "cosine": up during the first epoch, then down to zero.
        seed: of the order of the images and of dropout.

    Raises:
        StudyError: an epoch to be measured lies beyond the last.
    """
    if beyond := [epoch for epoch in measured_epochs if epoch > epochs]:
        raise StudyError(f"measured_epochs: {beyond} lies beyond epochs: {epochs}")
    model = network.model if features is None else network.head
    inputs = dataset.images
    if features is not None:
        inputs = np.load(features.folder / "features.npy", mmap_mode="r")
    kept = {*measured_epochs, epochs}

    def make(folder: Path) -> None:
        validation = Batches(inputs, dataset.labels, dataset.validation, batch_size)
        steps = math.ceil(len(dataset.train) / batch_size)
        model.compile(
            keras.optimizers.Adam(_rate(schedule, learning_rate, steps, epochs)),
            loss="sparse_categorical_crossentropy",
            metrics=["accuracy"],
        )
        history = _resume(folder, model)
        for epoch in range(len(history) + 1, epochs + 1):
            started = time.perf_counter()
            order = np.random.default_rng([seed, epoch]).permutation(dataset.train)
            _seed_random_layers(model, seed, epoch)
            logs = model.fit(
                Batches(inputs, dataset.labels, order, batch_size),
                validation_data=validation,
                initial_epoch=epoch - 1,
                epochs=epoch,
                shuffle=False,
                verbose=0,
                callbacks=[Progress(steps, f"epoch {epoch}/{epochs}, batches", every=30)],
            ).history
            row = {name: values[-1] for name, values in logs.items()}
            if not np.isfinite(row["loss"]):
                raise StudyError(f"training diverged in epoch {epoch}: lower learning_rate")
            history.append(row | {"seconds": time.perf_counter() - started})
            if epoch in kept:
                network.model.save_weights(folder / _weights_name(epoch))
            _save(folder, model, history)
            _say(history, epochs)
        write_text(folder / FINGERPRINT, file_digest(folder / _weights_name(epochs)))

    artifact = cached(
        "training",
        make,
        parameters={
            **network.parameters,
            "epochs": epochs,
            "measured_epochs": sorted(measured_epochs),
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "schedule": schedule,
            "training_seed": seed,
        },
        reads=[dataset.split_fingerprint, network.weights, features.key if features else ""],
        code=__name__,
    )
    (artifact.folder / STATE).unlink(missing_ok=True)
    rows = json.loads((artifact.folder / HISTORY).read_text("utf-8"))
    history = pd.DataFrame(rows, index=pd.RangeIndex(1, len(rows) + 1, name="epoch"))
    training = Training(artifact, history)
    network.model.load_weights(training.weights_path())
    return training


def _weights_name(epoch: int) -> str:
    return f"epoch-{epoch:03d}.weights.h5"


def _rate(schedule: str, learning_rate: float, steps: int, epochs: int):
    if schedule == "constant":
        return learning_rate
    return keras.optimizers.schedules.CosineDecay(
        0.0,
        decay_steps=max(1, steps * (epochs - 1)),
        warmup_target=learning_rate,
        warmup_steps=steps,
    )


def _random_layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _random_layers(layer)
        elif hasattr(layer, "seed_generator"):
            yield layer


def _seed_random_layers(model: keras.Model, seed: int, epoch: int) -> None:
    """Dropout draws from a state that runs on; set, it is the same after a resumption."""
    for place, layer in enumerate(_random_layers(model)):
        state = np.random.SeedSequence([seed, epoch, place]).generate_state(2)
        layer.seed_generator.state.assign(state.astype(layer.seed_generator.state.dtype))


def _save(folder: Path, model: keras.Model, history: list[dict]) -> None:
    """The state after an epoch, in one file, so that its parts can never disagree."""
    arrays = {f"weight_{i}": value for i, value in enumerate(model.get_weights())}
    variables = model.optimizer.variables
    arrays |= {f"optimizer_{i}": np.asarray(value) for i, value in enumerate(variables)}
    temporary = folder / f"temporary-{STATE}"
    np.savez(temporary, history=json.dumps(history), **arrays)
    temporary.replace(folder / STATE)
    write_text(folder / HISTORY, json.dumps(history))


def _resume(folder: Path, model: keras.Model) -> list[dict]:
    """Put the model where an interrupted run left it; the history up to there."""
    if not (folder / STATE).exists():
        return []
    with np.load(folder / STATE) as state:
        model.set_weights([state[f"weight_{i}"] for i in range(len(model.get_weights()))])
        model.optimizer.build(model.trainable_variables)
        for i, variable in enumerate(model.optimizer.variables):
            variable.assign(state[f"optimizer_{i}"])
        history = json.loads(str(state["history"]))
    print(f"going on after epoch {len(history)}", flush=True)
    return history


def _say(history: list[dict], epochs: int) -> None:
    row = history[-1]
    left = duration(row["seconds"] * (epochs - len(history)))
    print(
        f"epoch {len(history)}/{epochs}: accuracy {row['accuracy']:.4f}, loss {row['loss']:.4f}, "
        f"validation accuracy {row['val_accuracy']:.4f}, loss {row['val_loss']:.4f}, "
        f"{row['seconds']:.1f} s, about {left} left",
        flush=True,
    )
