"""Progress output: one line every few seconds, without the messages of libraries."""

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm import tqdm


class Ticker:
    """Shows the progress of a task: a bar in a terminal, else a line every `every` seconds."""

    def __init__(self, total: int, what: str, every: float = 5.0):
        self.total, self.what, self.every = total, what, every
        self.started = self.last = time.perf_counter()
        is_terminal = sys.stdout.isatty()
        self.bar = (
            tqdm(total=total, desc=what, file=sys.stdout, leave=False) if is_terminal else None
        )

    def reached(self, done: int) -> None:
        """Report that `done` of `total` items are done."""
        if self.bar is not None:
            self.bar.update(done - self.bar.n)
            if done >= self.total:
                self.bar.close()
            return
        now = time.perf_counter()
        if now - self.last >= self.every and done < self.total:
            self.last = now
            rate = done / (now - self.started)
            left = duration((self.total - done) / rate)
            reached = f"{done:,} of {self.total:,}, {rate:{',.1f' if rate >= 1 else '.1g'}}/s"
            print(f"{self.what}: {reached}, {left} left", flush=True)


def progress(items: Iterable, total: int, what: str) -> Iterator:
    """Yield the items, showing progress."""
    ticker = Ticker(total, what)
    for done, item in enumerate(items, start=1):
        yield item
        ticker.reached(done)


def duration(seconds: float) -> str:
    """Seconds in words: 8 s, 3 min 20 s, 2 h 05 min."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


@contextlib.contextmanager
def own_stderr(log: Path) -> Iterator[None]:
    """Send what libraries and child processes write to standard error to a log instead.

    Python's own output to `sys.stderr` still reaches the terminal.
    """
    terminal = os.dup(2)
    ours = sys.stderr
    try:
        terminal_stream = os.fdopen(os.dup(terminal), "w", errors="backslashreplace")
        with log.open("w") as file, terminal_stream as sys.stderr:
            os.dup2(file.fileno(), 2)
            yield
    finally:
        sys.stderr = ours
        os.dup2(terminal, 2)
        os.close(terminal)
