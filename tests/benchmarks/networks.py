"""Speed of training and embedding, compared with the speed of their parts.

`make bench` runs it. For each backbone, side by side in every repetition:

- embedding a folder of 32-pixel PNG files, reading and decoding included, against what the two
  rates allow: 1 / (1 / predict + 1 / (2 x decode)), with `predict` Keras' `model.predict` on arrays
  in memory and `decode` Pillow on one core: `embed` streams, as an index of a folder does; `embed,
  study` decodes all to disk first, for all that is done with the images later, as a study does;
- an epoch of our training against a bare loop over `train_on_batch` on arrays in memory;
- the same in a process of its own with Keras on PyTorch.

And ten trainings of a head on 50,000 frozen features, by the training that a study runs.
"""

import argparse
import contextlib
import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from cbir.studies import params

# (images embedded, images trained on, batch size): each measurement takes seconds. An epoch begins
# with about 0.2 s that do not depend on its length, and would dominate shorter ones.
SIZES = {
    "cnn": (4096, 8192, 64),
    "cnn_strong": (4096, 3072, 64),
    "mobilenet": (8192, 8192, 64),
    "resnet50": (2048, 512, 64),
    "vgg16": (1024, 512, 64),
}
# Images of the first run, which builds graphs: whole batches of each kind.
FIRST = 512
SHAPE = {name: params.PARAMETERS[name].default for name in params.names_in("network")}
del SHAPE["backbone"]
SHAPE |= {"image_size": 32, "n_classes": 10, "seed": 0}
# Heads to train by backbone: ten on the features of the first, two on the wider ones of the others.
HEADS, FEATURES, VALIDATION = {"mobilenet": 10, "vgg16": 2, "resnet50": 2}, 50_000, 5_000
PARAMS = Path(__file__).parents[2] / "params"
GOAL, HEAD_GOAL = 0.95, 120


def pictures(n: int) -> np.ndarray:
    """(n, 32, 32, 3) uint8: soft shapes with a little noise, in PNG as large as photographs."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (n, 8, 8, 3)).astype(np.uint8)
    soft = [np.asarray(Image.fromarray(tile).resize((32, 32), Image.BICUBIC)) for tile in coarse]
    noisy = np.stack(soft).astype(np.int16) + random.integers(-6, 7, (n, 32, 32, 3))
    return noisy.clip(0, 255).astype(np.uint8)


def seconds(work: Callable[..., object], *arguments) -> float:
    started = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - started


def build(backbone: str):
    from cbir.networks import models

    return models.build(backbone, **SHAPE)


def embed_folder(network, paths: list[Path]) -> None:
    """From files to vectors, read ahead while the network works, as `cbir index` does."""
    from cbir.images.pictures import read_squares
    from cbir.networks import inference

    squares = read_squares(paths, SHAPE["image_size"])
    for _ in range(0, len(paths), inference.BATCH_SIZE):
        readings = itertools.islice(squares, inference.BATCH_SIZE)
        images = np.stack([image for image, _ in readings])
        inference.predict_batch(network.encoder, images)


def embed_as_a_study(network, paths: list[Path], folder: Path) -> None:
    """From files to one array of images on disk, and from there to vectors on disk."""
    from cbir.images.folders import Pictures
    from cbir.images.pictures import decode_pictures
    from cbir.networks import inference

    none = np.zeros(len(paths), np.int64)
    names = [path.name for path in paths]
    pictures = Pictures(["all"], paths, none, names)
    decode_pictures(pictures, range(len(paths)), SHAPE["image_size"], folder / "images.npy")
    images = np.load(folder / "images.npy", mmap_mode="r")
    outputs = {folder / "raw.npy": np.float32, folder / "probabilities.npy": np.float32}
    inference.predict(network.encoder, [images], outputs, "embeddings")


def decode_on_one_core(paths: list[Path]) -> None:
    for path in paths:
        with Image.open(path) as picture:
            np.asarray(picture.convert("RGB"))


def epochs_of(network, images: np.ndarray, batch_size: int) -> dict[str, Callable[[int], object]]:
    """A bare epoch over the first n images and ours, for the same model and batches."""
    from cbir.networks.training import Batches

    labels = np.arange(len(images)) % 10
    network.model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    floats = images.astype(np.float32)

    def bare(n: int) -> None:
        for start in range(0, n, batch_size):
            rows = slice(start, start + batch_size)
            network.model.train_on_batch(floats[rows], labels[rows])

    def ours(n: int) -> None:
        batches = Batches(images, labels, np.arange(n), batch_size)
        network.model.fit(batches, verbose=0, shuffle=False)

    return {"train_on_batch": bare, "train": ours}


def measure(backbone: str, repeat: int) -> dict[str, float]:
    """Images per second: medians over repetitions, each of which measures everything in turn."""
    n_embedded, n_trained, batch_size = SIZES[backbone]
    images, network = pictures(max(n_embedded, n_trained)), build(backbone)
    floats = images.astype(np.float32)
    training = epochs_of(network, images[:n_trained], batch_size)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{number:05d}.png") for number in range(n_embedded)]
        for path, image in zip(paths, images, strict=False):
            Image.fromarray(image).save(path)
        encoder = network.encoder
        works = {
            "predict": lambda n: encoder.predict(floats[:n], batch_size=256, verbose=0),
            "decode": lambda n: decode_on_one_core(paths[:n]),
            "embed": lambda n: embed_folder(network, paths[:n]),
            "embed, study": lambda n: embed_as_a_study(network, paths[:n], Path(folder)),
            **training,
        }
        counts = {name: n_trained if name in training else n_embedded for name in works}
        for work in works.values():
            work(FIRST)
        rates = [
            {name: counts[name] / seconds(work, counts[name]) for name, work in works.items()}
            for _ in range(repeat)
        ]
    return pd.DataFrame(rates).median().to_dict()


def measure_torch(backbone: str, repeat: int) -> dict[str, float]:
    """The same with Keras on PyTorch, in a process of its own."""
    command = [sys.executable, __file__, "--measure", backbone, "--repeat", str(repeat)]
    process = subprocess.run(
        command, env=os.environ | {"KERAS_BACKEND": "torch"}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return json.loads(process.stdout.splitlines()[-1])


def row(backbone: str, repeat: int) -> dict[str, float]:
    print(f"measuring {backbone}", flush=True)
    ours, torch = measure(backbone, repeat), measure_torch(backbone, max(1, repeat - 2))
    allowed = 1 / (1 / ours["predict"] + 1 / (2 * ours["decode"]))
    return {
        "predict": ours["predict"],
        "decode": ours["decode"],
        "embed": ours["embed"],
        "embed / allowed": ours["embed"] / allowed,
        "embed, study": ours["embed, study"],
        "study / allowed": ours["embed, study"] / allowed,
        "train_on_batch": ours["train_on_batch"],
        "train": ours["train"],
        "train / bare": ours["train"] / ours["train_on_batch"],
        "embed / torch": ours["embed"] / torch["embed"],
        "train / torch": ours["train"] / torch["train"],
    }


def heads(backbone: str, count: int) -> float:
    """Seconds to train `count` heads, one after the other, on the same random features."""
    from cbir.cache import Artifact
    from cbir.images.dataset import Dataset
    from cbir.networks import models, training
    from cbir.studies import params

    parameters = {key: row.default for key, row in params.PARAMETERS.items()}
    parameters |= yaml.safe_load((PARAMS / "cifar10" / "mobilenet.yaml").read_text("utf-8"))
    # As `Architecture` trains a head.
    settings = {name: parameters[name] for name in params.names_in("training")}
    head_names = [name for name in settings if name.startswith("head_")]
    settings |= {name.removeprefix("head_"): settings.pop(name) for name in head_names}
    settings |= {"measured_epochs": [], "augmentation": []}
    shape = SHAPE | {"train": "head", "dropout": parameters["dropout"]}

    random, positions = np.random.default_rng(0), np.arange(FEATURES)
    dataset = Dataset(
        parameters={}, classes=[str(label) for label in range(shape["n_classes"])],
        images=np.zeros((FEATURES, 1, 1, 3), np.uint8), names=[],
        labels=random.integers(0, shape["n_classes"], FEATURES),
        train=positions[VALIDATION:], validation=positions[:VALIDATION],
        gallery=positions, queries=positions[:0], fingerprint="random",
    )  # fmt: skip

    def train(seed: int, folder: Path) -> float:
        network = models.build(backbone, **shape | {"seed": seed})
        if not (folder / "features.npy").exists():
            width = network.backbone.output_shape[-1]
            np.save(folder / "features.npy", random.random((FEATURES, width), np.float32))
        features = Artifact(folder, {"key": "random", "seconds": 0})
        return seconds(
            lambda: training.train(network, dataset, settings, seed=seed, features=features)
        )

    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        for folder_name in ("params", "notebooks"):  # what makes a folder a project
            Path(folder_name).mkdir()
        with contextlib.redirect_stdout(io.StringIO()):
            return sum(train(seed, Path(name)) for seed in range(count))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--measure", choices=list(SIZES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.repeat)))
        return
    table = pd.DataFrame({name: row(name, arguments.repeat) for name in arguments.backbones}).T
    print(f"\nimages a second and their ratios, medians of {arguments.repeat} repetitions:\n")
    print(table.round(2).to_string(), "\n\ngoals:")
    for column, goal in (
        ("embed / allowed", GOAL), ("study / allowed", GOAL), ("train / bare", GOAL),
        ("embed / torch", 1), ("train / torch", 1),
    ):  # fmt: skip
        backbones_below = table.index[table[column] < goal]
        outcome = (
            "reached" if backbones_below.empty else f"not reached by {', '.join(backbones_below)}"
        )
        print(f"  {column} at least {goal}: {outcome}, lowest {table[column].min():.2f}")
    for backbone in [name for name in HEADS if name in arguments.backbones]:
        count = HEADS[backbone]
        duration = heads(backbone, count) * 10 / count
        outcome = "reached" if duration < HEAD_GOAL else "not reached"
        print(
            f"  ten heads on {FEATURES:,} features of {backbone}, as {count} take: "
            f"{duration:.0f} s, under {HEAD_GOAL} s: {outcome}"
        )


if __name__ == "__main__":
    main()
