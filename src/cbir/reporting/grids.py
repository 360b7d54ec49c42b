"""Grids: one architecture of a study, run once for every combination of some parameters' values."""

import itertools
from collections.abc import Collection

from cbir import StudyError


def read(content, file: str, fixed: Collection[str]) -> dict[str, list]:
    """The key `grid` of a file: the values that each of its parameters is to take.

    Args:
        content: as the file has it.
        file: its name, for the error.
        fixed: parameters that all of a study must share.

    Raises:
        StudyError: no lists of values, or a parameter that must not differ.
    """
    fits = isinstance(content, dict) and all(
        isinstance(values, list) and values for values in content.values()
    )
    if not fits:
        raise StudyError(
            f"{file}: grid must give each parameter a list of values, as in "
            "`grid: {input_size: [32, 64]}`"
        )
    for key, values in content.items():
        if any(values.count(value) > 1 for value in values):
            raise StudyError(f"{file}: grid: {key} must name each value once, not {values}")
    if 0 in content.get("learn_from", []):
        raise StudyError(
            f"{file}: grid: learn_from: give the number of images in the place of 0 (all of them), "
            "which would stand as the fewest"
        )
    if apart := [key for key in content if key in fixed]:
        raise StudyError(f"{file}: grid: {apart[0]} must be the same for all of a study")
    return content


def points(grid: dict[str, list], changes: dict) -> list[dict]:
    """Every combination of a grid's values; what SET sets is no dimension of it.

    Returns:
        One empty point where there is no grid.
    """
    free = {key: values for key, values in grid.items() if key not in changes}
    return [dict(zip(free, values, strict=True)) for values in itertools.product(*free.values())]


def name(architecture: str, point: dict) -> str:
    """What one point's run is called, as a folder too: mobilenet-96-head."""
    words = ["".join(each for each in text(value) if each.isalnum() or each in "._")
             for value in point.values()]  # fmt: skip
    return "-".join([architecture, *words])


def variant(point: dict) -> str:
    """A point in words: input_size=96 train=head; a list has no spaces: [flip,shift]."""
    return " ".join(f"{key}={text(value)}" for key, value in point.items())


def parse(run: str, words: str) -> tuple[str, dict[str, str]]:
    """The architecture's file and the point of a run, from its name and its variant."""
    point = dict(each.partition("=")[::2] for each in words.split())
    return run.removesuffix(name("", point)), point


def text(value) -> str:
    """A value in words without spaces."""
    if isinstance(value, list):
        return f"[{','.join(text(each) for each in value)}]"
    return str(value)
