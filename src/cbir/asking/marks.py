"""Marks: which images of a gallery were meant, and which were not."""

from dataclasses import dataclass, replace

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
