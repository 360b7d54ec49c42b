"""Marks: which images of a gallery were meant, and which were not."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from cbir import project_root
from cbir.cache import write_text

FOLDER = Path("data", "marks")
MEANT, NOT_MEANT = "meant", "not meant"


@dataclass(frozen=True)
class Marks:
    """What somebody has marked so far; marking gives new marks, so that old ones can come back.

    Attributes:
        meant, not_meant: gallery positions, in the order in which they were marked.
    """

    meant: tuple[int, ...] = ()
    not_meant: tuple[int, ...] = ()

    def mark(self, position: int, as_what: str | None) -> "Marks":
        """With an image marked as `MEANT` or `NOT_MEANT`, or with its mark taken away (None)."""
        if as_what not in (MEANT, NOT_MEANT, None):
            raise ValueError(f"as_what: {MEANT!r}, {NOT_MEANT!r} or None, not {as_what!r}")
        rest = {
            name: tuple(each for each in getattr(self, name) if each != position)
            for name in ("meant", "not_meant")
        }
        if as_what:
            rest[as_what.replace(" ", "_")] += (position,)
        return replace(self, **rest)

    def of(self, position: int) -> str | None:
        """As what an image is marked; None where it is not."""
        if position in self.meant:
            return MEANT
        return NOT_MEANT if position in self.not_meant else None

    @property
    def all(self) -> tuple[int, ...]:
        """Every image that is marked."""
        return self.meant + self.not_meant

    def __str__(self) -> str:
        return f"{len(self.meant)} meant, {len(self.not_meant)} not meant"


def keep(told: dict) -> Path:
    """Write what was asked and marked into a new file, numbered, and return its path."""
    folder = project_root() / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    taken = [int(each.stem) for each in folder.glob("*.json") if each.stem.isdecimal()]
    name = f"{max(taken, default=0) + 1:03d}.json"
    write_text(folder / name, json.dumps(told, indent=1))
    return FOLDER / name
