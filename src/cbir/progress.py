"""One readable line every few seconds, in the terminal and in the log alike, with what is left."""

import time
from collections.abc import Iterable, Iterator


class Ticker:
    """Prints how far a task is, at most once every `every` seconds."""

    def __init__(self, total: int, what: str, every: float = 5.0):
        self.total, self.what, self.every = total, what, every
        self.started = self.last = time.perf_counter()

    def reached(self, done: int) -> None:
        """Say that `done` of `total` are done."""
        now = time.perf_counter()
        if now - self.last >= self.every:
            self.last = now
            left = (now - self.started) / done * (self.total - done)
            print(
                f"{self.what}: {done:,} of {self.total:,}, {duration(left)} left",
                flush=True,
            )


def progress(items: Iterable, total: int, what: str) -> Iterator:
    """Hand on the items, printing a line every few seconds."""
    ticker = Ticker(total, what)
    for done, item in enumerate(items, start=1):
        yield item
        ticker.reached(done)


def duration(seconds: float) -> str:
    """Seconds as a person says them: 8 s, 3 min 20 s, 2 h 05 min."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
