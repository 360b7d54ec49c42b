"""The block diagram of the system as it was run: an SVG generated from the study's numbers."""

import textwrap
from collections.abc import Mapping

from cbir.reporting.display import FONTS, INK, NEUTRAL, TEMPLATES
from cbir.reporting.numbers import span
from cbir.reporting.runs import Run, networks

# In units of the drawing, which is scaled to the page.
WIDTH, MARGIN, GAP = 860, 8, 26
BOX = (WIDTH - 2 * MARGIN - 3 * GAP) / 4  # four boxes in a row
TEXT, LINE, PADDING = 14.5, 19, 12
# The width of a letter as a share of the text's height, sufficient for any sans-serif font.
LETTER = 0.56


def system(runs: Mapping[str, Run]) -> str:
    """The training phase above, the retrieval phase below, with the numbers of these runs.

    Figure 1 of the paper shows the same two phases.

    Args:
        runs: of one study; baselines, which have no training phase, are left out.

    Returns:
        An SVG element as text; empty if nothing was trained.
    """
    runs = networks(runs)
    if not runs:
        return ""
    summaries = [run.summary for run in runs.values()]
    images, measurement = summaries[0]["dataset"], summaries[0]["measurement"]
    plural = "s" if len(runs) > 1 else ""
    sizes = span(summary["embedding_dim"] for summary in summaries)
    megabytes = span((summary["index_bytes"] / 1e6 for summary in summaries), digits=1)
    n_seeds = span(len(summary["measurement"]["seeds"]) for summary in summaries)
    searches = dict.fromkeys(search for summary in summaries for search in summary["searches"])
    ks = ", ".join(f"{k:,}" for k in measurement["ks"])
    n_classes, n_queries = len(images["classes"]), f"{images['queries']:,}"
    training_phase = {
        "Training images": [
            f"{images['train']:,} for training", f"{images['validation']:,} for validation",
        ],
        f"Backbone{plural}": [", ".join(runs)],
        f"Head{plural}": [f"embedding of {sizes} numbers, of length 1"],
        "Classifier": [f"{n_classes} classes", f"seeds: {n_seeds}"],
    }  # fmt: skip
    index_lines = [f"{images['gallery']:,} × {sizes} numbers and their classes", f"{megabytes} MB"]
    index = {"Gallery index": index_lines}
    retrieval_phase = {
        "Queries": [f"{n_queries} images, protocol {measurement['protocols'][0]}"],
        f"The same network{plural}": ["embedding and predicted class of each query"],
        "Search": [", ".join(searches)],
        "Metrics": [f"mAP of {n_queries} rankings, precision at {ks}"],
    }
    phases = training_phase | index | retrieval_phase
    description = ". ".join(f"{name}: {', '.join(lines)}" for name, lines in phases.items())
    rows = [_row(training_phase), _row(index, first_column=2), _row(retrieval_phase)]
    # From the top: a heading, a row, the index, a heading, a row.
    rows[0]["top"] = MARGIN + 2 * LINE
    rows[1]["top"] = rows[0]["top"] + rows[0]["height"] + GAP
    rows[2]["top"] = rows[1]["top"] + rows[1]["height"] + GAP + LINE
    return TEMPLATES.get_template("diagram.svg.j2").render(
        title=f"{f'{len(runs)} networks' if plural else 'Network'}, as run",
        description=description,
        rows=rows,
        width=WIDTH, height=rows[2]["top"] + rows[2]["height"] + MARGIN,
        margin=MARGIN, gap=GAP, box=BOX, text=TEXT, line=LINE, padding=PADDING, ink=INK,
        soft=NEUTRAL, fonts=FONTS,
    )  # fmt: skip


def _row(boxes: dict[str, list[str]], first_column: int = 0) -> dict:
    """Boxes side by side: where each begins, its lines, and the height of the tallest."""
    letters, placed = int((BOX - 2 * PADDING) / (LETTER * TEXT)), []
    for column, (name, lines) in enumerate(boxes.items(), first_column):
        wrapped = [part for line in lines for part in textwrap.wrap(line, letters)]
        placed.append({"left": MARGIN + column * (BOX + GAP), "name": name, "lines": wrapped})
    n_lines = 1 + max(len(box["lines"]) for box in placed)
    return {"boxes": placed, "height": 2 * PADDING + LINE * n_lines - 4}
