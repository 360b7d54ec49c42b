"""The block diagram of the system as it was run: SVG, made from the study's own numbers."""

import hashlib
import textwrap
from collections.abc import Iterable
from html import escape

from IPython.display import HTML, display

from cbir.reporting.runs import Run

# In units of the drawing, which is scaled to the page.
WIDTH, MARGIN, GAP = 860, 8, 26
COLUMNS = 4
BOX = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * GAP) / COLUMNS
TEXT, LINE, PADDING = 14.5, 19, 12
# Of a letter, as a share of the text's height: wide enough for any font without serifs.
LETTER = 0.56
# A page says which colours ink, faint ink and lines have; elsewhere they follow the text's.
INK, SOFT, RULE = "var(--ink, currentColor)", "var(--soft, currentColor)", "var(--soft, #777)"


def system(results: dict[str, Run]) -> str:
    """The training phase above, the retrieval phase below, with the numbers of these runs.

    Figure 1 of the paper shows the same two phases.

    Args:
        results: of one study; baselines, which have no training phase, are left out.

    Returns:
        An SVG element as text; empty where nothing was trained.
    """
    trained = {name: each for name, each in results.items() if not each.is_baseline}
    if not trained:
        return ""
    first = next(iter(trained.values())).summary
    images, measurement = first["dataset"], first["measurement"]
    names = ", ".join(trained)
    sizes = _range(each.summary["embedding_dim"] for each in trained.values())
    megabytes = _range((each.summary["index_bytes"] / 1e6 for each in trained.values()), digits=1)
    searches = dict.fromkeys(way for each in trained.values() for way in each.summary["searches"])
    ks = ", ".join(f"{k:,}" for k in measurement["ks"])
    n_seeds = _range(len(each.summary["measurement"]["seeds"]) for each in trained.values())
    network = "Network" if len(trained) == 1 else f"{len(trained)} networks"
    above = [
        ("Training images", [f"{images['train']:,} to learn from",
                             f"{images['validation']:,} for choices"]),
        (f"Backbone{'s' * (len(trained) > 1)}", [names]),
        (f"Head{'s' * (len(trained) > 1)}", [f"embedding of {sizes} numbers, of length 1"]),
        ("Classifier", [f"{len(images['classes'])} classes", f"seeds: {n_seeds}"]),
    ]  # fmt: skip
    between = (
        "Gallery index",
        [f"{images['gallery']:,} × {sizes} numbers and their classes", f"{megabytes} MB"],
    )
    below = [
        ("Queries", [f"{images['queries']:,} images, protocol {measurement['protocols'][0]}"]),
        (
            f"The same network{'s' * (len(trained) > 1)}",
            ["embedding and predicted class of each query"],
        ),
        ("Search", [", ".join(searches)]),
        ("Measured", [f"mAP of {images['queries']:,} rankings, precision at {ks}"]),
    ]
    told = (
        f"Training phase: {images['train']:,} images train {names}, each a backbone, a head and a "
        f"classifier of {len(images['classes'])} classes; the embeddings of {images['gallery']:,} "
        f"images form the gallery's index. Retrieval phase: for each of {images['queries']:,} "
        "queries the same network gives an embedding and a predicted class, the gallery is "
        f"searched ({', '.join(searches)}), and the ranking is scored by precision and mAP."
    )
    return _draw(f"{network}, as run", told, above, between, below)


def show_svg(svg: str, caption: str) -> None:
    """Display an SVG with a caption below it, in a box that scrolls where it is too wide.

    Nothing is displayed where there is no SVG.
    """
    if not svg:
        return
    # Whoever has no mouse scrolls it by keyboard.
    box = '<div style="overflow-x: auto" tabindex="0" role="region" aria-label="Block diagram">'
    below = f"<figcaption>{escape(caption)}</figcaption>"
    display(HTML(f'<figure class="diagram" style="margin: 0">{box}{svg}</div>{below}</figure>'))


def _draw(title: str, told: str, above: list, between: tuple, below: list) -> str:
    rows = [_heights(above), _heights([between]), _heights(below)]
    top = MARGIN + 2 * LINE
    middle = top + rows[0] + GAP
    bottom = middle + rows[1] + GAP + LINE
    height = bottom + rows[2] + MARGIN
    parts = [_heading(top - 9, "Training phase"), _heading(bottom - 9, "Retrieval phase")]
    for y, row_height, row in ((top, rows[0], above), (bottom, rows[2], below)):
        for column, (name, lines) in enumerate(row):
            parts.append(_box(_left(column), y, row_height, name, lines))
            if column:
                half = y + row_height / 2
                parts.append(_arrow(_left(column) - GAP, half, _left(column), half))
    parts.append(_box(_left(2), middle, rows[1], *between))
    centre = _left(2) + BOX / 2
    parts.append(_arrow(centre, top + rows[0], centre, middle))
    parts.append(_arrow(centre, middle + rows[1], centre, bottom))
    mark = f"diagram-{hashlib.sha256(told.encode()).hexdigest()[:8]}"
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-labelledby="{mark}-title {mark}-desc" xmlns="http://www.w3.org/2000/svg" '
        f'style="display: block; width: 100%; min-width: 600px; max-width: {WIDTH}px; '
        f'font: {TEXT}px system-ui, -apple-system, Segoe UI, Roboto, sans-serif">'
        f'<title id="{mark}-title">{escape(title)}</title>'
        f'<desc id="{mark}-desc">{escape(told)}</desc>'
        f"{''.join(parts)}</svg>"
    )


def _left(column: int) -> float:
    return MARGIN + column * (BOX + GAP)


def _wrap(lines: Iterable[str]) -> list[str]:
    """Lines broken where they would leave their box, a word longer than the box within it."""
    letters = int((BOX - 2 * PADDING) / (LETTER * TEXT))
    return [part for line in lines for part in textwrap.wrap(line, letters) or [""]]


def _heights(row: list) -> float:
    """Of the tallest box of a row."""
    return max(2 * PADDING + LINE * (1 + len(_wrap(lines))) for _, lines in row) - 4


def _heading(y: float, text: str) -> str:
    return f'<text x="{MARGIN}" y="{y:.1f}" style="fill: {SOFT}">{escape(text)}</text>'


def _box(x: float, y: float, height: float, name: str, lines: list[str]) -> str:
    parts = [
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{BOX:.1f}" height="{height:.1f}" rx="6" '
        f'style="fill: none; stroke: {RULE}; stroke-width: 1.4"/>'
    ]
    for number, line in enumerate([name, *_wrap(lines)]):
        style = f"fill: {INK}; font-weight: 600" if number == 0 else f"fill: {SOFT}"
        baseline = y + PADDING + LINE * (number + 0.72)
        parts.append(
            f'<text x="{x + PADDING:.1f}" y="{baseline:.1f}" style="{style}">{escape(line)}</text>'
        )
    return "".join(parts)


def _arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    """A line that is horizontal or vertical, with its head."""
    back, aside = (to_x - 6, 0) if to_x != x else (to_x, 4)
    up, below = (to_y - 4, to_y + 4) if to_x != x else (to_y - 6, to_y - 6)
    head = f"M{back - aside:.1f} {up:.1f}L{to_x:.1f} {to_y:.1f}L{back + aside:.1f} {below:.1f}"
    return (
        f'<path d="M{x:.1f} {y:.1f}L{to_x:.1f} {to_y:.1f}{head}" '
        f'style="fill: none; stroke: {INK}; stroke-width: 1.4"/>'
    )


def _range(values: Iterable[float], digits: int = 0) -> str:
    """One number where all are equal, else the lowest and the highest."""
    low, high = min(values := [*values]), max(values)
    told = dict.fromkeys(f"{each:,.{digits}f}" for each in (low, high))
    return " to ".join(told)
