"""Explanations shown: each map over its own image, and words that say no more than the test."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import empty_project, toy_dataset
from matplotlib.colors import to_hex

from cbir import explain
from cbir.cache import Artifact
from cbir.networks.gradients import Maps
from cbir.reporting import display, explanations
from cbir.reporting.runs import run_folder
from cbir.retrieval import uncertainty

SHARES = [0, 0.5, 1]


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def explanation(deletion, insertion, over_other=0.0, n_pairs=20, empty=0, **changes):
    """Maps whose gains are these, give or take a little from pair to pair."""
    little = np.random.default_rng(0).normal(0, 0.01, n_pairs)
    frames = [
        pd.DataFrame(
            {
                "pair": pair,
                "share": SHARES,
                # The middle of three shares counts half.
                "deletion": [1, 0.5 - 2 * (deletion + little[pair]), 0],
                "deletion_other": [1, 0.5 - 2 * (deletion - over_other), 0],
                "deletion_random": [1, 0.5, 0],
                "insertion": [0, 0.5 + 2 * (insertion + little[pair]), 1],
                "insertion_other": [0, 0.5 + 2 * (insertion - over_other), 1],
                "insertion_random": [0, 0.5, 1],
            }
        )
        for pair in range(n_pairs)
    ]
    maps = np.linspace(0, 1, n_pairs * 16, dtype=np.float32).reshape(n_pairs, 4, 4)
    query = maps.copy()
    query[:empty] = 0
    given = {"kind": "similarity", "maps": Maps(query, maps[::-1].copy(), "stage3_conv1")}
    return explain.Explanation(
        artifact=Artifact(Path(), {"key": ""}),
        queries=np.arange(n_pairs),
        results=np.arange(n_pairs)[::-1],
        similarities=np.linspace(0.5, 1, n_pairs, dtype=np.float32),
        curves=pd.concat(frames, ignore_index=True),
        **(given | changes),
    )


def test_each_map_lies_over_its_own_image():
    dataset, found = toy_dataset(), explanation(0.1, 0.1)
    greys = np.arange(len(dataset.labels), dtype=np.uint8)
    object.__setattr__(dataset, "images", np.tile(greys[:, None, None, None], (1, 8, 8, 3)))
    figure = explanations.pairs(dataset, found, most=3)
    *axes, bar = figure.axes
    columns = np.array(axes).reshape(4, 3).T
    for pair, column in enumerate(columns):
        query, result = dataset.queries[pair], dataset.gallery[found.results[pair]]
        shown = [int(axis.images[0].get_array()[0, 0, 0]) for axis in column]
        assert shown == [query, query, result, result]
        plain, marked, plain_result, marked_result = column
        assert len(plain.images) == len(plain_result.images) == 1
        for axis, map_ in (
            (marked, found.maps.query[pair]),
            (marked_result, found.maps.result[pair]),
        ):
            over = axis.images[1]
            assert np.array_equal(over.get_array(), map_)
            assert over.get_extent() == [-0.5, 7.5, 7.5, -0.5]
            # One scale for all, so that an empty map is dark.
            assert over.get_clim() == (0, 1)
        assert plain.get_title() == dataset.classes[dataset.labels[query]]
        is_hit = dataset.labels[query] == dataset.labels[result]
        sign, colour = ("✓", display.HIT) if is_hit else ("✗", display.MISS)
        returned = dataset.classes[dataset.labels[result]]
        said = f"{sign} {found.similarities[pair]:.3f}\n{returned}"
        assert plain_result.get_title() == said
        assert to_hex(plain_result.title.get_color()).upper() == colour
    ends = [each.get_text() for each in bar.get_xticklabels()]
    assert ends == ["does not raise it", "raises the similarity most"]


def test_fewer_pairs_than_asked_for_are_all_shown():
    dataset, found = toy_dataset(), explanation(0.1, 0.1, n_pairs=2, kind="attention")
    *axes, bar = explanations.pairs(dataset, found).axes
    assert len(axes) == 4 * 2
    assert [each.get_text() for each in bar.get_xticklabels()] == ["weighs nothing", "weighs most"]


def test_curves_are_the_means_over_the_pairs_beside_those_of_chance():
    found = explanation(0.1, 0.05)
    left, right = explanations.curves(found).axes
    for axis, way in ((left, "deletion"), (right, "insertion")):
        assert axis.get_title() == way
        for line, name in zip(axis.lines, (way, f"{way}_other", f"{way}_random"), strict=True):
            assert line.get_xdata().tolist() == SHARES
            means = found.curves.groupby("share")[name].mean()
            np.testing.assert_allclose(line.get_ydata(), means)
    assert [line.get_linestyle() for line in left.lines] == ["-", ":", "--"]
    names = ["as the maps say", "maps of other pairs", "maps of chance"]
    assert left.get_legend_handles_labels()[1] == names


@pytest.fixture
def project(tmp_path, monkeypatch):
    root = empty_project(tmp_path / "project")
    monkeypatch.chdir(root)
    return root


def saved(**runs) -> pd.DataFrame:
    """Runs of a study, saved and read again."""
    for name, found in runs.items():
        explanations.save("tiny", name, found)
    return explanations.read_all("tiny", list(runs))


def test_rows_have_areas_gains_and_their_tests():
    found = explanation(0.1, 0.0, over_other=0.05)
    rows = explanations.summarise("tiny", "cnn", found)
    assert rows.columns.tolist() == explanations.COLUMNS
    assert rows["test"].tolist() == ["deletion", "deletion", "insertion", "insertion"]
    assert rows["against"].tolist() == ["maps of chance", "maps of other pairs"] * 2
    assert rows["area_against"].tolist() == pytest.approx([0.5, 0.45, 0.5, 0.45])
    np.testing.assert_allclose(rows["gain"], [0.1, 0.05, 0, 0.05], atol=0.01)
    sides = [rows["area_against"] - rows["area"], rows["area"] - rows["area_against"]]
    np.testing.assert_allclose(rows["gain"], [*sides[0][:2], *sides[1][2:]])
    gains = found.faithfulness["deletion_gain_over_other"].to_numpy()
    assert rows["p"].iloc[1] == uncertainty.permutation_test(gains)
    low, high = uncertainty.bootstrap(gains[:, None])
    assert rows.loc[1, ["gain_low", "gain_high"]].tolist() == pytest.approx([low[0], high[0]])
    assert (rows["n_pairs"] == 20).all()


def test_the_table_shows_intervals_and_corrected_p_values(project):
    rows = saved(cnn=explanation(0.1, 0.0, over_other=0.05))
    table = explanations.table(rows)
    assert table["area against"].map(str).tolist() == [
        "0.500 [0.500,\u00a00.500]", "0.450 [0.450,\u00a00.450]",
        "0.500 [0.500,\u00a00.500]", "0.450 [0.450,\u00a00.450]",
    ]  # fmt: skip
    assert table["area"].map(str).str.startswith(("0.39", "0.40", "0.49", "0.50")).all()
    assert table["gain"].str.match(r"[+-]0\.\d{3} \[[+-]0\.\d{3},\u00a0[+-]0\.\d{3}\]$").all()
    assert str(table["p, Holm"].iloc[0]) == "< 0.001"
    assert table["pairs"].tolist() == [20] * 4
    assert rows["is_significant"].tolist() == [True, True, False, True]


def test_what_is_saved_is_read_and_what_is_missing_left_out(project):
    found = explanation(0.1, 0.004)
    written = explanations.save("tiny", "cnn", found)
    assert (run_folder("tiny", "cnn") / explanations.FILE).is_file()
    expected = explanations.summarise("tiny", "cnn", found)
    pd.testing.assert_frame_equal(
        written[explanations.COLUMNS], expected, check_dtype=False, rtol=1e-5
    )
    explanations.save("tiny", "vgg16", explanation(0.0, 0.0))
    both = explanations.read_all("tiny", ["vgg16", "old", "cnn"])
    assert list(dict.fromkeys(both["architecture"])) == ["vgg16", "cnn"]
    np.testing.assert_allclose(both["p_holm"], uncertainty.holm(both["p"].to_numpy()))
    assert (both["is_significant"] == (both["p_holm"] < 0.05)).all()
    # Eight are corrected together, and four alone by less.
    assert written["p_holm"].iloc[0] < both["p_holm"].iloc[4]


def test_the_comparison_names_whose_maps_are_better_whose_worse_and_whose_neither(project):
    rows = saved(
        good=explanation(0.1, 0.1, over_other=0.05),
        other=explanation(0.1, -0.1, n_pairs=30),
        bad=explanation(-0.1, 0.1, over_other=-0.05),
    )
    text = explanations.compare(rows)
    lowers, raises = explanations.DOES["deletion"], explanations.DOES["insertion"]
    assert text.splitlines()[:4] == [
        f"- {lowers}, beside maps of chance: **faster** for good, other; **more slowly** for bad.",
        f"- {lowers}, beside maps of other pairs: **faster** for good; **more slowly** for bad; "
        "**not told apart** for other.",
        f"- {raises}, beside maps of chance: **faster** for good, bad; **more slowly** for other.",
        f"- {raises}, beside maps of other pairs: **faster** for good; **more slowly** for bad; "
        "**not told apart** for other.",
    ]
    assert "Of each architecture 20 to 30 queries" in text
    assert "correction for all 12 rows" in text


def test_where_nobody_has_been_explained_there_is_nothing_to_say(project):
    rows = explanations.read_all("tiny", ["cnn", "vgg16"])
    assert rows.empty
    assert explanations.compare(rows) == ""
    assert explanations.table(rows).empty


def test_a_single_pair_has_no_interval(project):
    table = explanations.table(saved(cnn=explanation(0.1, 0.1, n_pairs=1)))
    assert str(table["area against"].iloc[0]) == "0.500"
    assert (table["p, Holm"].map(str) == "1.000").all()


TOLD = {1: "**faster** than", -1: "**more slowly** than"}
NOT_TOLD = "at a pace **not told apart** from that of"


@pytest.mark.parametrize("gain", [0.1, -0.1, 0])
@pytest.mark.parametrize("over_other", [0.05, -0.05, 0])
def test_words_follow_the_test_of_each(gain, over_other):
    text = explanations.describe(explanation(gain, -gain, over_other))
    for does, sign in (("lowers", 1), ("raises", -1)):
        for against, mean in (("maps of chance", sign * gain), ("maps of other pairs", over_other)):
            pace = TOLD.get(np.sign(mean), NOT_TOLD)
            assert f"the maps mark {does} the similarity {pace} {against} (area under the" in text
    assert text.count("\n- ") == 4
    assert "4 × 4 positions, of the layer `stage3_conv1`, for 20 queries" in text
    assert "Empty" not in text


def test_one_pair_alone_shows_nothing():
    text = explanations.describe(explanation(0.1, 0.1, n_pairs=1))
    assert text.count("**not told apart** from that of maps of") == 4
    assert text.count("p = 1.000") == 4


def test_empty_maps_are_counted():
    found = explanation(0.1, 0.1, empty=3)
    # The last result's map begins with 0 but is not empty.
    assert "no position raises the similarity: 3 of 40 maps" in explanations.describe(found)
