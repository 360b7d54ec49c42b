"""Figures, tables and texts of explanations."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import empty_project, toy_dataset

from cbir import explain
from cbir.cache import Artifact
from cbir.explain import Maps
from cbir.reporting import display, explanations, gains, montages
from cbir.reporting.runs import run_folder
from cbir.retrieval import uncertainty

pytestmark = pytest.mark.usefixtures("closed_figures", "few_queries")

SHARES = [0, 0.5, 1]


def explanation(deletion, insertion, over_other=0.0, n_pairs=20, empty=0, **changes):
    """An explanation with these gains and a little noise from pair to pair."""
    noise = np.random.default_rng(0).normal(0, 0.01, n_pairs)
    frames = [
        pd.DataFrame(
            {
                "pair": pair,
                "share": SHARES,
                # The middle of three shares counts half.
                "deletion": [1, 0.5 - 2 * (deletion + noise[pair]), 0],
                "deletion_other": [1, 0.5 - 2 * (deletion - over_other), 0],
                "deletion_random": [1, 0.5, 0],
                "insertion": [0, 0.5 + 2 * (insertion + noise[pair]), 1],
                "insertion_other": [0, 0.5 + 2 * (insertion - over_other), 1],
                "insertion_random": [0, 0.5, 1],
            }
        )
        for pair in range(n_pairs)
    ]
    maps = np.linspace(0, 1, n_pairs * 16, dtype=np.float32).reshape(n_pairs, 4, 4)
    query = maps.copy()
    query[:empty] = 0
    fields = {"kind": "similarity", "maps": Maps(query, maps[::-1].copy(), "stage3_conv1")}
    fields |= {"queries": np.arange(n_pairs), "results": np.arange(n_pairs)[::-1]}
    return explain.Explanation(
        artifact=Artifact(Path(), {"key": ""}),
        similarities=np.linspace(0.5, 1, n_pairs, dtype=np.float32),
        curves=pd.concat(frames, ignore_index=True),
        **(fields | changes),
    )


def grey_images(dataset):
    """Give each image of a toy data set its own grey."""
    greys = np.arange(len(dataset.labels), dtype=np.uint8)
    object.__setattr__(dataset, "images", np.tile(greys[:, None, None, None], (1, 8, 8, 3)))
    return dataset


@pytest.fixture
def drawn_figures(monkeypatch) -> list:
    """The rows of pictures and the names of each figure that is drawn."""
    figures = []

    def record(rows, names):
        figures.append((rows, names))
        return draw(rows, names)

    draw = montages.montage
    monkeypatch.setattr(montages, "montage", record)
    return figures


def test_each_map_is_drawn_over_its_own_image(drawn_figures):
    dataset = grey_images(toy_dataset())
    first, second = explanation(0.1, 0.1), explanation(0.1, 0.1, results=np.arange(20))
    figure = explanations.pairs_figure(dataset, {"cnn": first, "vgg16": second}, most=3)
    ((rows, names),) = drawn_figures
    for pair in range(3):
        query, top = dataset.queries[pair], rows[0][3 * pair]
        assert np.array_equal(top.pixels, dataset.images[query])
        assert top.below == dataset.classes[dataset.labels[query]]
        for run, row in ((first, rows[1]), (second, rows[2])):
            marked, plain_result, marked_result = row[3 * pair : 3 * pair + 3]
            result = dataset.gallery[run.results[pair]]
            for picture, image, map_ in (
                (marked, query, run.maps.query[pair]),
                (marked_result, result, run.maps.result[pair]),
            ):
                expected = montages.overlay(dataset.images[image], map_)
                assert np.array_equal(picture.pixels, expected)
            assert np.array_equal(plain_result.pixels, dataset.images[result])
            is_hit = dataset.labels[query] == dataset.labels[result]
            sign, colour = ("", display.HIT) if is_hit else ("✗", display.MISS)
            assert plain_result.above == f"1: {run.similarities[pair]:.3f}"
            assert plain_result.sign == sign
            assert plain_result.below == dataset.classes[dataset.labels[result]]
            assert plain_result.colour == colour
    assert names[1:] == ["cnn", "vgg16"]
    ends = [label.get_text() for label in figure.axes[1].get_xticklabels()]
    assert ends == ["does not raise it", "raises the similarity most"]


def test_an_overlay_is_bright_where_the_map_is_high():
    image = np.full((8, 8, 3), 100, np.uint8)
    dark = montages.overlay(image, np.zeros((4, 4)))
    assert np.ptp(dark, axis=(0, 1)).max() == 0
    map_ = np.zeros((4, 4))
    map_[0, 3] = 1
    bright = montages.overlay(image, map_).sum(axis=2)
    assert bright[0, -1] == bright.max() > dark[0, 0].sum() == bright[-1, 0]


def test_pairs_show_only_queries_that_every_architecture_explains(drawn_figures):
    dataset = grey_images(toy_dataset())
    first = explanation(0.1, 0.1, n_pairs=2, kind="attention")
    second = explanation(0.1, 0.1, n_pairs=2, kind="attention", queries=np.array([1, 2]))
    _, bar = explanations.pairs_figure(dataset, {"cnn": first, "vgg16": second}).axes
    rows, _ = drawn_figures[0]
    assert [len(row) for row in rows] == [3] * 3
    assert rows[0][0].pixels[0, 0, 0] == dataset.queries[1]
    assert [label.get_text() for label in bar.get_xticklabels()] == [
        "no weight",
        "highest weight",
    ]


def test_curves_are_means_over_pairs():
    runs = {"cnn": explanation(0.1, 0.05), "vgg16": explanation(0.2, 0.0)}
    axes = np.array(explanations.curves_figure(runs).axes).reshape(2, 2)
    for row, (architecture, run) in zip(axes, runs.items(), strict=True):
        assert row[0].get_ylabel().startswith(architecture)
        for axis, test in zip(row, ("deletion", "insertion"), strict=True):
            for line, name in zip(axis.lines, (test, f"{test}_other", f"{test}_random"),
                                  strict=True):  # fmt: skip
                assert line.get_xdata().tolist() == SHARES
                means = run.curves.groupby("share")[name].mean()
                np.testing.assert_allclose(line.get_ydata(), means)
    assert [axis.get_title() for axis in axes[0]] == ["deletion", "insertion"]
    assert [line.get_linestyle() for line in axes[0, 0].lines] == ["-", ":", "--"]
    names = ["the pair's own map", "maps of other pairs", "random maps"]
    assert axes[0, 0].get_legend_handles_labels()[1] == names


def test_without_explanations_figures_and_texts_are_empty():
    assert explanations.pairs_figure(toy_dataset(), {}) is None
    assert explanations.curves_figure({}) is None
    assert explanations.map_sizes_text({}) == ""


@pytest.fixture
def project(tmp_path, monkeypatch):
    root = empty_project(tmp_path / "project")
    monkeypatch.chdir(root)
    return root


def save_and_read(**runs) -> pd.DataFrame:
    """Save the explanations of a study's runs and read them again."""
    run_folder("tiny").mkdir(parents=True, exist_ok=True)
    gains.save_gains(explanations.summarise("tiny", runs), "tiny", explanations.FILE)
    return gains.read_gains("tiny", explanations.FILE, list(runs))


def test_rows_have_areas_gains_and_their_tests():
    cnn = explanation(0.1, 0.0, over_other=0.05)
    rows = pd.DataFrame(explanations.summarise("tiny", {"cnn": cnn}))
    assert rows["test"].tolist() == ["deletion", "deletion", "insertion", "insertion"]
    assert rows["against"].tolist() == ["random maps", "maps of other pairs"] * 2
    assert rows["area_against"].tolist() == pytest.approx([0.5, 0.45, 0.5, 0.45])
    np.testing.assert_allclose(rows["gain"], [0.1, 0.05, 0, 0.05], atol=0.01)
    sides = [rows["area_against"] - rows["area"], rows["area"] - rows["area_against"]]
    np.testing.assert_allclose(rows["gain"], [*sides[0][:2], *sides[1][2:]])
    gains = cnn.faithfulness["deletion_gain_over_other"].to_numpy()
    assert rows["p"].iloc[1] == uncertainty.permutation_test(gains)
    low, high = uncertainty.confidence_bounds(gains[:, None], limits=None)
    assert rows.loc[1, ["gain_ci_low", "gain_ci_high"]].tolist() == pytest.approx([low[0], high[0]])
    assert (rows["n_queries"] == 20).all()


def test_the_table_shows_intervals_and_corrected_p_values(project):
    rows = save_and_read(cnn=explanation(0.1, 0.0, over_other=0.05))
    table = explanations.map_tests_table(rows)
    areas = table["area_against"].map(str).tolist()
    assert areas == ["0.50 [0.42,\u00a00.58]", "0.45 [0.38,\u00a00.54]"] * 2
    assert table["area"].map(str).str.startswith(("0.39", "0.40", "0.49", "0.50")).all()
    assert table["gain"].str.match(r"[+-]0\.\d{3} \[[+-]0\.\d{3},\u00a0[+-]0\.\d{3}\]$").all()
    assert str(table["p_holm"].iloc[0]) == "< 0.001"
    assert table["n_queries"].tolist() == [20] * 4
    assert rows["is_significant"].tolist() == [True, True, False, True]


def test_explain_runs_writes_one_file_for_all_networks_of_a_study(project, monkeypatch):
    explained = {"cnn": explanation(0.1, 0.004), "vgg16": explanation(0.0, 0.0)}
    monkeypatch.setattr(explanations, "explain_all", lambda runs: explained)
    run_folder("tiny").mkdir(parents=True)
    rows = explanations.explain_runs("tiny", {})
    assert (run_folder("tiny") / explanations.FILE).is_file()
    stored = gains.read_gains("tiny", explanations.FILE, list(explained))
    pd.testing.assert_frame_equal(rows, stored, check_dtype=False, rtol=1e-5)
    np.testing.assert_allclose(rows["p_holm"], uncertainty.holm(rows["p"].to_numpy()))
    assert (rows["is_significant"] == (rows["p_holm"] < 0.05)).all()
    # The correction covers all eight tests of the page even if only some rows are read.
    cnn_rows = gains.read_gains("tiny", explanations.FILE, ["cnn", "old"])
    assert set(cnn_rows["architecture"]) == {"cnn"}
    np.testing.assert_allclose(cnn_rows["p_holm"], rows["p_holm"].iloc[: len(cnn_rows)])
    assert cnn_rows["p_holm"].iloc[0] > uncertainty.holm(cnn_rows["p"].to_numpy())[0]


def test_attention_maps_require_attention_pooling(monkeypatch):
    monkeypatch.setattr(explain, "explain_queries", lambda *_, kind: kind)
    runs = {
        name: SimpleNamespace(
            is_baseline=pooling is None,
            summary={"parameters": {"pooling": pooling}},
            network=None,
            embeddings=None,
            rankings={"unrestricted": None},
        )  # fmt: skip
        for name, pooling in (("cnn", "avg"), ("attentive", "attention"), ("pixels", None))
    }
    assert explanations.explain_all(runs, "attention") == {"attentive": "attention"}
    assert explanations.explain_all(runs) == dict.fromkeys(["cnn", "attentive"], "similarity")


def test_the_comparison_groups_architectures_by_verdict(project):
    rows = save_and_read(
        good=explanation(0.1, 0.1, over_other=0.05),
        other=explanation(0.1, -0.1, n_pairs=30),
        bad=explanation(-0.1, 0.1, over_other=-0.05),
    )
    text = explanations.compare_maps(rows)
    assert text == (
        "Maps of good are better than random maps and than maps of other pairs in both tests; maps "
        "of other and bad are not significantly better than random maps in one of the tests or "
        "both."
    )
    text = explanations.verdicts(rows)
    assert text.splitlines()[:4] == [
        "- Deletion, compared with random maps: **better** for good, other; **worse** for bad.",
        "- Deletion, compared with maps of other pairs: **better** for good; **worse** for bad; "
        "**not significantly different** for other.",
        "- Insertion, compared with random maps: **better** for good, bad; **worse** for other.",
        "- Insertion, compared with maps of other pairs: **better** for good; **worse** for bad; "
        "**not significantly different** for other.",
    ]
    assert "20 to 30 queries of each architecture" in text
    assert "over all 12 rows" in text


def test_without_stored_explanations_tables_and_texts_are_empty(project):
    rows = gains.read_gains("tiny", explanations.FILE, ["cnn", "vgg16"])
    assert rows.empty
    assert explanations.trust("tiny", "cnn").endswith("have not been tested.")
    assert explanations.compare_maps(rows) == explanations.verdicts(rows) == ""
    assert explanations.map_tests_table(rows).empty


def test_a_single_pair_has_no_interval(project):
    table = explanations.map_tests_table(save_and_read(cnn=explanation(0.1, 0.1, n_pairs=1)))
    assert str(table["area_against"].iloc[0]) == "0.500"
    assert (table["p_holm"].map(str) == "1.000").all()


@pytest.mark.parametrize(
    ("gain", "verdict"),
    [(0.1, "better than"), (-0.1, "worse than"), (0, "not significantly different from")],
)
def test_trust_summarises_the_tests_in_one_sentence(project, gain, verdict):
    save_and_read(cnn=explanation(gain, gain, gain))
    text = explanations.trust("tiny", "cnn")
    assert text == (
        f"Tested on 20 pairs, such maps are {verdict} random maps by deletion and insertion; "
        f"{verdict} maps of other pairs by deletion and insertion."
    )


def test_the_description_gives_layer_size_and_number_of_empty_maps():
    # The last result's map begins with 0 but is not empty.
    runs = {"cnn": explanation(0.1, 0.1), "vgg16": explanation(0.1, 0.1, empty=3)}
    assert explanations.map_sizes_text(runs).splitlines() == [
        f"- **{name}**: 4 × 4 positions, from the layer `stage3_conv1`; empty maps: {n_empty}."
        for name, n_empty in (("cnn", 0), ("vgg16", 3))
    ]


def test_few_pairs_have_no_verdict(project, monkeypatch):
    monkeypatch.setattr(uncertainty, "MIN_QUERIES", 30)
    rows = save_and_read(cnn=explanation(0.1, 0.1, 0.1))
    assert (rows["verdict"] == "untested").all()
    assert "**untested** for cnn" in explanations.verdicts(rows)
    text = explanations.trust("tiny", "cnn")
    assert "such maps are untested against random maps by deletion and insertion" in text
    assert explanations.map_tests_table(rows)["p_holm"].map(str).tolist() == ["–"] * 4
