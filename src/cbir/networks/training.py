"""What a training is fed, and what is seen of it meanwhile."""

import functools
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import numpy as np
import pandas as pd

from cbir import StudyError
from cbir.cache import Artifact, backend, cached, file_digest, read, write_text
from cbir.networks import optimisers
from cbir.networks.inference import is_out_of_memory
from cbir.networks.models import Network, rebuild
from cbir.networks.weights import BACKBONE_FILE
from cbir.progress import Ticker, duration

if TYPE_CHECKING:
    from cbir.images.dataset import Dataset


class Batches(keras.utils.PyDataset):
    """Batches of (inputs, labels), read from a memory-mapped array as they are asked for.

    Args:
        inputs: (n, ...) images or features.
        labels: (n,) int.
        positions: which rows, in this order.
        batch_size: rows in a batch; the last one may be smaller.
        workers: threads that read ahead. With two or more Keras reads ahead by itself and switches
            tf.data's autotuning off, whose thread otherwise holds up the end of each epoch (by up
            to its length). Where an epoch takes less than a second, this costs more than it brings.
    """

    def __init__(self, inputs, labels, positions, batch_size, workers=2):
        super().__init__(workers=workers)
        self.inputs, self.labels = inputs, labels
        self.positions, self.batch_size = positions, batch_size

    def __len__(self) -> int:
        return math.ceil(len(self.positions) / self.batch_size)

    def __getitem__(self, batch: int):
        rows = self.positions[batch * self.batch_size : (batch + 1) * self.batch_size]
        return np.asarray(self.inputs[rows], np.float32), np.asarray(self.labels[rows])


class EpochProgress(keras.callbacks.Callback):
    """A line every half minute while an epoch is under way."""

    def __init__(self, batches: int, what: str):
        super().__init__()
        self.ticker = Ticker(batches, what, every=30)

    def on_train_batch_end(self, batch, logs=None):
        self.ticker.reached(batch + 1)


CHECKPOINT, HISTORY = "state.npz", "history.json"


def _random_states(model: keras.Model) -> Iterator[keras.Variable]:
    """The states that dropout and augmentation draw from."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _random_states(layer)
        for name in ("seed_generator", "generator"):
            if isinstance(found := getattr(layer, name, None), keras.random.SeedGenerator):
                yield found.state


def seed_random_layers(model: keras.Model, seed: int, epoch: int) -> None:
    """Random layers draw from a state that runs on; set, it is the same after a resumption."""
    for place, state in enumerate(_random_states(model)):
        drawn = np.random.SeedSequence([seed, epoch, place]).generate_state(2)
        state.assign(drawn.astype(state.dtype))


def save_checkpoint(folder: Path, model: keras.Model, history: list[dict]) -> None:
    """The state after an epoch, in one file, so that its parts can never disagree."""
    arrays = {f"weight_{i}": value for i, value in enumerate(model.get_weights())}
    variables = model.optimizer.variables
    arrays |= {f"optimizer_{i}": np.asarray(value) for i, value in enumerate(variables)}
    temporary = folder / f"temporary-{CHECKPOINT}"
    np.savez(temporary, history=json.dumps(history), **arrays)
    temporary.replace(folder / CHECKPOINT)
    write_text(folder / HISTORY, json.dumps(history))


def resume_from_checkpoint(folder: Path, model: keras.Model) -> list[dict]:
    """Put the model where an interrupted run left it; the history up to there."""
    if not (folder / CHECKPOINT).exists():
        return []
    with np.load(folder / CHECKPOINT) as state:
        model.set_weights([state[f"weight_{i}"] for i in range(len(model.get_weights()))])
        model.optimizer.build(model.trainable_variables)
        for i, variable in enumerate(model.optimizer.variables):
            variable.assign(state[f"optimizer_{i}"])
        history = json.loads(str(state["history"]))
    print(f"going on after epoch {len(history)}", flush=True)
    return history


FINGERPRINT = "weights.sha256"
FINAL = "final.weights.h5"
# The best state so far of what is trained, where early stopping may come back to it.
BEST = "best.weights.h5"
# On kept features a step takes a few milliseconds, of which what lies between two steps is a good
# part. Only TensorFlow is asked to take several at once: PyTorch cannot.
STEPS_AT_ONCE = 32


@dataclass(frozen=True)
class Training:
    """A finished training.

    Attributes:
        artifact: where its weights stand, and what they were made from.
        history: a row per epoch: accuracy, loss, val_accuracy, val_loss, seconds.
        best_epoch: after which epoch the network was in its final state.
        features: of the frozen backbone, that it was trained on; None for images.
        head: the training of the head alone that came before; None where there was none.
    """

    artifact: Artifact
    history: pd.DataFrame
    best_epoch: int
    features: Artifact | None
    head: "Training | None"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the file of the final weights."""
        return (self.artifact.folder / FINGERPRINT).read_text("utf-8")

    @property
    def seconds(self) -> float:
        """Of all epochs, those of the head alone and a frozen backbone's features included."""
        before = self.head.seconds if self.head else 0
        features = self.features.seconds if self.features else 0
        # Of a training that was resumed, the artifact knows the last part alone.
        return float(self.history["seconds"].sum()) + features + before

    @property
    def artifacts(self) -> dict[str, Artifact]:
        """What it consists of: features and head where there are any, and the training itself."""
        before = self.head.artifacts if self.head else {}
        if before:
            before["head"] = before.pop("training")
        own = {"features": self.features} if self.features else {}
        return before | own | {"training": self.artifact}

    @property
    def stages(self) -> pd.DataFrame:
        """The history with that of the head before it, and what was trained in each epoch."""
        own = "head" if self.features else "backbone and head"
        stages = [self.history.assign(stage=own)]
        if self.head:
            stages.insert(0, self.head.stages)
        rows = pd.concat(stages, ignore_index=True)
        return rows.set_index(pd.RangeIndex(1, len(rows) + 1, name="epoch"))

    def weights_path(self, epoch: int | None = None) -> Path:
        """The weights after an epoch that was to be measured, or the final ones."""
        return self.artifact.folder / (_weights_name(epoch) if epoch else FINAL)


def train(
    network: Network,
    dataset: "Dataset",
    settings: dict,
    *,
    seed: int,
    features: Artifact | None = None,
    head: Training | None = None,
) -> Training:
    """Train a network on the training images; it holds the final weights afterwards.

    Args:
        network: from `models.build`.
        dataset: trains on `dataset.train`, reports on `dataset.validation`.
        settings: all of these:
            `epochs`: passes over the training images;
            `batch_size`: images in a step;
            `measured_epochs`: epochs whose weights are kept besides the final ones;
            `early_stopping`: epochs without a better validation accuracy after which the training
            ends with the weights of its best epoch; 0 trains for all epochs;
            and those of `optimisers.optimizer`, `optimisers.loss` and `optimisers.augmented`.
        seed: of the order of the images and of the random layers.
        features: from `embeddings.frozen_features`, to train the head on; None to train on the
            images themselves.
        head: an earlier training of the same network's head alone, to go on from.

    Raises:
        StudyError: an epoch to be measured is beyond the last, features are to be augmented, the
            loss is not a finite number, or a batch does not fit in memory. The last two name the
            parameter as params/ has it, where those of a training on features begin with `head_`.
    """
    epochs, measured_epochs = settings["epochs"], settings["measured_epochs"]
    batch_size, early_stopping = settings["batch_size"], settings["early_stopping"]
    augmentation = settings["augmentation"]
    if beyond := [epoch for epoch in measured_epochs if epoch > epochs]:
        raise StudyError(f"measured_epochs: {beyond} lies beyond epochs: {epochs}")
    if augmentation and features:
        raise StudyError(
            "augmentation: a frozen backbone sees each image once, so no image can change from "
            "epoch to epoch: set augmentation: [] or train: all"
        )
    inputs, model = dataset.images, network.model
    if features:
        inputs = np.load(features.folder / "features.npy", mmap_mode="r")
        model = network.head

    def make(folder: Path) -> None:
        if head:
            network.model.load_weights(head.weights_path())
        steps = math.ceil(len(dataset.train) / batch_size)
        trained = optimisers.augmented(model, augmentation)
        trained.compile(
            optimisers.optimizer(settings, steps),
            loss=optimisers.loss(settings),
            metrics=["accuracy"],
            steps_per_execution=STEPS_AT_ONCE if features and backend() == "tensorflow" else 1,
        )
        is_quick = features and inputs.ndim == 2  # not so where feature maps are kept
        read = functools.partial(
            Batches, inputs, dataset.labels, batch_size=batch_size, workers=1 if is_quick else 2
        )
        validation = read(positions=dataset.validation)
        history = resume_from_checkpoint(folder, trained)
        while len(history) < epochs and not _is_over(history, early_stopping):
            epoch, started = len(history) + 1, time.perf_counter()
            order = np.random.default_rng([seed, epoch]).permutation(dataset.train)
            seed_random_layers(trained, seed, epoch)
            row = _fit_epoch(
                trained,
                read(positions=order),
                validation,
                epoch,
                EpochProgress(steps, f"epoch {epoch}/{epochs}, batches"),
                prefix="head_" if features else "",
            )
            history.append(row | {"seconds": time.perf_counter() - started})
            if epoch in measured_epochs:
                network.model.save_weights(folder / _weights_name(epoch))
            if early_stopping and _best(history, early_stopping) == epoch:
                model.save_weights(folder / BEST)
            save_checkpoint(folder, trained, history)
            _say(history, epochs)
        if early_stopping:
            model.load_weights(folder / BEST)
        network.model.save_weights(folder / FINAL)
        network.body.save_weights(folder / BACKBONE_FILE)
        write_text(folder / FINGERPRINT, file_digest(folder / FINAL))

    artifact = cached(
        "training",
        make,
        parameters={
            **network.parameters,
            **settings,
            "measured_epochs": sorted(measured_epochs),
            "training_seed": seed,
        },
        reads=[
            dataset.split_fingerprint,
            network.weights.sha256,
            features.key if features else "",
            head.artifact.key if head else "",
        ],
        package="networks",
    )
    for name in (CHECKPOINT, BEST):
        (artifact.folder / name).unlink(missing_ok=True)
    rows = json.loads((artifact.folder / HISTORY).read_text("utf-8"))
    history = pd.DataFrame(rows, index=pd.RangeIndex(1, len(rows) + 1, name="epoch"))
    network.model.load_weights(artifact.folder / FINAL)
    return Training(artifact, history, _best(rows, early_stopping), features, head)


def open_network(folder: Path) -> Network:
    """The trained network that a training left in the folder of its artifact.

    Raises:
        StudyError: its weights are gone.
    """
    artifact, path = read(folder), folder / FINAL
    if artifact is None or not path.is_file():
        raise StudyError(f"no trained network in {folder}: run the study again")
    return rebuild(artifact.manifest["parameters"], path)


def _fit_epoch(
    model, batches, validation, epoch: int, progress, *, prefix: str
) -> dict[str, float]:
    """One pass over the batches: a row of the history.

    Args:
        prefix: of the keys that an error names: "head_" where the head alone is trained.

    Raises:
        StudyError: the loss is not a number, or memory is too small for a batch.
    """
    try:
        logs = model.fit(
            batches,
            validation_data=validation,
            initial_epoch=epoch - 1,
            epochs=epoch,
            shuffle=False,
            verbose=0,
            callbacks=[progress],
        ).history
    except Exception as error:
        if is_out_of_memory(error):
            raise StudyError(
                f"out of memory with {prefix}batch_size {batches.batch_size}: lower it (results "
                f"depend on it, so it stands in params/){'' if prefix else ', or input_size'}"
            ) from error
        raise
    row = {name: values[-1] for name, values in logs.items()}
    if not np.isfinite(row["loss"]):
        raise StudyError(f"training diverged in epoch {epoch}: lower {prefix}learning_rate")
    return row


def _best(history: list[dict], early_stopping: int) -> int:
    """The epoch of the final weights: the last, or with early stopping the first of the best."""
    if not early_stopping:
        return len(history)
    accuracies = [row["val_accuracy"] for row in history]
    return 1 + accuracies.index(max(accuracies))


def _is_over(history: list[dict], early_stopping: int) -> bool:
    since = len(history) - _best(history, early_stopping) if history else 0
    return bool(early_stopping) and since >= early_stopping


def _weights_name(epoch: int) -> str:
    return f"epoch-{epoch:03d}.weights.h5"


def _say(history: list[dict], epochs: int) -> None:
    row = history[-1]
    left = duration(row["seconds"] * (epochs - len(history)))
    print(
        f"epoch {len(history)}/{epochs}: accuracy {row['accuracy']:.4f}, loss {row['loss']:.4f}, "
        f"validation accuracy {row['val_accuracy']:.4f}, loss {row['val_loss']:.4f}, "
        f"{row['seconds']:.1f} s, about {left} left",
        flush=True,
    )
