"""Pages show executed notebooks to readers and fetch nothing."""

import base64
import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest
from nbformat import v4

from cbir.reporting import display, notebook_html
from cbir.reporting.notebook_html import log_of, published_copy, write_index, write_page
from cbir.studies import runner
from cbir.studies.study import Page

LINKS = [("Comparison", "index.html"), ("cnn", "cnn.html"), ("vgg16", "vgg16.html")]
DRAWING = '<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"></svg>'


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
    """An executed notebook with an output of every kind, whose last cell failed."""
    figure = v4.new_output(
        "display_data",
        {"image/svg+xml": DRAWING, "text/plain": "<Figure size 1x1>"},
        metadata={"image/svg+xml": {"alt": 'Loss by epoch & "class"', "width": 640}},
    )
    table = v4.new_output(
        "execute_result",
        {
            "text/html": "<table><caption>Scores</caption><tr><td>0.5</td></tr></table>",
            "text/csv": "score\n0.5000001\n",
        },
        metadata={"text/html": {"caption": "Scores"}},
        execution_count=2,
    )
    text = v4.new_output("display_data", {"text/markdown": "**b** is ahead of a"})
    stdout = v4.new_output("stream", name="stdout", text="epoch 1/2: loss 0.5\n")
    stderr = v4.new_output("stream", name="stderr", text="a warning of some library\n")
    error = v4.new_output(
        "error",
        ename="ValueError",
        evalue="too small",
        traceback=["\x1b[31m----\x1b[39m", "\x1b[31mValueError\x1b[0m: too small"],
    )
    cells = [
        v4.new_markdown_cell("# A plain CNN\n\nSee [the metrics](metrics.csv)."),
        v4.new_markdown_cell("Change the next cell.", metadata={"tags": ["notebook-only"]}),
        v4.new_markdown_cell("## What it *learnt*"),
        v4.new_code_cell("secret_name = 1", outputs=[stdout, stderr, figure]),
        v4.new_markdown_cell("## Summary\n\n### In short"),
        v4.new_code_cell("another_secret", outputs=[table, text]),
        v4.new_code_cell("raise ValueError", outputs=[error]),
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


def test_cells_for_users_of_the_notebook_are_not_on_the_page(html, notebook):
    assert "Change the next cell." not in html
    assert "Change the next cell." in notebook.read_text("utf-8")


def test_figures_have_a_description_and_are_embedded_in_the_page(tags):
    assert [image["alt"] for image in tags.of("img")] == ['Loss by epoch & "class"']
    assert tags.of("img")[0]["src"].startswith("data:image/svg+xml;base64,")


def test_nothing_is_fetched_or_run(html, tags):
    assert not tags.of("script")
    assert all(link["href"].startswith("data:") for link in tags.of("link"))
    assert not tags.of("iframe")
    assert "@import" not in html
    assert not re.search(r"url\(\s*['\"]?(https?:)?//", html)
    for _, attributes in tags.tags:
        assert not re.match(r"(https?:)?//", attributes.get("src") or "")
        assert not any(name.startswith("on") for name in attributes)


def test_pages_link_to_each_other_and_mark_the_current_page(tags):
    links = [link for link in tags.of("a") if link["href"].endswith(".html")]
    assert [link["href"] for link in links] == [
        "../index.html", "index.html", "cnn.html", "vgg16.html",
    ]  # fmt: skip
    assert [link["href"] for link in links if link.get("aria-current")] == ["cnn.html"]
    assert "metrics.csv" in {link["href"] for link in tags.of("a")}


def test_a_page_has_language_title_and_study(html, tags):
    assert tags.of("html") == [{"lang": "en"}]
    assert {"charset": "utf-8"} in tags.of("meta")
    assert "<title>cnn · tiny</title>" in html
    assert "<span>a&lt;b</span>" in html


def test_a_page_shows_printed_lines_but_no_warnings(tags):
    assert "epoch 1/2: loss 0.5" in tags.text
    assert "a warning of some library" not in tags.text


def test_a_failure_is_shown_without_terminal_codes(html, tags):
    assert "ValueError: too small" in tags.text
    assert "\x1b" not in html


def test_the_log_contains_printed_lines_and_the_traceback(notebook):
    log = log_of(notebook)
    assert log.startswith("epoch 1/2: loss 0.5\n")
    assert log.endswith("----\nValueError: too small\n")
    assert "\x1b" not in log


def test_the_same_notebook_gives_the_same_page(notebook, html, tmp_path):
    write_page(notebook, tmp_path / "cnn.html", report="a<b", title="cnn · tiny", links=LINKS)
    assert (tmp_path / "cnn.html").read_text("utf-8") == html


def test_a_figure_is_followed_by_its_number_and_description(html, tags):
    figure = Tags(re.search(r"<figure[^>]*>.*?</figure>", html, re.DOTALL)[0])
    (image,) = figure.of("img")
    assert image["width"] == "640"
    assert figure.text.split() == ["Figure", "1", *image["alt"].split(), "Link", "SVG"]
    # Otherwise a screen reader would read the same words twice.
    assert [span.get("aria-hidden") for span in figure.of("span")] == [None, "true"]


def test_wide_tables_and_figures_can_be_scrolled_by_keyboard(tags):
    boxes = [box for box in tags.of("div") if box.get("class") == "scroll"]
    assert [box["aria-label"] for box in boxes] == ["Figure 1", "Table 1: Scores"]
    assert all((box["tabindex"], box["role"]) == ("0", "region") for box in boxes)


def test_contents_link_to_the_sections(html, tags):
    (contents,) = re.findall(r'<nav [^>]*class="contents".*?</nav>', html, re.DOTALL)
    links = [link["href"] for link in Tags(contents).of("a")]
    # Once beside the text, and once folded for phones.
    assert links == 2 * [f"#{heading['id']}" for heading in tags.of("h2")]
    assert "What it <em>learnt</em>" in contents
    assert "In short" not in contents


def test_a_page_of_one_section_has_no_contents(tmp_path):
    cells = [v4.new_markdown_cell("# cnn\n\nNo results: not run\n\n## Why")]
    assert 'class="contents"' not in page_of(cells, tmp_path)


def test_the_page_of_a_shared_notebook_has_its_name_as_title(tmp_path):
    title = {"tags": ["name-as-title"]}
    html = page_of([v4.new_markdown_cell("# Any\n\nOne of many.", metadata=title)], tmp_path)
    assert re.findall(r"<h1[^>]*>(\w+)", html) == ["cnn"]
    assert "One of many." in html


def test_the_results_of_a_run_come_first_without_its_log(tmp_path):
    text = v4.new_output("display_data", {"text/markdown": "**cnn** ranks well."})
    stdout = v4.new_output("stream", name="stdout", text="epoch 1/2\n")
    metadata = {"tags": ["lead", "first"]}
    cells = [v4.new_markdown_cell("# cnn"), v4.new_markdown_cell("A plain one."),
             v4.new_code_cell("", outputs=[stdout]),
             v4.new_code_cell("", outputs=[stdout, text], metadata=metadata)]  # fmt: skip
    tags = Tags(page_of(cells, tmp_path))
    words = " ".join(tags.text.partition("¶")[2].split())
    assert words == "cnn ranks well. A plain one. Logepoch 1/2"
    assert {"name": "description", "content": "cnn ranks well."} in tags.of("meta")


def test_a_page_is_described_by_its_first_paragraph(tmp_path):
    cells = [v4.new_markdown_cell(f'# cnn\n\nA *plain* one & "small".\n\n{"More. " * 90}')]
    metadata = [meta for meta in Tags(page_of(cells, tmp_path)).of("meta") if "name" in meta]
    assert {"name": "description", "content": 'A plain one & "small".'} in metadata


def page_of(cells: list, folder) -> str:
    """The page `cnn.html`, made from these cells."""
    nbformat.write(v4.new_notebook(cells=cells), folder / "cnn.ipynb")
    write_page(folder / "cnn.ipynb", folder / "cnn.html", report="a", title="cnn", links=LINKS)
    return (folder / "cnn.html").read_text("utf-8")


def table_of(frame: pd.DataFrame, caption: str):
    """The output that a notebook stores for a table that `display.table` displays."""
    outputs = []
    with pytest.MonkeyPatch.context() as patch:
        record = lambda data, metadata, raw: outputs.append((data, metadata))  # noqa: E731
        patch.setattr(display, "display", record)
        display.table(frame, caption)
    ((data, metadata),) = outputs
    return v4.new_output("display_data", data, metadata=metadata)


def cell_of(*tables):
    """A cell that shows these tables."""
    return v4.new_code_cell("", outputs=list(tables))


def test_a_table_has_a_link_to_its_csv_file(notebook, tags):
    links = [link["href"] for link in tags.of("a") if link["href"].startswith("tables/")]
    assert links == ["tables/cnn-scores.csv"]
    assert (notebook.parent / links[0]).read_text("utf-8") == "score\n0.5000001\n"


def test_figures_and_tables_have_anchors_and_figures_have_files(notebook, tags):
    links = [link for link in tags.of("a") if link.get("aria-label", "").startswith("Link")]
    anchors = [link["href"] for link in links]
    assert anchors == ["#figure-loss_by_epoch_class", "#table-scores"]
    ids = {attributes.get("id") for _, attributes in tags.tags}
    assert {anchor[1:] for anchor in anchors} < ids
    (file,) = [link["href"] for link in tags.of("a") if link["href"].startswith("figures/")]
    assert (notebook.parent / file).read_text("utf-8") == DRAWING


def test_later_figures_are_loaded_lazily_and_folded_figures_have_a_caption(tmp_path):
    figures = [
        v4.new_output("display_data", {"image/svg+xml": DRAWING},
                      metadata={"image/svg+xml": {"alt": f"No. {number}", "folded": number == 1}})
        for number in range(3)
    ]  # fmt: skip
    html = page_of([v4.new_code_cell("", outputs=figures)], tmp_path)
    assert [image.get("loading") for image in Tags(html).of("img")] == [None, "lazy", "lazy"]
    (fold,) = re.findall(r"<details><summary>.*?</details>", html.partition("<main")[2], re.DOTALL)
    assert Tags(fold).text.split() == ["Figure", "2", "No.", "1"]


def test_a_page_is_described_by_its_answer(tmp_path):
    answer = v4.new_output("display_data", {"text/markdown": "**cnn** is ahead."})
    cells = [v4.new_markdown_cell("# Which?\n\nA question."),
             v4.new_code_cell("", outputs=[answer], metadata={"tags": ["lead"]})]  # fmt: skip
    tags = Tags(page_of(cells, tmp_path))
    assert {"name": "description", "content": "cnn is ahead."} in [
        meta for meta in tags.of("meta") if "name" in meta
    ]


def test_the_index_lists_studies_from_newest_to_oldest(tmp_path):
    picture = v4.new_output("display_data", {"image/svg+xml": DRAWING},
                            metadata={"image/svg+xml": {"alt": "Pictures & all"}})  # fmt: skip
    answer = v4.new_output("display_data", {"text/markdown": "**cnn** <is> ahead."})
    cells = [v4.new_code_cell("", outputs=[answer, picture], metadata={"tags": ["lead"]})]
    for name, date in (("old", "2026-01-02"), ("new", "2026-03-04"), ("published/x y", None)):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        nbformat.write(v4.new_notebook(cells=cells), folder / "comparison.ipynb")
        page = folder / "index.html"
        write_page(folder / "comparison.ipynb", page, report=name, title=name, links=LINKS)
        (folder / "manifest.json").write_text(json.dumps({"date": date} if date else {}))
    write_index(tmp_path)
    tags = Tags((tmp_path / "index.html").read_text("utf-8"))
    assert [link["href"] for link in tags.of("a")] == [
        "new/index.html", "old/index.html", "published/x%20y/index.html",
    ]  # fmt: skip
    assert tags.text.count("cnn") == 3
    assert "2026-03-04" in tags.text
    assert [image["src"][:26] for image in tags.of("img")] == ["data:image/svg+xml;base64,"] * 3


def test_a_csv_file_has_the_unrounded_numbers_of_its_table(tmp_path):
    frame = pd.DataFrame(
        {"cnn": ["0.1 [0.0,\u00a00.2]", "a, b"], "seconds": [1 / 3, 2000.0]},
        index=pd.Index(["mAP", "x < y"], name="metric"),
    )
    html = page_of([cell_of(table_of(frame, "Two & two."))], tmp_path)
    assert "0.333" in html
    assert "2,000.000" in html
    assert "<td " in html
    assert "x &lt; y" in html
    read = pd.read_csv(tmp_path / "tables" / "cnn-two_two.csv", index_col="metric")
    pd.testing.assert_frame_equal(read, frame.replace("\u00a0", " ", regex=True))


def test_headers_of_tables_have_a_scope(tmp_path):
    frame = pd.DataFrame({"cnn": [0.5], "vgg16": [0.25]}, index=["accuracy"])
    tags = Tags(page_of([cell_of(table_of(frame, "Quality."))], tmp_path))
    assert [header["scope"] for header in tags.of("th")] == ["col", "col", "row"]
    assert "Table 1 Quality." in tags.text


def test_tables_with_the_same_caption_have_separate_files(tmp_path):
    tables = [table_of(pd.DataFrame({"k": [k]}), "Same.") for k in (1, 2, 3)]
    tags = Tags(page_of([cell_of(*tables)], tmp_path))
    names = [link["href"] for link in tags.of("a") if link["href"].startswith("tables/")]
    assert names == [f"tables/cnn-same{number}.csv" for number in ("", "_2", "_3")]
    assert [(tmp_path / name).read_text("utf-8") for name in names] == [
        "k\n1\n",
        "k\n2\n",
        "k\n3\n",
    ]


def test_only_outdated_files_of_tables_of_the_same_page_are_deleted(tmp_path):
    first, second = (table_of(pd.DataFrame({"k": [1]}), name) for name in ("One.", "Two."))
    page_of([cell_of(first, second)], tmp_path)
    # Points of a grid have such names and separate pages.
    (tmp_path / "tables" / "cnn-avg-one.csv").write_text("k\n5\n")
    (tmp_path / "tables" / "vgg16-one.csv").write_text("k\n6\n")
    page_of([cell_of(second)], tmp_path)
    names = sorted(path.name for path in (tmp_path / "tables").iterdir())
    assert names == ["cnn-avg-one.csv", "cnn-two.csv", "vgg16-one.csv"]


def test_a_large_page_causes_a_warning(tmp_path, monkeypatch, capsys):
    study = SimpleNamespace(folder=tmp_path, root=tmp_path, name="tiny", links=LINKS)
    page = Page("vgg16", tmp_path / "vgg16.ipynb")
    runner._write_note(study, page, "why")
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(runner, "LARGEST_PAGE", 1000)
    runner._write_note(study, page, "why")
    assert "warning: vgg16.html has 0.0 MB, more than 0 MB" in capsys.readouterr().out


def test_only_parameters_of_a_run_are_shown_as_code(tmp_path):
    injected = {"tags": ["injected-parameters"]}
    of_a_run = v4.new_code_cell('data = {"dataset": "digits"}', metadata=injected)
    of_all_runs = v4.new_code_cell('study = "digits"\nmissing = []', metadata=injected)
    html = page_of([of_a_run, of_all_runs, v4.new_code_cell("hidden = 1")], tmp_path)
    assert "data = {" in html
    assert "missing" not in html
    assert "hidden" not in html.partition("<main")[2]


# Published copies


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A page with a large and a small drawing, a table and links."""
    figures = [
        v4.new_output("display_data", {"image/svg+xml": DRAWING.replace("><", f">{text}<")},
                      metadata={"image/svg+xml": {"alt": alt, "width": 200}})
        for alt, text in (("A picture", "x" * 9000), ("A drawing", "x"))
    ]  # fmt: skip
    table = v4.new_output(
        "display_data",
        {"text/html": "<table><caption>Scores</caption></table>", "text/csv": "score\n1\n"},
        metadata={"text/html": {"caption": "Scores"}},
    )
    prose = (
        "# The answer\n\nSee [failures](failures.html), [numbers](metrics.csv), "
        "[others](https://example.org) and [below](#End).\n\n## Start\n\n## End"
    )
    cells = [v4.new_markdown_cell(prose), v4.new_code_cell("1", outputs=[*figures, table])]
    notebook = tmp_path_factory.mktemp("copied") / "comparison.ipynb"
    nbformat.write(v4.new_notebook(cells=cells), notebook)
    page = notebook.with_name("index.html")
    write_page(notebook, page, report="tiny", title="tiny", links=LINKS)
    return page


def test_a_copy_has_links_only_to_files_beside_it(original):
    html = published_copy(original, kept=["metrics.csv"], note="A copy of `it`.")
    before, after = (Tags(text) for text in (original.read_text("utf-8"), html))
    assert {"index.html", "failures.html"} < {link["href"] for link in before.of("a")}
    targets = {link["href"] for link in after.of("a")}
    assert {target for target in targets if target[0] != "#"} == {
        "metrics.csv", "https://example.org",
    }  # fmt: skip
    assert {"#End", "#content", "#table-scores"} < targets
    # The text of a link remains, except in the navigation and for files of tables.
    assert "See failures, numbers, others and below." in after.text
    assert "A copy of it." in after.text
    assert "vgg16" not in after.text
    assert "CSV" not in after.text
    assert all(image["src"].startswith("data:image/") for image in after.of("img"))
    assert not after.of("script")


def test_figures_use_the_colours_of_the_page_but_not_in_their_files(tmp_path):
    drawing = (
        f'<svg><path style="fill: #ffffff; stroke: {display.INK}"/>'
        f'<path style="fill: {display.HIT.lower()}"/><text style="fill: #ffffff">#ffffff</text>'
        f'<text style="fill: {display.HIT.lower()}">a</text></svg>'
    )
    output = v4.new_output("display_data", {"image/svg+xml": drawing},
                          metadata={"image/svg+xml": {"alt": "A drawing"}})  # fmt: skip
    (image,) = Tags(page_of([v4.new_code_cell("", outputs=[output])], tmp_path)).of("img")
    themed = base64.b64decode(image["src"].partition(",")[2]).decode()
    assert re.findall(r'style="([^"]*)"', themed) == [
        "fill: var(--paper); stroke: var(--ink)", f"fill: {display.HIT.lower()}", "fill: #ffffff",
        "fill: var(--hit)",
    ]  # fmt: skip
    assert all(f"--{name}:" in themed for name in ("paper", "ink", "hit"))
    (file,) = (tmp_path / "figures").iterdir()
    assert file.read_text("utf-8") == drawing


def test_a_copy_replaces_figures_beyond_its_size_by_a_note(original, monkeypatch):
    complete = published_copy(original, kept=[], note="")
    sizes = [len(image["src"]) for image in Tags(complete).of("img")]
    monkeypatch.setattr(notebook_html, "LARGEST_COPY", len(complete.encode()) - 1)
    html = published_copy(original, kept=[], note="")
    assert len(html.encode()) < len(complete.encode()) - max(sizes) + 500
    (remaining,) = Tags(html).of("img")
    assert len(remaining["src"]) == min(sizes)
    assert html.count("Too large for this copy.") == 1
