"""Output of notebooks: figures with alternative texts, tables with full numbers as CSV."""

import base64
import csv
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cbir.reporting import display
from cbir.reporting.numbers import Estimate, PValue


@pytest.fixture
def outputs(monkeypatch) -> list:
    """The displayed outputs: kind, data and metadata."""
    records = []

    def record(output, metadata=None, raw=False):
        if raw:
            records.append((output, metadata))
        elif metadata:
            ((kind, about),) = metadata.items()
            records.append((kind, output.data, about))
        else:
            records.append(output.data)

    monkeypatch.setattr(display, "display", record)
    return records


@pytest.mark.parametrize("empty", [pd.DataFrame(), pd.DataFrame(columns=["k"])])
def test_empty_tables_figures_and_texts_show_nothing(empty, outputs):
    display.table(empty, "A caption.")
    display.show(None, "A figure.")
    display.say("")
    assert outputs == []


def test_a_text_is_shown_as_markdown(outputs):
    display.say("**a** is ahead of b")
    display.say("- p < 0.05", folded_under="What the tests cover")
    assert outputs == [
        "**a** is ahead of b",
        "<details><summary>What the tests cover</summary>\n\n- p < 0.05\n\n</details>",
    ]


def curve() -> plt.Figure:
    figure, axis = plt.subplots(figsize=(4, 2))
    axis.plot([1, 2, 3])
    return figure


def test_figures_are_drawn_as_reproducible_svg(outputs):
    for figure in (curve(), curve()):
        display.show(figure, "A line.")
        assert not plt.fignum_exists(figure.number)
    (kind, drawing, about), repeated = outputs
    assert kind == "image/svg+xml"
    assert about["alt"] == "A line."
    assert 250 < about["width"] < 400
    assert f'width="{about["width"]}" height="{about["height"]}"' in drawing
    assert "<path" in drawing
    assert not re.search(r' d="[^"]*\.\d{3}', drawing)
    assert (kind, drawing, about) == repeated


def test_an_svg_is_shown_unchanged(outputs):
    svg = '<svg xmlns="http://www.w3.org/2000/svg" width="30" height="20"><path/></svg>'
    display.show(svg, "A path.")
    ((_, drawing, about),) = outputs
    assert drawing == svg
    assert about == {"alt": "A path.", "width": 30, "height": 20, "folded": False}


def pictures_in(drawing: str) -> list[Image.Image]:
    encoded_images = re.findall(r'href="data:image/(?:png|webp);base64,([^"]*)"', drawing)
    return [Image.open(io.BytesIO(base64.b64decode(text))) for text in encoded_images]


@pytest.mark.parametrize("side", [32, 250])
def test_images_in_figures_keep_their_size_and_are_compressed(side, outputs):
    pixels = np.random.default_rng(0).normal(128, 30, (side, side, 3)).clip(0, 255).astype(np.uint8)
    figure, axis = plt.subplots(figsize=(3, 3))
    axis.imshow(pixels)
    display.show(figure, "Noise.")
    ((_, drawing, _),) = outputs
    (picture,) = pictures_in(drawing)
    assert picture.size == (side, side)
    assert np.abs(np.asarray(picture.convert("RGB"), float) - pixels).mean() < 20
    assert len(drawing) < side * side + 20_000


def test_a_cloud_of_points_is_stored_as_pixels(outputs):
    for n in (100, 5000):
        figure, axis = plt.subplots(figsize=(3, 3))
        axis.scatter(*np.random.default_rng(0).normal(size=(2, n)), s=2)
        display.show(figure, "Points.")
    (_, drawing_of_few, _), (_, drawing_of_many, about) = outputs
    assert pictures_in(drawing_of_few) == []
    (points,) = pictures_in(drawing_of_many)
    assert about["width"] < points.width <= 2 * about["width"]


def alignments(html: str) -> list[str]:
    """The alignment of the columns of a table, from its headers."""
    return re.findall(r'<th scope="col" style="text-align: (\w+)"', html)


def test_numbers_are_aligned_right_and_texts_left(outputs):
    frame = pd.DataFrame(
        {
            "mAP": [Estimate(0.1, 0, 0.2), Estimate(np.nan)],
            "verdict": ["yes", "no"],
            "k": [1, 2],
            "marked": ["10.0", "1,000.5"],
            "depth": ["all", "10"],
        }
    )
    display.table(frame, "A & B.")
    (bundle, metadata) = outputs[0]
    assert metadata == {"text/html": {"caption": "A & B."}}
    assert "<caption>A &amp; B.</caption>" in bundle["text/html"]
    assert "0.10 [0.00,\u00a00.20]" in bundle["text/html"]
    assert alignments(bundle["text/html"]) == ["right", "left", "right", "right", "left"]


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (1234.5678, "1,234.568"), (np.float32(0.5), "0.500"), (1234, "1,234"), (np.int64(5), "5"),
        (np.nan, "–"), (None, "–"), (pd.NA, "–"), (True, "True"), ("a < b", "a &lt; b"),
        (PValue(0.0001), "&lt; 0.001"), (Estimate(np.nan), "–"),
    ],
)  # fmt: skip
def test_a_cell_is_formatted_by_its_type(cell, text, outputs):
    display.table(pd.DataFrame({"x": pd.Series([cell], dtype=object)}), "Cells.")
    assert f">{text}</td>" in outputs[0][0]["text/html"]


def test_numbers_have_the_requested_digits(outputs):
    frame = pd.DataFrame({"cnn": [1.25, 3.14159]}, index=["seconds", "ratio"])
    display.table(frame, "Costs.")
    display.table(frame, "Costs.", digits=2)
    three_digits, two_digits = (
        re.findall(r">([\d.]+)</td>", bundle["text/html"]) for bundle, _ in outputs
    )
    assert (three_digits, two_digits) == (["1.250", "3.142"], ["1.25", "3.14"])


def test_the_csv_of_a_table_has_no_formulas(outputs):
    classes = ["=cmd|calc", "-2"]
    counts = pd.DataFrame([[1, -2], [3, 4]], columns=classes, index=pd.Index(classes, name="class"))
    display.table(counts, "Confusions.")
    display.table(counts.rename_axis(None), "Confusions.")
    for first, (bundle, _) in zip(("class", ""), outputs, strict=True):
        rows = list(csv.reader(io.StringIO(bundle["text/csv"])))
        assert rows == [[first, "'=cmd|calc", "-2"], ["'=cmd|calc", "1", "-2"], ["-2", "3", "4"]]


def test_the_csv_of_a_table_has_full_values_and_separate_intervals(outputs):
    frame = pd.DataFrame(
        {
            "run": ["cnn", "baseline"],
            "mAP": [Estimate(0.912345678, 0.9061, 0.9188), Estimate(np.nan)],
            "p": [PValue(0.0001), PValue(np.nan)],
            "epochs": [3, 0],
        }
    )
    display.table(frame, "Quality.")
    bundle, _ = outputs[0]
    assert "0.912 [0.906,\u00a00.919]" in bundle["text/html"]
    csv_table = pd.read_csv(io.StringIO(bundle["text/csv"]))
    assert list(csv_table) == ["run", "mAP", "mAP_ci_low", "mAP_ci_high", "p", "epochs"]
    assert csv_table.loc[0, ["mAP", "mAP_ci_low", "mAP_ci_high"]].tolist() == [
        0.912345678,
        0.9061,
        0.9188,
    ]
    assert csv_table.loc[1, ["mAP", "mAP_ci_low", "mAP_ci_high"]].isna().all()
    assert csv_table.loc[0, "p"] == 0.0001
    assert csv_table.loc[[1], "p"].isna().all()
    assert csv_table["epochs"].tolist() == [3, 0]


def test_a_table_is_folded_under_its_summary(outputs):
    frame = pd.DataFrame({"cnn": ["<b>"]}, index=pd.Index(["epochs"], name="parameter"))
    display.table(frame, "All & every parameter.", folded=True)
    ((bundle, metadata),) = outputs
    html = bundle["text/html"]
    assert html.startswith("<details><summary>All &amp; every parameter.</summary>")
    assert 'aria-label="All &amp; every parameter."' in html
    assert metadata == {"text/html": {"caption": "All & every parameter."}}
    assert "&lt;b&gt;" in html
    assert bundle["text/csv"] == "parameter,cnn\nepochs,<b>\n"


def test_each_architecture_has_the_same_distinct_look_in_every_figure():
    names = [f"architecture {number}" for number in range(len(display.LOOKS))]
    names = [*display.KNOWN, *names][: len(display.LOOKS)]
    all_looks = display.looks(names)
    assert len(set(display.LOOKS)) == len(set(all_looks.values())) == len(names)
    assert display.looks(reversed(names)) == all_looks
    assert all_looks["cnn"] == display.looks(["mine", "cnn"])["cnn"] == display.LOOKS[0]
    assert display.looks(["mine"])["mine"] == display.looks(["mine", "cnn", "other"])["mine"]
    # A variant has the colour of the architecture it is named after, and another marker.
    for known, variant in (("resnet50", "resnet50_64"), ("cnn_strong", "cnn_strong_short")):
        (colour, marker), (variant_colour, variant_marker) = display.looks(
            [known, variant]
        ).values()
        assert colour == variant_colour and marker != variant_marker
    # Baselines are grey and use no look of an architecture.
    rules = display.looks([*display.RULES, *names])
    assert {name: rules[name] for name in names} == all_looks
    assert {rules[name][0] for name in display.RULES} == {display.FAINT}
    # More architectures than looks have a look, too.
    assert len(display.looks(map(str, range(60)))) == 60


AS_SVG = {"format": "svg", "metadata": {"Date": None}}


def bars(*names: str) -> plt.Figure:
    figure, axis = plt.subplots(figsize=(4, 2))
    axis.plot([0, 1], label=display.entry(names[0]))
    axis.legend()
    axis.set_yticks(range(len(names)), names)
    axis.set_title(f"{names[-1]}, 0.5")
    return figure


@pytest.fixture
def drawn_texts(monkeypatch) -> list[str]:
    """The texts of the figures that are drawn."""
    texts, save = [], plt.Figure.savefig

    def record(figure, *arguments, **settings):
        save(figure, *arguments, **settings)
        texts.extend(text.get_text() for text in figure.findobj(display.Text))

    monkeypatch.setattr(plt.Figure, "savefig", record)
    return texts


@pytest.mark.parametrize("name", ["猫と犬", "كلب"])
def test_names_in_any_script_are_drawn_as_text_with_enough_room(name, outputs, recwarn):
    display.show(bars("x", name), "Classes.")
    display.show(bars("x", "o" * len(name)), "Classes.")
    (_, drawing, about), (_, _, narrow) = outputs
    assert drawing.count(f">{name}</text>") == 1
    assert "system-ui" in drawing
    assert display.FONT not in drawing
    assert not list(recwarn)
    # A letter of Chinese or Japanese is about as wide as two others.
    n_wide = sum(letter > "\u3000" for letter in name)
    assert about["width"] - narrow["width"] > 5 * n_wide - 20


@pytest.mark.parametrize("name", ["$1_to_$5", "a$b_c$d{", "\\frac", "_background", "a\\$b"])
def test_names_are_neither_formulas_nor_hidden(name, drawn_texts, outputs):
    display.show(bars(name, "dog"), "Classes.")
    assert (
        drawn_texts.count(name) + drawn_texts.count(f"\u200a{name}") == 3
    )  # two of them labels of a tick


def test_matplotlib_settings_of_the_user_do_not_affect_figures(tmp_path):
    settings = "text.usetex: True\nfont.size: 30\naxes.titleweight: bold\nfigure.dpi: 30\n"
    settings += "lines.linewidth: 9\nlegend.loc: lower left\nsvg.fonttype: path\n"
    (tmp_path / "matplotlibrc").write_text(settings)
    code = "from test_display import *; bars('a').savefig(sys.stdout.buffer, **AS_SVG)"
    environment = os.environ | {"MATPLOTLIBRC": str(tmp_path)}
    folder = Path(__file__).parent
    svg = subprocess.check_output([sys.executable, "-c", code], env=environment, cwd=folder)
    expected = io.BytesIO()
    bars("a").savefig(expected, **AS_SVG)
    assert svg == expected.getvalue()


def test_bars_are_sorted_and_show_their_values(outputs):
    points = pd.DataFrame(
        {
            "value": [0.5, 0.9, 0.1], "ci_low": [0.45, 0.88, np.nan],
            "ci_high": [0.55, 0.92, np.nan], "milliseconds": [2.0, 40.0, np.nan],
            "is_baseline": [False, False, True],
        },
        index=pd.Index(["cnn", "vgg16", "vec<t>"], name="architecture"),
    )  # fmt: skip
    display.bars(points, "Quality & cost.")
    ((bundle, metadata),) = outputs
    html = bundle["text/html"]
    assert re.findall(r'<th scope="row"[^>]*><a href="([^"]*)">([^<]*)', html) == [
        ("vgg16.html", "vgg16"), ("cnn.html", "cnn"), ("vec%3Ct%3E.html", "vec&lt;t&gt;"),
    ]  # fmt: skip
    assert "0.900 [0.880,\u00a00.920]" in html
    assert re.findall(r"(40|2) ms</td>", html) == ["40", "2"]
    assert re.findall(r'<rect width="([\d.]+)%"', html) == ["100.00", "5.00"]
    assert 'x1="88.00%" x2="92.00%"' in html
    assert html.count('stroke-width="4"') == 2
    assert display.looks(["cnn"])["cnn"][0] in html
    assert "nan" not in html
    assert metadata == {"text/html": {"caption": "Quality & cost."}}
    assert bundle["text/csv"].startswith("architecture,value")
