"""How fast networks are trained and embed, against what their parts allow.

`make bench` runs it. For each backbone, side by side in every repetition:

- embedding a folder of 32-pixel PNG files, reading and decoding included, against what the two
  rates allow: 1 / (1 / predict + 1 / (2 x decode)), with `predict` Keras' `model.predict` on arrays
  in memory and `decode` Pillow on one core;
- an epoch of our training against a bare loop over `train_on_batch` on arrays in memory;
- the same two in a process of its own with Keras on PyTorch.

And ten trainings of a head on 50,000 frozen features.
"""

import argparse
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
from PIL import Image

# (images embedded, images trained on, batch size): some seconds a measurement for each. An epoch
# begins with about 0.2 s that do not depend on its length; shorter ones would measure that.
SIZES = {
    "cnn": (8192, 8192, 64),
    "cnn_strong": (8192, 4096, 64),
    "mobilenet": (16384, 16384, 64),
    "resnet50": (4096, 1024, 64),
    "vgg16": (2048, 1024, 64),
}
SHAPE = {
    "weights": "none", "train": "all", "image_size": 32, "input_size": 32, "pooling": "avg",
    "feature_maps": False, "embedding": "penultimate", "embedding_dim": 256, "dropout": 0.0,
    "mixed_precision": True, "n_classes": 10, "seed": 0,
}  # fmt: skip
HEADS, FEATURES, HEAD_EPOCHS, HEAD_BATCH = 10, 50_000, 10, 512
GOAL, HEAD_GOAL = 0.95, 120


def pictures(n: int) -> np.ndarray:
    """(n, 32, 32, 3) uint8: soft shapes with a little noise, in PNG as large as photographs."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (n, 8, 8, 3)).astype(np.uint8)
    soft = [np.asarray(Image.fromarray(each).resize((32, 32), Image.BICUBIC)) for each in coarse]
    noisy = np.stack(soft).astype(np.int16) + random.integers(-6, 7, (n, 32, 32, 3))
    return noisy.clip(0, 255).astype(np.uint8)


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def build(backbone: str):
    from cbir.networks import models

    return models.build(backbone, **SHAPE)


def embed_folder(network, paths: list[Path]) -> None:
    """From files to vectors, read ahead while the network works, as `cbir index` does it."""
    from cbir.images import formats
    from cbir.networks import inference

    found = formats.squares(paths, SHAPE["image_size"])
    for _ in range(0, len(paths), inference.BATCH_SIZE):
        images = np.stack(list(itertools.islice(found, inference.BATCH_SIZE)))
        inference.batch(network.encoder, images)


def decode_on_one_core(paths: list[Path]) -> None:
    for path in paths:
        with Image.open(path) as picture:
            np.asarray(picture.convert("RGB"))


def epochs_of(network, images: np.ndarray, batch_size: int) -> dict[str, Callable[[], object]]:
    """An epoch of ours and a bare one, of the same compiled model on the same batches."""
    from cbir.networks.training import Batches

    labels = np.arange(len(images)) % 10
    network.model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    floats = images.astype(np.float32)

    def bare() -> None:
        for start in range(0, len(images), batch_size):
            rows = slice(start, start + batch_size)
            network.model.train_on_batch(floats[rows], labels[rows])

    def ours() -> None:
        batches = Batches(images, labels, np.arange(len(images)), batch_size)
        network.model.fit(batches, verbose=0, shuffle=False)

    return {"train_on_batch": bare, "ours": ours}


def measure(backbone: str, repeat: int) -> dict[str, float]:
    """Images a second, medians over the repetitions, each of which does everything in turn."""
    n_embedded, n_trained, batch_size = SIZES[backbone]
    images, network = pictures(n_embedded), build(backbone)
    floats = images.astype(np.float32)
    training = epochs_of(network, images[:n_trained], batch_size)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{place:05d}.png") for place in range(n_embedded)]
        for path, image in zip(paths, images, strict=True):
            Image.fromarray(image).save(path)
        works = {
            "predict": (
                n_embedded,
                lambda: network.encoder.predict(floats, batch_size=256, verbose=0),
            ),
            "decode": (n_embedded, lambda: decode_on_one_core(paths)),
            "embed": (n_embedded, lambda: embed_folder(network, paths)),
            "train_on_batch": (n_trained, training["train_on_batch"]),
            "train": (n_trained, training["ours"]),
        }
        for _, work in works.values():
            work()  # the first time pays for building graphs
        rates = [
            {name: n / seconds(work) for name, (n, work) in works.items()} for _ in range(repeat)
        ]
    return pd.DataFrame(rates).median().to_dict()


def measure_torch(backbone: str, repeat: int) -> dict[str, float]:
    """The same with Keras on PyTorch, in a process of its own."""
    command = [sys.executable, __file__, "--measure", backbone, "--repeat", str(repeat)]
    done = subprocess.run(
        command, env=os.environ | {"KERAS_BACKEND": "torch"}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def row(backbone: str, repeat: int) -> dict[str, float]:
    print(f"measuring {backbone}", flush=True)
    ours, torch = measure(backbone, repeat), measure_torch(backbone, max(1, repeat - 2))
    allowed = 1 / (1 / ours["predict"] + 1 / (2 * ours["decode"]))
    return {
        "predict": ours["predict"],
        "decode": ours["decode"],
        "embed": ours["embed"],
        "embed / allowed": ours["embed"] / allowed,
        "train_on_batch": ours["train_on_batch"],
        "train": ours["train"],
        "train / bare": ours["train"] / ours["train_on_batch"],
        "embed / torch": ours["embed"] / torch["embed"],
        "train / torch": ours["train"] / torch["train"],
    }


def heads(width: int) -> float:
    """Seconds that ten heads take, one after the other, on the same features."""
    import keras

    from cbir.networks.training import Batches

    random = np.random.default_rng(0)
    features = random.random((FEATURES, width), np.float32)
    labels = random.integers(0, 10, FEATURES)

    def train(seed: int) -> None:
        keras.utils.set_random_seed(seed)
        head = keras.Sequential(
            [
                keras.Input((width,)),
                keras.layers.Dense(256, activation="relu"),
                keras.layers.Dropout(0.5),
                keras.layers.Dense(10, activation="softmax"),
            ]
        )
        head.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        for epoch in range(HEAD_EPOCHS):
            order = np.random.default_rng([seed, epoch]).permutation(FEATURES)
            head.fit(Batches(features, labels, order, HEAD_BATCH), verbose=0, shuffle=False)

    return seconds(lambda: [train(seed) for seed in range(HEADS)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--measure", choices=list(SIZES), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        print(json.dumps(measure(asked.measure, asked.repeat)))
        return
    table = pd.DataFrame({name: row(name, asked.repeat) for name in asked.backbones}).T
    print(f"\nimages a second and their ratios, medians of {asked.repeat} repetitions:\n")
    print(table.round(2).to_string(), "\n\ngoals:")
    for column, goal in (("embed / allowed", GOAL), ("train / bare", GOAL),
                         ("embed / torch", 1), ("train / torch", 1)):  # fmt: skip
        short = table.index[table[column] < goal]
        reached = "reached" if short.empty else f"not reached by {', '.join(short)}"
        print(f"  {column} at least {goal}: {reached}, lowest {table[column].min():.2f}")
    for width in (256, 512, 2048):
        took = heads(width)
        reached = "reached" if took < HEAD_GOAL else "not reached"
        print(
            f"  {HEADS} heads of {HEAD_EPOCHS} epochs on {FEATURES:,} features of {width}: "
            f"{took:.0f} s, under {HEAD_GOAL} s: {reached}"
        )


if __name__ == "__main__":
    main()
