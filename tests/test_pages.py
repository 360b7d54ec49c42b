"""Pages: what a reader sees of an executed notebook, and that nothing is fetched for it."""

import base64
import re
from html.parser import HTMLParser

import nbformat
import pytest
from nbformat import v4

from cbir.reporting.pages import log_of, write_page

LINKS = [("Comparison", "index.html"), ("cnn", "cnn.html"), ("vgg16", "vgg16.html")]
PIXEL = base64.b64encode(b"not really a picture").decode()


class Tags(HTMLParser):
    """Every tag of a page with its attributes, and the text."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def of(self, name: str) -> list[dict]:
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """An executed notebook with one output of each kind; its last cell failed."""
    shown = v4.new_output(
        "display_data",
        {"image/png": PIXEL, "text/plain": "<Figure size 1x1>"},
        metadata={"image/png": {"alt": 'Loss by epoch & "class"'}},
    )
    table = v4.new_output(
        "execute_result",
        {"text/html": "<table><caption>Scores</caption><tr><td>0.5</td></tr></table>"},
        execution_count=2,
    )
    said = v4.new_output("display_data", {"text/markdown": "**b** is ahead of a"})
    printed = v4.new_output("stream", name="stdout", text="epoch 1/2: loss 0.5\n")
    warned = v4.new_output("stream", name="stderr", text="a warning of some library\n")
    failed = v4.new_output(
        "error",
        ename="ValueError",
        evalue="too small",
        traceback=["\x1b[31m----\x1b[39m", "\x1b[31mValueError\x1b[0m: too small"],
    )
    cells = [
        v4.new_markdown_cell("# A plain CNN\n\nSee [the metrics](metrics.csv)."),
        v4.new_markdown_cell("Change the next cell.", metadata={"tags": ["notebook-only"]}),
        v4.new_code_cell("secret_name = 1", outputs=[printed, warned, shown]),
        v4.new_code_cell("another_secret", outputs=[table, said]),
        v4.new_code_cell("raise ValueError", outputs=[failed]),
    ]
    path = tmp_path_factory.mktemp("pages") / "cnn.ipynb"
    nbformat.write(v4.new_notebook(cells=cells), path)
    return path


@pytest.fixture(scope="module")
def html(notebook):
    page = notebook.with_suffix(".html")
    write_page(notebook, page, report="a<b", title="cnn · tiny", links=LINKS)
    return page.read_text("utf-8")


@pytest.fixture(scope="module")
def tags(html):
    return Tags(html)


def test_code_is_hidden_and_prose_and_outputs_are_shown(html):
    assert "secret_name" not in html
    assert "another_secret" not in html
    assert "A plain CNN" in html
    assert "<td>0.5</td>" in html
    assert "<strong>b</strong> is ahead of a" in html
    assert "Out[" not in html


def test_words_to_whoever_works_in_the_notebook_stay_there(html, notebook):
    assert "Change the next cell." not in html
    assert "Change the next cell." in notebook.read_text("utf-8")


def test_figures_keep_their_text_and_stand_within_the_page(tags):
    assert [image["alt"] for image in tags.of("img")] == ['Loss by epoch & "class"']
    assert tags.of("img")[0]["src"].startswith("data:image/png;base64,")


def test_nothing_is_fetched_or_run(html, tags):
    assert not tags.of("script")
    assert not tags.of("link")
    assert not tags.of("iframe")
    assert "@import" not in html
    assert not re.search(r"url\(\s*['\"]?(https?:)?//", html)
    for _, attributes in tags.tags:
        assert not re.match(r"(https?:)?//", attributes.get("src") or "")
        assert not any(name.startswith("on") for name in attributes)


def test_pages_link_to_one_another_and_mark_where_the_reader_is(tags):
    links = [link for link in tags.of("a") if link["href"].endswith(".html")]
    assert [link["href"] for link in links] == ["index.html", "cnn.html", "vgg16.html"]
    assert [link["href"] for link in links if link.get("aria-current")] == ["cnn.html"]
    assert "metrics.csv" in {link["href"] for link in tags.of("a")}


def test_a_page_says_its_language_title_and_study(html, tags):
    assert tags.of("html") == [{"lang": "en"}]
    assert {"charset": "utf-8"} in tags.of("meta")
    assert "<title>cnn · tiny</title>" in html
    assert "<span>a&lt;b</span>" in html


def test_printed_lines_are_kept_and_warnings_dropped(tags):
    assert "epoch 1/2: loss 0.5" in tags.text
    assert "a warning of some library" not in tags.text


def test_a_failure_is_shown_without_terminal_codes(html, tags):
    assert "ValueError: too small" in tags.text
    assert "\x1b" not in html


def test_the_log_has_what_was_printed_and_the_traceback(notebook):
    log = log_of(notebook)
    assert log.startswith("epoch 1/2: loss 0.5\n")
    assert log.endswith("----\nValueError: too small\n")
    assert "\x1b" not in log


def test_the_same_notebook_gives_the_same_page(notebook, html, tmp_path):
    write_page(notebook, tmp_path / "cnn.html", report="a<b", title="cnn · tiny", links=LINKS)
    assert (tmp_path / "cnn.html").read_text("utf-8") == html
