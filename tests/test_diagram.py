"""The diagram of a study: its numbers, well-formed SVG and texts that fit into their boxes."""

import re
from xml.etree import ElementTree

import pytest
from invented import MEASUREMENT, result, rows

from cbir.reporting import diagram, display

SVG = "{http://www.w3.org/2000/svg}"


def run(baseline=False, **changes):
    invented_run = result(rows([0.5, 0.6]), baseline=baseline, **changes)
    invented_run.summary["dataset"] |= {
        "train": 45_000, "validation": 5_000, "gallery": 50_000, "queries": 9_876,
    }  # fmt: skip
    invented_run.summary["measurement"] = MEASUREMENT | {"ks": [1, 1000]}
    return invented_run


def drawing_of(results: dict) -> ElementTree.Element:
    return ElementTree.fromstring(diagram.system(results))


def boxes(root: ElementTree.Element) -> dict[str, str]:
    """The texts of each box, by its first line."""
    texts = {}
    for rect in root.iter(f"{SVG}rect"):
        left, top, width, height = (float(rect.get(name)) for name in ("x", "y", "width", "height"))
        inside = [
            text.text
            for text in root.iter(f"{SVG}text")
            if left <= float(text.get("x")) <= left + width
            and top <= float(text.get("y")) <= top + height
        ]
        texts[inside[0]] = " ".join(inside[1:])
    return texts


def test_each_box_describes_its_part_of_the_runs():
    texts = boxes(
        drawing_of({"cnn": run(), "vgg16": run(embedding_dim=512, index_bytes=6_000_000)})
    )
    assert texts == {
        "Training images": "45,000 for training 5,000 for validation",
        "Backbones": "cnn, vgg16",
        "Heads": "embedding of 256 to 512 numbers, of length 1",
        "Classifier": "2 classes seeds: 1",
        "Gallery index": "50,000 × 256 to 512 numbers and their classes 3.0 to 6.0 MB",
        "Queries": "9,876 images, protocol closed",
        "The same networks": "embedding and predicted class of each query",
        "Search": "unrestricted",
        "Metrics": "mAP of 9,876 rankings, precision at 1, 1,000",
    }


def test_one_architecture_is_described_in_the_singular():
    texts = boxes(drawing_of({"cnn": run(), "random": run(baseline=True)}))
    assert texts["Backbone"] == "cnn"
    assert {"Head", "The same network"} < texts.keys()
    assert texts["Gallery index"].startswith("50,000 × 256 numbers")


def test_without_a_network_there_is_no_diagram():
    assert diagram.system({"random": run(baseline=True)}) == ""


@pytest.mark.parametrize("name", ["cnn", "an_architecture_of_a_very_long_name " * 9, "a<b>&\"c'"])
def test_text_stays_within_its_box_and_boxes_within_the_drawing(name):
    root = drawing_of({name.strip(): run()})
    width, height = map(float, root.get("viewBox").split()[2:])
    for rect in root.iter(f"{SVG}rect"):
        assert float(rect.get("x")) + float(rect.get("width")) <= width
        assert float(rect.get("y")) + float(rect.get("height")) <= height
    for text in root.iter(f"{SVG}text"):
        available = diagram.BOX if "phase" not in text.text else width
        assert len(text.text) * diagram.LETTER * diagram.TEXT <= available
        assert float(text.get("y")) < height
    assert len(boxes(root)) == 9


def test_the_diagram_has_a_title_and_description_for_screen_readers():
    root = drawing_of({"cnn": run(), "vgg16": run()})
    assert root.get("role") == "img"
    title, description = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
    assert root.get("aria-labelledby").split() == [title.get("id"), description.get("id")]
    assert title.text == "2 networks, as run"
    for word in ("45,000", "50,000", "9,876", "cnn, vgg16", "unrestricted"):
        assert word in description.text


def test_all_colours_have_a_dark_variant():
    colours = re.findall(r"(?:fill|stroke): ([^;\"]+)", diagram.system({"cnn": run()}))
    assert {*colours} == {"none", display.INK, display.NEUTRAL}
