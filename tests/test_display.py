"""What notebooks show: figures with their text, tables with their numbers in full, or nothing."""

import base64
import io
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cbir.reporting import display
from cbir.reporting.estimates import Estimate, PValue


@pytest.fixture
def shown(monkeypatch) -> list:
    """What is displayed: its kind, its bytes or text, and what is said of it."""
    outputs = []

    def record(output, metadata=None, raw=False):
        if raw:
            outputs.append((output, metadata))
        elif metadata:
            ((kind, about),) = metadata.items()
            outputs.append((kind, output.data, about))
        else:
            outputs.append(output.data)

    monkeypatch.setattr(display, "display", record)
    return outputs


@pytest.mark.parametrize("empty", [None, pd.DataFrame(), pd.DataFrame(columns=["k"])])
def test_of_nothing_nothing_is_shown(empty, shown):
    display.table(empty, "A caption.")
    display.show(None, "A figure.")
    display.say(None)
    display.say("")
    assert shown == []


def test_a_text_is_shown_as_markdown(shown):
    display.say("**a** is ahead of b")
    assert shown == ["**a** is ahead of b"]


def curve() -> plt.Figure:
    figure, axis = plt.subplots(figsize=(4, 2))
    axis.plot([1, 2, 3])
    return figure


def test_figures_of_lines_are_drawn_as_svg_the_same_each_time(shown):
    for figure in (curve(), curve()):
        display.show(figure, "A line.")
        assert not plt.fignum_exists(figure.number)
    (kind, drawing, about), other = shown
    assert kind == "image/svg+xml"
    assert about["alt"] == "A line."
    assert 250 < about["width"] < 400
    assert "<path" in drawing
    assert (kind, drawing, about) == other


def test_small_pictures_are_kept_as_they_are_and_large_ones_as_shown(shown):
    random = np.random.default_rng(0)
    for side in (32, 900):
        figure, axis = plt.subplots(figsize=(3, 3))
        axis.imshow(random.integers(0, 256, (side, side, 3), np.uint8))
        display.show(figure, "Noise.")
    (small, drawing, _), (large, pixels, about) = shown
    assert (small, large) == ("image/svg+xml", "image/jpeg")
    (kept,) = re.findall(r'href="data:image/png;base64,([^"]*)"', drawing)
    assert plt.imread(io.BytesIO(base64.b64decode(kept))).shape[:2] == (32, 32)
    assert Image.open(io.BytesIO(pixels)).width == pytest.approx(2 * about["width"], abs=2)


def test_a_cloud_of_points_is_pixels_without_loss(shown):
    figure, axis = plt.subplots(figsize=(3, 3))
    axis.scatter(*np.random.default_rng(0).normal(size=(2, 5000)), s=2)
    display.show(figure, "Points.")
    ((kind, pixels, about),) = shown
    assert kind == "image/png"
    assert Image.open(io.BytesIO(pixels)).width == pytest.approx(2 * about["width"], abs=2)


def sides(html: str) -> list[str]:
    """Where the cells of a table's columns stand, by the headers."""
    return re.findall(r'<th scope="col" style="text-align: (\w+)"', html)


def test_numbers_stand_to_the_right_and_texts_to_the_left(shown):
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
    (bundle, metadata) = shown[0]
    assert metadata == {"text/html": {"caption": "A & B."}}
    assert "<caption>A &amp; B.</caption>" in bundle["text/html"]
    assert "0.10 [0.00,\u00a00.20]" in bundle["text/html"]
    assert sides(bundle["text/html"]) == ["right", "left", "right", "right", "left"]


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (1234.5678, "1,234.568"), (np.float32(0.5), "0.500"), (1234, "1,234"), (np.int64(5), "5"),
        (np.nan, "–"), (None, "–"), (pd.NA, "–"), (True, "True"), ("a < b", "a &lt; b"),
        (PValue(0.0001), "&lt; 0.001"), (Estimate(np.nan), "–"),
    ],
)  # fmt: skip
def test_a_cell_is_written_as_a_reader_sees_it(cell, text, shown):
    display.table(pd.DataFrame({"x": pd.Series([cell], dtype=object)}), "Cells.")
    assert f">{text}</td>" in shown[0][0]["text/html"]


def test_rows_have_digits_of_their_own(shown):
    frame = pd.DataFrame({"cnn": [1.25, 3.14159]}, index=["seconds", "ratio"])
    display.table(frame, "Costs.", digits={"seconds": 1})
    display.table(frame, "Costs.", digits=2)
    some, alike = (re.findall(r">([\d.]+)</td>", bundle["text/html"]) for bundle, _ in shown)
    assert (some, alike) == (["1.2", "3.142"], ["1.25", "3.14"])


def test_csv_of_a_table_has_value_and_ends_in_full_in_columns_of_their_own(shown):
    frame = pd.DataFrame(
        {
            "run": ["cnn", "baseline"],
            "mAP": [Estimate(0.912345678, 0.9061, 0.9188), Estimate(np.nan)],
            "p": [PValue(0.0001), PValue(np.nan)],
            "epochs": [3, 0],
        }
    )
    display.table(frame, "Quality.")
    bundle, _ = shown[0]
    assert "0.912 [0.906,\u00a00.919]" in bundle["text/html"]
    read = pd.read_csv(io.StringIO(bundle["text/csv"]))
    assert list(read) == ["run", "mAP", "mAP_ci_low", "mAP_ci_high", "p", "epochs"]
    assert read.loc[0, ["mAP", "mAP_ci_low", "mAP_ci_high"]].tolist() == [
        0.912345678,
        0.9061,
        0.9188,
    ]
    assert read.loc[1, ["mAP", "mAP_ci_low", "mAP_ci_high"]].isna().all()
    assert read.loc[0, "p"] == 0.0001
    assert read.loc[[1], "p"].isna().all()
    assert read["epochs"].tolist() == [3, 0]


def test_a_table_is_folded_under_its_summary(shown):
    frame = pd.DataFrame({"cnn": ["<b>"]}, index=pd.Index(["epochs"], name="parameter"))
    display.table(frame, "All & every parameter.", folded=True)
    ((bundle, metadata),) = shown
    html = bundle["text/html"]
    assert html.startswith("<details><summary>All &amp; every parameter.</summary>")
    assert "All &amp; every parameter.</caption>" in html
    assert metadata == {"text/html": {"caption": "All & every parameter."}}
    assert "&lt;b&gt;" in html
    assert bundle["text/csv"] == "parameter,cnn\nepochs,<b>\n"


def test_an_architecture_looks_the_same_in_every_figure_and_like_no_other():
    names = [f"architecture {number}" for number in range(len(display.LOOKS))]
    names = [*display.KNOWN, *names][: len(display.LOOKS)]
    all_looks = display.looks(names)
    assert len(set(display.LOOKS)) == len(set(all_looks.values())) == len(names)
    assert display.looks(reversed(names)) == all_looks
    assert all_looks["cnn"] == display.looks(["mine", "cnn"])["cnn"] == display.LOOKS[0]
    assert display.looks(["mine"])["mine"] == display.looks(["mine", "cnn", "other"])["mine"]
    # More than there are looks still have one each.
    assert len(display.looks(map(str, range(60)))) == 60
