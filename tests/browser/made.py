"""A page made for the tests, with every kind of output that a notebook of this study can have."""

from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from IPython.core.formatters import DisplayFormatter
from matplotlib import pyplot as plt
from nbformat import v4

from cbir.reporting import plots
from cbir.reporting.pages import write_page

LINKS = [("Comparison", "index.html"), *((name, f"{name}.html") for name in ("cnn", "cnn_strong"))]
LINKS += [(name, f"{name}.html") for name in ("resnet50", "vgg16", "mobilenet", "raw_pixels")]
LINKS += [("Metrics", "metrics.html")]
PROSE = "Each architecture was trained to tell the classes of this study apart. " * 6


def output_of(shown, metadata: dict | None = None):
    """What a notebook keeps of something that a cell displays."""
    data, found = DisplayFormatter().format(shown)
    return v4.new_output("display_data", data, metadata=found | (metadata or {}))


def figure_of(figure: plt.Figure, text: str):
    """What a notebook keeps of a figure that `plots.show` shows."""
    shown = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "display", lambda drawing, metadata: shown.append((drawing, metadata)))
        plots.show(figure, text)
    ((drawing, metadata),) = shown
    return output_of(drawing, metadata)


def curve() -> plt.Figure:
    """Lines and words, which are smaller as SVG."""
    figure, axis = plt.subplots(figsize=(10, 3.6))
    axis.plot([1, 2, 3], [0.5, 0.7, 0.8], marker="o", label="cnn")
    axis.set(xlabel="epoch", ylabel="accuracy")
    axis.legend()
    return figure


def noise() -> plt.Figure:
    """A large photograph, or what passes for one, which is smaller as PNG."""
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
        plots.table(wide, "Quality, with 95 % intervals."),
        plots.table(narrow, "Cost of each architecture.", digits=2),
        plots.table(narrow.T, "Cost of each architecture."),
    ]


def write(folder: Path) -> Path:
    """The page `cnn.html` with its tables, in a folder."""
    printed = v4.new_output("stream", name="stdout", text="epoch 1/2: loss 0.5\n" * 60)
    said = v4.new_output("display_data", {"text/markdown": "**cnn** is ahead of `vgg16`."})
    failed = v4.new_output(
        "error",
        ename="ValueError",
        evalue="too small",
        traceback=["\x1b[31mValueError\x1b[39m: " + "too small, " * 30],
    )
    shown = [output_of(each) for each in tables()]
    figures = [figure_of(curve(), "Accuracy of <cnn> by epoch."), figure_of(noise(), "Noise.")]
    settings = 'seeds = [0]\nbackbone = "cnn"\ndataset = "' + "a/very/long/path/" * 12 + '"'
    cells = [
        v4.new_markdown_cell(f"# A plain CNN\n\n{PROSE}\n\nSee [the metrics](metrics.csv)."),
        v4.new_markdown_cell(f"## Parameters\n\n{PROSE}"),
        v4.new_code_cell(settings, metadata={"tags": ["injected-parameters"]}),
        v4.new_markdown_cell(f"## Is it retrieval, or *just* classification?\n\n{PROSE}"),
        v4.new_code_cell("", outputs=[said, *shown]),
        v4.new_markdown_cell(f"## Training\n\n{PROSE}\n\n### By epoch\n\n{PROSE}"),
        v4.new_code_cell("", outputs=[printed, *figures]),
        v4.new_markdown_cell("## Summary\n\n- " + "\n- ".join([PROSE] * 3)),
        v4.new_code_cell("", outputs=[failed]),
    ]
    nbformat.write(v4.new_notebook(cells=cells), folder / "cnn.ipynb")
    page = folder / "cnn.html"
    write_page(folder / "cnn.ipynb", page, report="tiny", title="cnn · tiny", links=LINKS)
    return page
