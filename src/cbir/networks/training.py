"""Training a network: optimizer, loss, augmentation, and checkpoints.

An interrupted training resumes with the same numbers.
"""

import functools
import hashlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import keras
import numpy as np
import pandas as pd
from keras import layers, ops

from cbir import StudyError
from cbir.cache import SCRATCH, Artifact, backend, cached, file_digest, read, replacing, write_text
from cbir.images.dataset import Dataset
from cbir.networks.choices import AUGMENTATIONS, HEAD_STEPS, OPTIMIZERS, SCHEDULES
from cbir.networks.inference import BATCH_SIZE, is_out_of_memory, open_features, predict_batch
from cbir.networks.models import STANDARDISATION, Network, broken_layer, rebuild
from cbir.networks.weights import BACKBONE_FILE
from cbir.progress import Ticker, duration

# The files in the folder of a training.
FINAL, HISTORY = "final.weights.h5", "history.json"
# The state after the last epoch and the weights of the best epoch, which are deleted at the end.
CHECKPOINT, SUM_BYTES = f"{SCRATCH}/state", 32
# A step on features takes a few milliseconds, so the time between two steps matters. Only
# TensorFlow executes several steps at once: PyTorch cannot.
STEPS_AT_ONCE = 32


@dataclass(frozen=True)
class Training:
    """A finished training.

    Attributes:
        artifact: the stored weights and their manifest.
        history: a row per epoch: accuracy, loss, val_accuracy, val_loss, seconds.
        best_epoch: the epoch of the final weights.
        features: those of the frozen backbone that the head was trained on; None for images.
        head: the earlier training of only the head; None if there was none.
    """

    artifact: Artifact
    history: pd.DataFrame
    best_epoch: int
    features: Artifact | None
    head: "Training | None"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the file of the final weights."""
        return self.artifact.manifest["files"][FINAL]["sha256"]

    @property
    def seconds(self) -> float:
        """Seconds of all epochs, including a frozen backbone's features and the head's training."""
        # The artifact of a resumed training records only the duration of its last part.
        features = self.features.seconds if self.features else 0
        head = self.head.seconds if self.head else 0
        return float(self.history["seconds"].sum()) + features + head

    @property
    def artifacts(self) -> dict[str, Artifact]:
        """The artifacts by step: features and head, if there are any, and training."""
        artifacts = self.head.artifacts if self.head else {}
        if artifacts:
            artifacts["head"] = artifacts.pop("training")
        if self.features:
            artifacts["features"] = self.features
        return artifacts | {"training": self.artifact}

    @property
    def stages(self) -> pd.DataFrame:
        """The history, preceded by that of the head, with a column `stage` for what was trained."""
        stage = "head" if self.features else "backbone and head"
        stages = [self.head.stages] if self.head else []
        rows = pd.concat([*stages, self.history.assign(stage=stage)], ignore_index=True)
        return rows.set_index(pd.RangeIndex(1, len(rows) + 1, name="epoch"))

    def weights_path(self, epoch: int | None = None) -> Path:
        """The file of the weights after a measured epoch; by default of the final weights."""
        return self.artifact.folder / (_weights_name(epoch) if epoch else FINAL)


class Batches(keras.utils.PyDataset):
    """Batches of (inputs, labels) at these positions, read from a memory-mapped array when needed.

    With two or more workers, threads that read ahead, Keras disables tf.data's autotuning, whose
    thread otherwise delays the end of each epoch (by up to its length). If an epoch takes less than
    a second, this costs more than it saves.
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
    """A line of output every half minute during an epoch."""

    def __init__(self, batches: int, what: str):
        super().__init__()
        self.ticker = Ticker(batches, what, every=30)

    def on_train_batch_end(self, batch, logs=None):
        self.ticker.reached(batch + 1)


def train(
    network: Network,
    dataset: Dataset,
    settings: dict,
    *,
    seed: int,
    features: Artifact | None = None,
    head: Training | None = None,
) -> Training:
    """Train a network on the training images; afterwards, it has the final weights.

    Args:
        settings: the training parameters of `studies.params.PARAMETERS`, without those of the head.
        seed: of the image order and of the random layers.
        features: from `inference.frozen_features`, to train the head on; None for images.
        head: an earlier training of only the head of the same network, to continue from.

    Raises:
        StudyError: a loss or a weight is NaN or infinite, or a batch does not fit in memory. The
            message names the parameter, with the prefix `head_` if the head is trained on features.
    """
    epochs, measured_epochs = settings["epochs"], settings["measured_epochs"]
    batch_size, early_stopping = settings["batch_size"], settings["early_stopping"]
    inputs, model, prefix = dataset.images, network.model, ""
    if features:
        inputs = open_features(features)
        model, prefix = network.head, "head_"
    passes = math.ceil(HEAD_STEPS * batch_size / len(dataset.train)) if features else 1
    steps = math.ceil(passes * len(dataset.train) / batch_size)

    def make(folder: Path) -> None:
        (folder / SCRATCH).mkdir(exist_ok=True)
        if head:
            network.model.load_weights(head.weights_path())
        if features:
            _standardise(network.head, inputs, dataset.train)
        trained = augmented(model, settings["augmentation"])
        trained.compile(
            make_optimizer(settings, steps),
            loss=make_loss(settings),
            metrics=["accuracy"],
            steps_per_execution=STEPS_AT_ONCE if features and backend() == "tensorflow" else 1,
        )
        # An epoch on pooled features takes less than a second.
        workers = 1 if features and inputs.ndim == 2 else 2
        batches = functools.partial(
            Batches, inputs, dataset.labels, batch_size=batch_size, workers=workers
        )
        validation = batches(positions=dataset.validation)
        _create_variables(trained, validation)
        history, best = _resume(folder, trained)
        while not _is_over(history, settings):
            epoch, started = len(history) + 1, time.perf_counter()
            order = _shuffled(dataset.train, passes, [seed, epoch])
            _seed_random_layers(trained, seed, epoch)
            ticker = EpochProgress(steps, f"epoch {epoch}/{epochs}, batches")
            training = batches(positions=order)
            row = _fit_epoch(trained, training, validation, epoch, ticker, prefix=prefix)
            history.append(row | {"seconds": time.perf_counter() - started})
            if epoch in measured_epochs:
                network.model.save_weights(folder / _weights_name(epoch))
            if early_stopping and _best(history, early_stopping) == epoch:
                best = model.get_weights()
            if not _is_over(history, settings):
                save_checkpoint(folder, trained, history, best)
            _print_epoch(history, epochs)
        if early_stopping:
            model.set_weights(best)
        network.model.save_weights(folder / FINAL)
        network.body.save_weights(folder / BACKBONE_FILE)
        write_text(folder / HISTORY, json.dumps(history))

    parameters = {**network.parameters, **settings, "training_seed": seed}
    parameters |= {"measured_epochs": sorted(measured_epochs)}
    reads = [dataset.split_fingerprint, network.weights.sha256]
    reads += [features.key if features else "", head.artifact.key if head else ""]
    artifact = cached("training", make, parameters=parameters, reads=reads, package="networks")
    rows = json.loads((artifact.folder / HISTORY).read_text("utf-8"))
    history = pd.DataFrame(rows, index=pd.RangeIndex(1, len(rows) + 1, name="epoch"))
    network.model.load_weights(artifact.folder / FINAL)
    return Training(artifact, history, _best(rows, early_stopping), features, head)


def make_optimizer(settings: dict, steps: int) -> keras.optimizers.Optimizer:
    """An optimizer whose learning rate follows a schedule; `steps` is their number per epoch.

    Weight decay is decoupled from the gradient.
    """
    rate = settings["learning_rate"]
    if schedule := SCHEDULES[settings["schedule"]]:
        total = steps * settings["epochs"]
        warmup = int(total * schedule.warmup_share)
        if schedule.warmup_epochs:
            warmup = min(warmup, steps * schedule.warmup_epochs)
        lengths = {"decay_steps": max(1, total - warmup), "warmup_steps": max(1, warmup)}
        rate = keras.optimizers.schedules.CosineDecay(0.0, warmup_target=rate, **lengths)
    # A weight decay of 0 would add an operation that changes nothing.
    decay = {"weight_decay": settings["weight_decay"]} if settings["weight_decay"] else {}
    row = OPTIMIZERS[settings["optimizer"]]
    return row.make(keras.optimizers, learning_rate=rate, **decay)


def make_loss(settings: dict):
    """Cross-entropy: (n,) int labels, (n, n_classes) probabilities -> (n,) losses."""
    if not (smoothing := settings["label_smoothing"]):
        return "sparse_categorical_crossentropy"

    def smoothed(labels, probabilities):
        targets = ops.one_hot(ops.reshape(labels, (-1,)), probabilities.shape[-1])
        return keras.losses.categorical_crossentropy(
            targets, probabilities, label_smoothing=smoothing
        )

    return smoothed


def augmented(model: keras.Model, augmentation: list[str]) -> keras.Model:
    """A model that shares weights, and augments its images in training by `AUGMENTATIONS`."""
    if not augmentation:
        return model
    images = keras.Input(model.input_shape[1:])
    augmented_images = images
    for name in augmentation:
        augmented_images = AUGMENTATIONS[name].make(layers)(augmented_images)
    training_model = keras.Model(images, model(augmented_images))
    # Keras scales the loss by this policy; without that, float16 loses small gradients.
    training_model.dtype_policy = model.dtype_policy
    return training_model


def open_network(folder: Path) -> Network:
    """Rebuild a trained network from the folder of its training; StudyError if it is missing."""
    if (artifact := read(folder)) is None:
        raise StudyError(f"no trained network in {folder}: run the study again")
    return rebuild(artifact.manifest["parameters"], folder / FINAL)


def _standardise(head: keras.Model, inputs: np.ndarray, positions: np.ndarray) -> None:
    """Set the statistics of the head's standardisation to those of some features or pooled maps."""
    layer = head.get_layer(STANDARDISATION)
    pool = keras.Model(head.inputs, layer.input)
    sums, squares = np.zeros((2, layer.input.shape[-1]))
    for start in range(0, len(positions), BATCH_SIZE):
        (pooled,) = predict_batch(pool, inputs[positions[start : start + BATCH_SIZE]])
        sums += pooled.sum(axis=0, dtype=np.float64)
        squares += np.square(pooled, dtype=np.float64).sum(axis=0)
    mean = sums / len(positions)
    variance = squares / len(positions) - mean**2
    # A channel that hardly varies carries no information and must not be amplified.
    least = max(1e-3 * variance.mean(), np.finfo(np.float32).tiny)
    layer.set_weights([mean, np.maximum(variance, least)])


def _create_variables(model: keras.Model, batches: Batches) -> None:
    """Create the variables of the optimizer and the metrics before the first step.

    If its first call creates variables, TensorFlow traces the training step a second time.
    """
    model.optimizer.build(model.trainable_variables)
    model.evaluate(batches, steps=1, verbose=0)


def _fit_epoch(
    model: keras.Model, batches: Batches, validation: Batches, epoch: int, ticker, *, prefix: str
) -> dict[str, float]:
    """Train for one epoch; a row of the history without its seconds. Raises as `train`."""
    try:
        logs = model.fit(
            batches, validation_data=validation, initial_epoch=epoch - 1, epochs=epoch,
            shuffle=False, verbose=0, callbacks=[ticker],
        ).history  # fmt: skip
    except Exception as error:
        if is_out_of_memory(error):
            raise StudyError(
                f"out of memory with {prefix}batch_size {batches.batch_size}: lower it in params/ "
                f"(results depend on it){'' if prefix else ', or lower input_size'}"
            ) from error
        raise
    row = {name: values[-1] for name, values in logs.items()}
    broken = broken_layer(model)
    if broken or not np.isfinite(list(row.values())).all():
        where = f"layer {broken}" if broken else "the loss"
        raise StudyError(
            f"training diverged in epoch {epoch} (NaN or infinite values in {where}): "
            f"lower {prefix}learning_rate"
        )
    return row


def save_checkpoint(
    folder: Path, model: keras.Model, history: list[dict], best: list[np.ndarray]
) -> None:
    """Save the state after an epoch in a single file, so that its parts are always consistent.

    `best` are the weights of the best epoch so far; empty without early stopping.
    """
    arrays = {f"weight_{i}": value for i, value in enumerate(model.get_weights())}
    variables = model.optimizer.variables
    arrays |= {f"optimizer_{i}": np.asarray(value) for i, value in enumerate(variables)}
    arrays |= {f"best_{i}": value for i, value in enumerate(best)}
    names = [_weights_name(epoch) for epoch in range(1, len(history) + 1)]
    measured = {name: file_digest(folder / name) for name in names if (folder / name).exists()}
    with replacing(folder / CHECKPOINT) as temporary, temporary.open("w+b") as file:
        file.seek(SUM_BYTES)
        np.savez(file, history=json.dumps(history), measured=json.dumps(measured), **arrays)
        checksum = _checksum(file)
        file.seek(0)
        file.write(checksum)


def _checksum(file: BinaryIO) -> bytes:
    """SHA-256 of a checkpoint's archive, which does not check its own headers."""
    file.seek(SUM_BYTES)
    return hashlib.file_digest(file, "sha256").digest()


def _resume(folder: Path, model: keras.Model) -> tuple[list[dict], list[np.ndarray]]:
    """Load the checkpoint of an interrupted training; return its history and its best weights.

    Both are empty if there is none, or if it or a file of weights that belongs to it is damaged.
    """
    if not (folder / CHECKPOINT).exists():
        return [], []
    try:
        with (folder / CHECKPOINT).open("rb") as file:
            if file.read(SUM_BYTES) != _checksum(file):
                raise ValueError("its SHA-256 has changed")
            file.seek(SUM_BYTES)
            state = dict(np.load(file))
        for name, expected in json.loads(str(state["measured"])).items():
            if file_digest(folder / name) != expected:
                raise ValueError(f"{name} has changed")
    except (OSError, ValueError) as error:
        print(f"the checkpoint in {folder} is damaged ({error}): starting again", flush=True)
        return [], []
    model.set_weights([state[f"weight_{i}"] for i in range(len(model.get_weights()))])
    for i, variable in enumerate(model.optimizer.variables):
        variable.assign(state[f"optimizer_{i}"])
    history = json.loads(str(state["history"]))
    print(f"resuming after epoch {len(history)}", flush=True)
    return history, [value for name, value in state.items() if name.startswith("best_")]


def _shuffled(positions: np.ndarray, passes: int, seed: list[int]) -> np.ndarray:
    """All positions in random order, `passes` times."""
    random = np.random.default_rng(seed)
    return np.concatenate([random.permutation(positions) for _ in range(passes)])


def _seed_random_layers(model: keras.Model, seed: int, epoch: int) -> None:
    """Seed dropout and augmentation for each epoch, so that a resumed training draws the same."""
    for place, state in enumerate(_random_states(model)):
        drawn = np.random.SeedSequence([seed, epoch, place]).generate_state(2)
        state.assign(drawn.astype(state.dtype))


def _random_states(model: keras.Model) -> Iterator[keras.Variable]:
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _random_states(layer)
        for name in ("seed_generator", "generator"):
            generator = getattr(layer, name, None)
            if isinstance(generator, keras.random.SeedGenerator):
                yield generator.state


def _best(history: list[dict], early_stopping: int) -> int:
    """The epoch of the final weights: the last one or, with early stopping, the first best one."""
    if not early_stopping:
        return len(history)
    accuracies = [row["val_accuracy"] for row in history]
    return 1 + accuracies.index(max(accuracies))


def _is_over(history: list[dict], settings: dict) -> bool:
    if len(history) >= settings["epochs"]:
        return True
    early_stopping = settings["early_stopping"]
    epochs_since = len(history) - _best(history, early_stopping) if history else 0
    return bool(early_stopping) and epochs_since >= early_stopping


def _weights_name(epoch: int) -> str:
    return f"epoch-{epoch:03d}.weights.h5"


def _print_epoch(history: list[dict], epochs: int) -> None:
    row = history[-1]
    left = duration(row["seconds"] * (epochs - len(history)))
    print(
        f"epoch {len(history)}/{epochs}: accuracy {row['accuracy']:.4f}, loss {row['loss']:.4f}, "
        f"validation accuracy {row['val_accuracy']:.4f}, loss {row['val_loss']:.4f}, "
        f"{row['seconds']:.1f} s, about {left} left",
        flush=True,
    )
