"""What a search prints: JSON, a table for a terminal, an HTML page."""

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from cbir.search.answers import Answer

# Pixels of the pictures on a page.
THUMBNAIL = 96
# How many classes are named with their probability.
MOST_NAMED = 3


def as_json(answer: Answer) -> dict:
    """What JSON can say of an answer; pictures by their paths."""
    return {
        "picture": answer.picture.name,
        "predicted": answer.predicted,
        "probabilities": answer.probabilities,
        "results": [
            {
                "place": each.place,
                "path": each.name,
                answer.kind.replace(" ", "_"): each.label,
                "similarity": each.similarity,
            }
            for each in answer.results
        ],
    }


def predicted(answer: Answer) -> str:
    """The most probable classes with their probabilities."""
    best = list(answer.probabilities.items())[:MOST_NAMED]
    return ", ".join(f"{name} ({100 * probability:.0f} %)" for name, probability in best)


def text_table(answer: Answer) -> str:
    """An answer as lines for a terminal."""
    width = max([len(answer.kind), *(len(each.label) for each in answer.results)])
    lines = [
        f"{answer.picture.name}: {predicted(answer)}",
        f"  {'':>4}  similarity  {answer.kind:<{width}}  picture",
    ]
    lines += [
        f"  {each.place:>4}  {each.similarity:>10.3f}  {each.label:<{width}}  {each.name}"
        for each in answer.results
    ]
    if not answer.results:
        lines[1:] = ["  nothing was found"]
    return "\n".join(lines)


def html_page(answers: list[Answer], skipped: list[str], about: str) -> str:
    """Answers as an HTML page that needs nothing but itself.

    Args:
        skipped: "name: reason" of pictures that could not be read.
        about: one line that says what was searched.
    """
    import jinja2

    folder = Path(__file__).parent.parent / "reporting" / "template"
    templates = jinja2.Environment(loader=jinja2.FileSystemLoader(folder), autoescape=True)
    templates.filters |= {"picture": address, "predicted": predicted}
    return templates.get_template("search.html.j2").render(
        answers=answers, skipped=skipped, about=about, side=THUMBNAIL
    )


def address(image: np.ndarray) -> str:
    """(h, w, 3) uint8 pixels as the address of an `<img>`."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
