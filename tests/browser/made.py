"""Pages for the tests, with every kind of output that a notebook can have.

One page of an architecture, one of a grid, one without results, one of a search.
"""

from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
from invented import result, rows
from IPython.core.formatters import DisplayFormatter
from matplotlib import pyplot as plt
from nbformat import v4

from cbir.images.folders import LeftOut
from cbir.reporting import display, grids, montages, sentences
from cbir.reporting import tables as report_tables
from cbir.reporting.notebook_html import write_page
from cbir.search import cli
from cbir.search.answers import Answer, Picture, Result
from cbir.studies import configs

LINKS = [("Comparison", "index.html"), *((name, f"{name}.html") for name in ("cnn", "cnn_strong"))]
LINKS += [(name, f"{name}.html") for name in ("resnet50", "vgg16", "mobilenet", "raw_pixels")]
LINKS += [(name, f"{name.lower()}.html") for name in ("Failures", "Explanations", "Feedback")]
LINKS += [("Metrics", "metrics.html")]
PROSE = "Each architecture was trained to tell the classes of this study apart. " * 6


def output_of(displayed, metadata: dict | None = None):
    """The output that a notebook stores for an object that a cell displays."""
    data, metadata_of_format = DisplayFormatter().format(displayed)
    return v4.new_output("display_data", data, metadata=metadata_of_format | (metadata or {}))


def figure_of(figure: plt.Figure, text: str):
    """The output that a notebook stores for a figure that `display.show` displays."""
    return output_of(*_displayed(display.show, figure, text))


def table_of(frame: pd.DataFrame, caption: str, **changes):
    """The output that a notebook stores for a table that `display.table` displays."""
    data, metadata = _displayed(display.table, frame, caption, **changes)
    return v4.new_output("display_data", data, metadata=metadata)


def _displayed(function, *arguments, **changes) -> tuple:
    """What a function of `display` displays, and its metadata."""
    displayed = []
    with pytest.MonkeyPatch.context() as patch:
        record = lambda output, metadata, raw=False: displayed.append((output, metadata))  # noqa: E731
        patch.setattr(display, "display", record)
        function(*arguments, **changes)
    return displayed[0]


def curve() -> plt.Figure:
    """Lines and text."""
    figure, axis = plt.subplots(figsize=(10, 3.6))
    axis.plot([1, 2, 3], [0.5, 0.7, 0.8], marker="o", label="cnn")
    axis.set(xlabel="epoch", ylabel="accuracy")
    axis.legend()
    return figure


def noise() -> plt.Figure:
    """Noise in place of a large photograph."""
    figure, axis = plt.subplots(figsize=(3, 3))
    axis.imshow(np.random.default_rng(0).integers(0, 256, (900, 900, 3), np.uint8))
    axis.set_axis_off()
    return figure


def tables() -> list:
    """A wide table with intervals, a narrow one, and the narrow one's caption again."""
    score = "0.712 [0.703,\u00a00.721]"
    names = ["cnn", "cnn_strong", "resnet50", "vgg16", "mobilenet", "raw_pixels", "hand_crafted"]
    wide = pd.DataFrame(
        {"metric": ["mean_average_precision", "precision"], "k": ["all", "10"]}
        | {name: [score, score] for name in names}
    )
    narrow = pd.DataFrame({"seconds": [1234.5, 0.25]}, index=pd.Index(names[:2], name="run"))
    return [
        table_of(wide, "Quality, with 95 % intervals."),
        table_of(narrow, "Cost of each architecture.", digits=2),
        table_of(narrow.T, "Cost of each architecture."),
    ]


def write(folder: Path) -> dict[str, Path]:
    """Write all pages and their tables into a folder; return the pages by their content."""
    return {
        "architecture": write_architecture(folder),
        "grid": write_grid(folder),
        "comparison": write_comparison(folder),
        "no results": _write(folder, "vgg16", [v4.new_markdown_cell("# vgg16\n\nNo results: why")]),
        "search": write_search(folder),
    }


def _write(folder: Path, name: str, cells: list) -> Path:
    """The page of a notebook."""
    notebook, page = folder / f"{name}.ipynb", folder / f"{name}.html"
    nbformat.write(v4.new_notebook(cells=cells), notebook)
    write_page(notebook, page, report="tiny", title=f"{name} · tiny", links=LINKS)
    return page


def write_grid(folder: Path) -> Path:
    """The page of a grid: two architectures at three sizes, frozen or not."""
    runs = {}
    for architecture in ("mobilenet", "vgg16"):
        for size in (32, 96, 160):
            for train in ("head", "all"):
                point = {"input_size": size, "train": train}
                name, variant = configs.point_name(architecture, point), configs.variant(point)
                scores = np.random.default_rng(size).random(20)
                frame = rows(list(scores), architecture=name, variant=variant, correct=0.5)
                runs[name] = result(
                    frame,
                    variant=variant,
                    training_accuracy={"value": 0.9, "ci_low": 0.8, "ci_high": 0.95},
                )
    points = grids.points_table(runs)
    outputs = [
        table_of(grids.readable(points), "All points of the grid."),
        figure_of(grids.heat_maps(points), "What each point reaches."),
        figure_of(grids.curves(points), "Along the size."),
    ]
    answer = grids.best_points(points, grids.pairs(runs, points), sentences.between_seeds(runs))
    text = v4.new_output("display_data", {"text/markdown": answer})
    cells = [
        v4.new_markdown_cell(f"# Point by point\n\n{PROSE}\n\n## The answer"),
        v4.new_code_cell("", outputs=[text]),
        v4.new_markdown_cell("## All points"),
        v4.new_code_cell("", outputs=outputs),
    ]
    return _write(folder, "grid", cells)


def write_comparison(folder: Path) -> Path:
    """The first screen of a comparison of eight networks and three baselines on photographs."""
    random = np.random.default_rng(0)
    names = ["resnet50_finetuned", "vgg16_finetuned", "cnn_strong", "cnn", "resnet50", "mobilenet",
             "vgg16", "resnet50_64", "hand_crafted", "raw_pixels", "random"]  # fmt: skip
    runs = {
        name: result(rows(0.9 - 0.08 * position + random.normal(0, 0.02, 40), architecture=name),
                     baseline=position > 7)
        for position, name in enumerate(names)
    }  # fmt: skip
    points, pairs = report_tables.quality_and_cost(runs), report_tables.pairs(runs)
    n, side = 60, 224
    images = SimpleNamespace(
        classes=["a class of a long name", "dog"], labels=np.arange(n) % 2,
        images=random.integers(0, 256, (n, side, side, 3), np.uint8),
        gallery=np.arange(40), gallery_labels=np.arange(40) % 2,
        queries=np.arange(40, n), query_labels=np.arange(40, n) % 2,
    )  # fmt: skip
    neighbours = {
        name: (random.integers(0, 40, (20, 10)), np.full((20, 10), 0.5))
        for name in report_tables.best_networks(points)
    }
    queries = {"easy": 0, "typical": 1, "hard": 2}
    text = v4.new_output("display_data", {"text/markdown": sentences.answer(points, pairs)})
    data, metadata = _displayed(display.bars, points, "Quality and cost; baselines are grey.")
    bars = v4.new_output("display_data", data, metadata=metadata)
    pictures = figure_of(
        montages.side_by_side(images, queries, neighbours),
        "An easy, a typical and a hard query (average precision at the 90th, 50th and 10th "
        "percentile), and their nearest images by architecture; ✗ marks another class.",
    )
    folded = table_of(report_tables.pairs_table(pairs), "Every pair, query by query.", folded=True)
    retrieved = figure_of(
        montages.retrieved(images, np.arange(3), neighbours), "Each with its ten results."
    )
    cells = [
        v4.new_markdown_cell("# Which architecture retrieves best?"),
        v4.new_code_cell("", outputs=[text, bars, pictures], metadata={"tags": ["lead", "answer"]}),
        v4.new_markdown_cell(f"{PROSE}\n\n## Who is significantly better"),
        v4.new_code_cell("", outputs=[folded, retrieved]),
        v4.new_markdown_cell(f"## What it costs\n\n{PROSE}"),
    ]
    return _write(folder, "index", cells)


def write_search(folder: Path) -> Path:
    """A page of `cbir search --html`: results, no results, and an unreadable file."""
    images = np.random.default_rng(1).integers(0, 256, (11, 32, 32, 3), np.uint8)
    name = f"/home/somebody/{'long/' * 12}mine.jpg"
    picture = Picture(name, images[0], np.zeros(4), np.array([0.7, 0.3]))
    gallery = SimpleNamespace(image=lambda position: images[position])
    results = [
        Result(rank, 1 - rank / 20, "a long name of a class", f"data/a/{'long/' * 9}{rank}.png",
               rank, gallery)
        for rank in range(1, 11)
    ]  # fmt: skip
    answers = [
        Answer(picture, {"cat": 0.7, "dog": 0.3}, results, "class"),
        Answer(picture, {"dog": 0.9, "cat": 0.1}, [], "predicted class"),
    ]
    path = folder / "search.html"
    left_out = [LeftOut("broken.png", "not a picture")]
    path.write_text(cli.html_page(answers, left_out, [], "Searched all"), "utf-8")
    return path


def write_architecture(folder: Path) -> Path:
    """The page of an architecture, with tables, figures, printed lines and a traceback."""
    printed = v4.new_output("stream", name="stdout", text="epoch 1/2: loss 0.5\n" * 60)
    text = v4.new_output("display_data", {"text/markdown": "**cnn** is ahead of `vgg16`."})
    failed = v4.new_output(
        "error",
        ename="ValueError",
        evalue="too small",
        traceback=["\x1b[31mValueError\x1b[39m: " + "too small, " * 30],
    )
    table_outputs = tables()
    figures = [figure_of(curve(), "Accuracy of <cnn> by epoch."), figure_of(noise(), "Noise.")]
    settings = (
        'data = {"dataset": "' + "a/very/long/path/" * 12 + '"}\nnetwork = {"backbone": "cnn"}'
    )
    cells = [
        v4.new_markdown_cell(f"# A plain CNN\n\n{PROSE}\n\nSee [the metrics](metrics.csv)."),
        v4.new_markdown_cell(f"## Parameters\n\n{PROSE}"),
        v4.new_code_cell(settings, metadata={"tags": ["injected-parameters"]}),
        v4.new_markdown_cell(f"## Is it retrieval, or *just* classification?\n\n{PROSE}"),
        v4.new_code_cell("", outputs=[text, *table_outputs]),
        v4.new_markdown_cell(f"## Training\n\n{PROSE}\n\n### By epoch\n\n{PROSE}"),
        v4.new_code_cell("", outputs=[printed, *figures]),
        v4.new_markdown_cell("## Summary\n\n- " + "\n- ".join([PROSE] * 3)),
        v4.new_code_cell("", outputs=[failed]),
    ]
    return _write(folder, "cnn", cells)
