"""Share of copies that `cbir.images.leaks` finds, by kind of change, and its false alarms.

    python tests/benchmarks/leaks.py
    python tests/benchmarks/leaks.py --cifar10 cifar10.npz --pairs duplicates_cifar10.csv

The photographs come with scikit-image and scikit-learn, and are cut into parts that do not overlap.
`--cifar10` names a file of the four arrays of `keras.datasets.cifar10.load_data()`, saved as
`x_train, y_train, x_test, y_test`; its test images are changed and searched for among themselves.
`--pairs` names the list of near-duplicates of ciFAIR (Barz and Denzler, 2020), which is
`meta/duplicates_cifar10.csv` in https://github.com/cvjena/cifair; all test images are then searched
for among all training images, which takes minutes.
"""

import argparse
import io
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter
from skimage import data
from sklearn.datasets import load_digits, load_sample_images

from cbir.images import leaks

Resampling = Image.Resampling
# A part of a photograph, in pixels, and the sizes to which the parts are reduced.
PART, SIZES = 128, (32, 64, 96)
# The root mean square of the details of a part with structure, in grey levels of 255.
STRUCTURE = 4.0
CHANGED = 1000


def compressed(file_format: str, quality: int) -> Callable:
    def change(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, file_format, quality=quality)
        return Image.open(buffer).convert("RGB")

    return change


def of_pixels(change: Callable) -> Callable:
    return lambda image: Image.fromarray(
        np.clip(change(np.asarray(image, np.float64)), 0, 255).round().astype(np.uint8)
    )


def shifted(down: int, across: int) -> Callable:
    """Pixels shifted; those at the edge are repeated."""

    def change(pixels: np.ndarray) -> np.ndarray:
        padded = np.pad(pixels, ((2, 2), (2, 2), (0, 0)), mode="edge")
        size = len(pixels)
        return padded[2 - down : 2 - down + size, 2 - across : 2 - across + size]

    return of_pixels(change)


def resized(*steps: tuple[float, Resampling]) -> Callable:
    """Images resized in steps, each to a share of the original size with a filter."""

    def change(image: Image.Image) -> Image.Image:
        size = image.width
        for share, resampling in steps:
            image = image.resize((round(share * size),) * 2, resampling)
        return image

    return change


def cropped(share: float) -> Callable:
    def change(image: Image.Image) -> Image.Image:
        edge = (1 - share) / 2 * image.width
        box = (edge, edge, image.width - edge, image.width - edge)
        return image.resize(image.size, Resampling.BICUBIC, box=box)

    return change


random = np.random.default_rng(0)
CHANGES = {
    "identical": lambda image: image,
    "JPEG 75": compressed("JPEG", 75),
    "JPEG 50": compressed("JPEG", 50),
    "WebP 50": compressed("WEBP", 50),
    "other filter": resized((1.5, Resampling.LANCZOS), (1, Resampling.BILINEAR)),
    "nearest neighbour": resized((2, Resampling.BICUBIC), (1, Resampling.NEAREST)),
    "darker": of_pixels(lambda pixels: 0.7 * pixels),
    "brighter": of_pixels(lambda pixels: 1.3 * pixels),
    "more contrast": of_pixels(lambda pixels: 1.3 * (pixels - 128) + 128),
    "noise 8": of_pixels(lambda pixels: pixels + random.normal(0, 8, pixels.shape)),
    "shift (1, 0)": shifted(1, 0),
    "shift (2, 0)": shifted(2, 0),
    "shift (2, 2)": shifted(2, 2),
    "shift (-2, 2)": shifted(-2, 2),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "upside down": lambda image: image.transpose(Image.Transpose.ROTATE_180),
    "turned by 90°": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "half size and back": resized((0.5, Resampling.BICUBIC), (1, Resampling.BICUBIC)),
    "blur, 1 pixel": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "tint": of_pixels(lambda pixels: pixels * [1.2, 1, 0.8]),
    "crop 95 %": cropped(0.95),
    "crop 90 %": cropped(0.9),
    "crop 80 %": cropped(0.8),
    "JPEG 10": compressed("JPEG", 10),
    "turned by 5°": lambda image: image.rotate(5, Resampling.BICUBIC),
    "negative": of_pixels(lambda pixels: 255 - pixels),
}


SCENES = ("astronaut", "chelsea", "coffee", "rocket")
# Close-ups of textures, the sky through a telescope, and tissue under a microscope.
OTHERS = ("brick", "grass", "gravel", "hubble_deep_field", "immunohistochemistry")


def photographs(size: int) -> np.ndarray:
    """(n, size, size, 3) uint8: parts of photographs that do not overlap."""
    return parts_of(
        [*(getattr(data, name)() for name in SCENES), *load_sample_images().images], size
    )


def others(size: int) -> np.ndarray:
    """(n, size, size, 3) uint8: parts of pictures that show no scenes."""
    return parts_of([getattr(data, name)() for name in OTHERS], size)


def parts_of(pictures: list[np.ndarray], size: int) -> np.ndarray:
    parts = []
    for picture in pictures:
        image = Image.fromarray(picture).convert("RGB")
        for top in range(0, image.height - PART + 1, PART):
            for left in range(0, image.width - PART + 1, PART):
                part = image.crop((left, top, left + PART, top + PART))
                parts.append(np.asarray(part.resize((size, size), Resampling.BICUBIC)))
    return np.stack(parts)


def digits() -> np.ndarray:
    """(n, 32, 32, 3) uint8: scikit-learn's digits, enlarged."""
    pictures = (load_digits().images * 255 / 16).astype(np.uint8)
    return np.stack([
        np.asarray(Image.fromarray(picture).resize((32, 32), Resampling.BICUBIC).convert("RGB"))
        for picture in pictures
    ])  # fmt: skip


def has_structure(images: np.ndarray) -> np.ndarray:
    """(n,) bool, whether images are in focus and show details of some contrast (`STRUCTURE`).

    Both are measured as by the audit, which searches for images of three quarters of this contrast.
    """
    positions = np.arange(len(images))
    details = leaks._Maps(images, pd.DataFrame({"picture": positions}), "picture", "parts")
    contrast = np.sqrt((details.maps.astype(np.float32) ** 2).mean((1, 2)))
    return np.isin(positions, details.pictures[(contrast >= STRUCTURE) & ~details.is_simple])


def find_pairs(queries: np.ndarray, gallery: np.ndarray) -> pd.DataFrame:
    zeros = [np.zeros(len(images), np.int64) for images in (queries, gallery)]
    return leaks.find_leaks(queries, zeros[0], gallery, zeros[1])


def shares_found(originals: np.ndarray, gallery: np.ndarray) -> pd.Series:
    """The share of originals (the first images of a gallery) that are found after each change."""
    shares = {}
    for name, change in CHANGES.items():
        changed = np.stack([np.asarray(change(Image.fromarray(image))) for image in originals])
        pairs = find_pairs(changed, gallery)
        shares[name] = pairs.loc[pairs["query"] == pairs["gallery"], "query"].nunique()
    return pd.Series(shares) / len(originals)


def without_themselves(images: np.ndarray) -> pd.DataFrame:
    labels, positions = np.zeros(len(images), np.int64), np.arange(len(images))
    return leaks.find_leaks(images, labels, images, labels, itself=positions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cifar10", type=Path, help="an .npz file of CIFAR-10")
    parser.add_argument("--pairs", type=Path, help="the list of ciFAIR")
    arguments = parser.parse_args()
    table = {}
    for name, parts_of_size in (("photographs", photographs), ("others", others)):
        for size in SIZES:
            parts = parts_of_size(size)
            is_clear = has_structure(parts)
            for kind, images in (("", parts[is_clear]), (" of little structure", parts[~is_clear])):
                column = f"{len(images)} {name}{kind}, {size} px"
                table[column] = shares_found(images, images)
    if arguments.cifar10:
        images = np.load(arguments.cifar10)["x_test"]
        images = images[np.random.default_rng(3).permutation(len(images))]
        table[f"{CHANGED:,} of CIFAR-10"] = shares_found(images[:CHANGED], images)
    print("Share of copies found:")
    print((100 * pd.DataFrame(table)).round(1).to_string())

    start, pictures = time.perf_counter(), digits()
    queries, gallery = pictures[::5], pictures[np.arange(len(pictures)) % 5 > 0]
    pairs = find_pairs(queries, gallery)
    seconds = time.perf_counter() - start
    print(f"\nPairs among {len(queries)} x {len(gallery)} digits: {len(pairs)}, {seconds:.1f} s")
    print(f"Pairs among all {len(pictures)} digits: {len(without_themselves(pictures))}")
    for size in SIZES:
        print(f"Pairs among parts of {size} pixels: {len(without_themselves(photographs(size)))}")
    start, same = time.perf_counter(), np.repeat(photographs(32)[:1], 3200, axis=0)
    pairs = find_pairs(same[:800], same)
    seconds = time.perf_counter() - start
    print(f"Rows of 800 x 3,200 identical pictures: {len(pairs)}, {seconds:.1f} s")
    if arguments.cifar10 and arguments.pairs:
        report_cifair(np.load(arguments.cifar10), pd.read_csv(arguments.pairs))


def report_cifair(cifar10: np.lib.npyio.NpzFile, listed: pd.DataFrame) -> None:
    start, processor = time.perf_counter(), time.process_time()
    pairs = leaks.find_leaks(
        cifar10["x_test"], cifar10["y_test"].ravel(), cifar10["x_train"], cifar10["y_train"].ravel()
    )
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"\nCIFAR-10, test in training: {pairs['query'].nunique()} queries, {len(pairs)} pairs, "
        f"label conflicts {pairs['is_conflict'].sum()}; {seconds:.0f} s, of the processor "
        f"{processor:.0f} s, at most {gigabytes:.1f} GB"
    )
    pairs = set(zip(pairs["query"], pairs["gallery"], strict=True))
    listed["found"] = [
        pair in pairs for pair in zip(listed["TestID"], listed["TrainID"], strict=True)
    ]
    print("Pairs of ciFAIR; 1: near-duplicate, 2: very similar, but another picture")
    print(listed.groupby("Judgment")["found"].agg(["size", "sum", "mean"]).round(3).to_string())
    others = {query for query, _ in pairs} - set(listed["TestID"])
    print(f"Queries with a copy that ciFAIR does not list: {len(others)}")


if __name__ == "__main__":
    main()
