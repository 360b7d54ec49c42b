"""Images set apart or kept, class by class, by a seed."""

import numpy as np

from cbir import StudyError


def stratified_split(
    labels: np.ndarray, fraction: float, seed: int, classes: list[str], part: str
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the images that stay and of those set apart, class by class, both sorted.

    Args:
        labels: (n,) int.
        fraction: share of each class to set apart, at least one image.
        seed: decides which.
        classes, part: names for the error message.

    Raises:
        StudyError: a class has fewer than two images.
    """
    random = np.random.default_rng(seed)
    apart = []
    for label, name in enumerate(classes):
        members = random.permutation(np.flatnonzero(labels == label))
        if len(members) < 2:
            raise StudyError(
                f"class {name!r} has too few images left ({len(members)}) to set some apart for "
                f"{part}: each class needs at least 3, or 2 beside a test folder of its own"
            )
        apart.append(members[: min(len(members) - 1, max(1, round(fraction * len(members))))])
    apart = np.sort(np.concatenate(apart))
    return np.setdiff1d(np.arange(len(labels)), apart), apart


def share(rows: np.ndarray, share: float, labels: np.ndarray, seed: int) -> np.ndarray:
    """A share of some rows, the same of each class and at least one; all of them for 0, or above 1.

    Of two shares, the smaller is part of the larger.

    Args:
        rows: positions in `labels`, sorted.
        labels: (n,) int.
        seed: decides which.
    """
    if not 0 < share < 1:
        return rows
    kept = []
    for label in np.unique(labels[rows]):
        members = np.random.default_rng([seed, label]).permutation(rows[labels[rows] == label])
        kept.append(members[: max(1, round(share * len(members)))])
    return np.sort(np.concatenate(kept))
