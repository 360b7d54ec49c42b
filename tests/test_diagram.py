"""The diagram shows the study's own numbers, is well-formed, and keeps its text in its boxes."""

import re
from xml.etree import ElementTree

import pytest
from invented import MEASUREMENT, result, rows

from cbir.reporting import diagram, display

SVG = "{http://www.w3.org/2000/svg}"


def run(baseline=False, **changes):
    made = result(rows([0.5, 0.6]), baseline=baseline, **changes)
    made.summary["dataset"] |= {
        "train": 45_000, "validation": 5_000, "gallery": 50_000, "queries": 9_876,
    }  # fmt: skip
    made.summary["measurement"] = MEASUREMENT | {"ks": [1, 1000]}
    return made


def drawn(results: dict) -> ElementTree.Element:
    return ElementTree.fromstring(diagram.system(results))


def boxes(root: ElementTree.Element) -> dict[str, str]:
    """What stands in each box, by its first line."""
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


def test_each_box_says_what_was_run():
    texts = boxes(drawn({"cnn": run(), "vgg16": run(embedding_dim=512, index_bytes=6_000_000)}))
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


def test_of_one_architecture_it_speaks_in_the_singular():
    texts = boxes(drawn({"cnn": run(), "random": run(baseline=True)}))
    assert texts["Backbone"] == "cnn"
    assert {"Head", "The same network"} < texts.keys()
    assert texts["Gallery index"].startswith("50,000 × 256 numbers")


def test_without_a_network_there_is_nothing_to_draw():
    assert diagram.system({"random": run(baseline=True)}) == ""


@pytest.mark.parametrize("name", ["cnn", "an_architecture_of_a_very_long_name " * 9, "a<b>&\"c'"])
def test_text_stays_within_its_box_and_boxes_within_the_drawing(name):
    root = drawn({name.strip(): run()})
    width, height = map(float, root.get("viewBox").split()[2:])
    for rect in root.iter(f"{SVG}rect"):
        assert float(rect.get("x")) + float(rect.get("width")) <= width
        assert float(rect.get("y")) + float(rect.get("height")) <= height
    for text in root.iter(f"{SVG}text"):
        around = diagram.BOX if "phase" not in text.text else width
        assert len(text.text) * diagram.LETTER * diagram.TEXT <= around
        assert float(text.get("y")) < height
    assert len(boxes(root)) == 9


def test_a_screen_reader_hears_what_is_drawn():
    root = drawn({"cnn": run(), "vgg16": run()})
    assert root.get("role") == "img"
    title, described = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
    assert root.get("aria-labelledby").split() == [title.get("id"), described.get("id")]
    assert title.text == "2 networks, as run"
    for word in ("45,000", "50,000", "9,876", "cnn, vgg16", "unrestricted"):
        assert word in described.text


def test_its_colours_have_others_in_the_dark():
    colours = re.findall(r"(?:fill|stroke): ([^;\"]+)", diagram.system({"cnn": run()}))
    assert {*colours} == {"none", display.INK, display.NEUTRAL}
