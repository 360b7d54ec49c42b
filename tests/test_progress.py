"""Progress of long work: a bar in a terminal, lines elsewhere."""

import io

import pytest

from cbir import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_bar_that_disappears_at_the_end(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    ticker = progress.Ticker(10, "embeddings")
    for done in (4, 10):
        ticker.reached(done)
    output = terminal.getvalue()
    assert "embeddings:   0%" in output
    assert output.endswith("\r")
    assert "\n" not in output
    assert ticker.bar.n == 10


def test_other_outputs_have_lines_with_speed_and_remaining_time(monkeypatch, capsys):
    now = iter([0.0, 4.0, 6.0, 9.0])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(now))
    ticker = progress.Ticker(4000, "embeddings")
    for done in (500, 1000, 4000):
        ticker.reached(done)
    # A line is printed after 6 seconds, with a quarter done, and none shortly before or after.
    assert capsys.readouterr().out == "embeddings: 1,000 of 4,000, 166.7/s, 18 s left\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_durations_are_written_in_words(seconds, text):
    assert progress.duration(seconds) == text
