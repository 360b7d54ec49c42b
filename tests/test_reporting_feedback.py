"""Relevance feedback in a report: the rows of its file, its sentence, table and figure."""

import json
import re
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import empty_project, toy_dataset, toy_embeddings

from cbir.reporting import feedback, gains
from cbir.reporting.numbers import from_row
from cbir.reporting.runs import run_folder
from cbir.retrieval import uncertainty
from cbir.retrieval.feedback import Rocchio, choose_weights

pytestmark = pytest.mark.usefixtures("few_queries")

MEANS = (feedback.WITH, feedback.WITHOUT)
WEIGHTS = {"weight_query": 1.0, "weight_positive": 0.5, "weight_negative": 0.1}
# Words that claim more than a test shows.
OVERCLAIMS = re.compile(r"\b(better|best|worse|worst|superior|proves?|always)\b")


@pytest.fixture
def project(tmp_path, monkeypatch):
    root = empty_project(tmp_path / "project")
    monkeypatch.chdir(root)
    return root


def feedback_rows(*gains, n=40, spread=0.02, left_out=0) -> pd.DataFrame:
    """Rows as of `feedback.measure_feedback`: one gain per round from round 1 on, and noise.

    Args:
        left_out: queries that have no relevant image left in the last round.
    """
    random = np.random.default_rng(0)
    without = random.uniform(0.4, 0.6, n)
    frames = []
    for number, gain in enumerate((0.0, *gains)):
        noise = spread * random.normal(size=n) if number else 0
        frame = pd.DataFrame(
            {
                "query": range(n),
                "label": 0,
                "round": number,
                "average_precision": without - 0.05 * number + gain + noise,
                "average_precision_without": without - 0.05 * number,
                "n_relevant": 50,
                "n_marked": 10 * number,
                "n_positive": 4 * number,
            }
        )
        if left_out and number == len(gains):
            scores = ["average_precision", "average_precision_without"]
            frame.loc[: left_out - 1, scores] = np.nan
        frames.append(frame.assign(**WEIGHTS))
    return pd.concat(frames, ignore_index=True)


def saved_gains(**runs) -> pd.DataFrame:
    """The gains of a study's runs, written to its file and read from it."""
    run_folder("tiny").mkdir(parents=True, exist_ok=True)
    gains.save_gains(feedback.summarise("tiny", runs), "tiny", feedback.FILE)
    return gains.read_gains("tiny", feedback.FILE, list(runs))


def test_a_row_by_hand():
    scores = {
        "average_precision": [0.5, 0.9, np.nan],
        "average_precision_without": [0.4, 0.6, np.nan],
    }
    frame = pd.DataFrame(scores).assign(round=1, n_marked=10, n_positive=[3, 6, 9], **WEIGHTS)
    (row,) = feedback.summarise("tiny", {"cnn": frame})
    assert (row["study"], row["architecture"], row["round"]) == ("tiny", "cnn", 1)
    assert [row[name] for name in (*MEANS, "gain")] == pytest.approx([0.7, 0.5, 0.2])
    assert (row["n_queries"], row["n_left_out"]) == (2, 1)
    assert (row["marked"], row["positive"]) == (10, 6)
    # Both differences are gains: of the four choices of signs, two lie as far from 0.
    assert row["p"] == pytest.approx(2 / 4, abs=0.02)
    assert {name: row[name] for name in WEIGHTS} == WEIGHTS


def test_rows_have_the_intervals_and_tests_of_the_differences():
    frame = feedback_rows(0.1, 0.0)
    rows = pd.DataFrame(feedback.summarise("tiny", {"cnn": frame}))
    assert rows["round"].to_list() == [0, 1, 2]
    for row in rows.itertuples():
        of_round = frame[frame["round"] == row.round]
        with_feedback, without = (
            of_round[name].to_numpy() for name in ("average_precision", "average_precision_without")
        )
        differences = with_feedback - without
        low, high = uncertainty.confidence_bounds(differences[:, None], limits=None)
        # Before any mark, both are the same query.
        bounds = (low[0], high[0]) if row.round else (0, 0)
        assert (row.gain_ci_low, row.gain_ci_high) == pytest.approx(bounds)
        assert row.with_feedback_ci_low < row.with_feedback < row.with_feedback_ci_high
        assert row.without_feedback_ci_low < row.without_feedback < row.without_feedback_ci_high
        if row.round:
            assert row.p == uncertainty.permutation_test(differences)
    assert np.isnan(rows["p"].iloc[0])
    assert rows["gain"].iloc[0] == 0


def test_measure_runs_writes_one_file_for_all_runs_of_a_study(project, monkeypatch):
    frames = {"vgg16": feedback_rows(0.0, 0.0), "cnn": feedback_rows(0.1, 0.2)}
    monkeypatch.setattr(feedback, "measure_feedback", frames.get)
    run_folder("tiny").mkdir(parents=True)
    runs = {name: SimpleNamespace(embeddings=name) for name in frames}
    rows = feedback.measure_runs("tiny", runs)
    assert (run_folder("tiny") / feedback.FILE).is_file()
    read = gains.read_gains("tiny", feedback.FILE, list(frames))
    pd.testing.assert_frame_equal(rows, read, check_dtype=False, rtol=1e-5)
    # Round 0 has no test. The four others are corrected together, whichever rows are read.
    tested = rows[rows["round"] > 0]
    np.testing.assert_allclose(tested["p_holm"], uncertainty.holm(tested["p"].to_numpy()))
    assert rows.loc[rows["round"] == 0, "p_holm"].isna().all()
    assert (rows["is_significant"] == (rows["p_holm"] < 0.05)).all()
    alone = gains.read_gains("tiny", feedback.FILE, ["cnn", "old"])
    assert set(alone["architecture"]) == {"cnn"}
    np.testing.assert_allclose(alone["p_holm"].iloc[1:], tested["p_holm"].iloc[2:])


def test_a_study_without_feedback_gives_no_text_table_or_figure(project):
    rows = gains.read_gains("tiny", feedback.FILE, ["cnn", "vgg16"])
    assert rows.empty
    assert feedback.feedback_sentence(rows) == ""
    assert feedback.feedback_table(rows).empty
    assert feedback.feedback_chart(rows) is None
    assert feedback.read_weights("tiny", "cnn") is None
    # Without a round of feedback there is nothing to describe.
    assert feedback.feedback_sentence(saved_gains(cnn=feedback_rows())) == ""


def test_description_of_weights():
    text = feedback.describe_weights(Rocchio(1, 0.5, 0.25))
    assert text == "1 query + 0.5 positive − 0.25 negative"


def test_weights_are_read_as_they_were_saved(project):
    saved_gains(cnn=feedback_rows(0.1))
    assert feedback.read_weights("tiny", "cnn") == Rocchio(1, 0.5, 0.1)


def test_the_sentence_reports_gains_losses_and_ties(project):
    rows = saved_gains(cnn=feedback_rows(0.1, 0.0, -0.1), vgg16=feedback_rows(0.001))
    assert rows["is_significant"].to_list() == [False, True, False, True, False, False]
    text = feedback.feedback_sentence(rows)
    row = rows.iloc[1]
    assert text == (
        "On the images not yet marked, with the network of the first seed: marking the 10 nearest "
        "images once raises the mAP of cnn; does not significantly change the mAP of vgg16. With "
        f"cnn, it rises from {from_row(row, feedback.WITHOUT)} to {from_row(row, feedback.WITH)}."
    )
    assert not OVERCLAIMS.search(text)
    (loss,) = feedback.feedback_sentence(saved_gains(cnn=feedback_rows(-0.1))).splitlines()
    assert loss.endswith("once lowers the mAP of cnn.")


def test_a_round_without_a_score_is_shown_as_a_dash(project):
    rows = saved_gains(cnn=feedback_rows(0.1, 0.1, left_out=40))
    assert rows["n_queries"].to_list() == [40, 40, 0]
    table = feedback.feedback_table(rows)
    assert str(table[feedback.WITH].iloc[2]) == str(table["gain"].iloc[2]) == "–"
    assert "nan" not in feedback.feedback_sentence(rows)
    plt.close(feedback.feedback_chart(rows))


def test_the_table_has_one_row_per_round(project):
    rows = saved_gains(cnn=feedback_rows(0.1, 0.0), vgg16=feedback_rows(0.2, 0.2))
    table = feedback.feedback_table(rows)
    assert table[["architecture", "round"]].to_numpy().tolist() == [
        [name, number] for name in ("cnn", "vgg16") for number in range(3)
    ]
    first = rows.iloc[1]
    assert table[feedback.WITH].iloc[1] == from_row(first, feedback.WITH)
    assert table["gain"].iloc[1] == from_row(first, "gain")
    assert table["p_holm"].map(str).to_list()[:2] == ["–", "< 0.001"]
    assert (table["marked"].iloc[2], table["positive"].iloc[2]) == ("20.0", "8.0")
    assert table["weights"].iloc[2] == "1 query + 0.5 positive − 0.1 negative"


def test_the_figure_draws_both_lines_of_each_architecture(project):
    rows = saved_gains(cnn=feedback_rows(0.1, 0.2), vgg16=feedback_rows(0.0, 0.1))
    figure = feedback.feedback_chart(rows)
    (axis,) = figure.axes
    drawn = [bar.lines[0] for bar in axis.containers]
    assert [line.get_linestyle() for line in drawn] == ["-", "--"] * 2
    for line, (name, column) in zip(
        drawn,
        [(n, c) for n in ("cnn", "vgg16") for c in (feedback.WITH, feedback.WITHOUT)],
        strict=True,
    ):
        of_run = rows[rows["architecture"] == name]
        np.testing.assert_allclose(line.get_ydata(orig=False), of_run[column])
        np.testing.assert_allclose(line.get_xdata(orig=False), of_run["round"], atol=0.1)
    assert drawn[0].get_color() == drawn[1].get_color() != drawn[2].get_color()
    texts = [text.get_text() for text in axis.get_legend().get_texts()]
    assert set(texts) == {"cnn", "vgg16", "with feedback", "without, same images"}
    assert axis.get_xlabel() == "rounds of feedback"
    plt.close(figure)


def test_from_embeddings_to_the_page(project):
    dataset = toy_dataset(n_train=60, n_test=20)
    random = np.random.default_rng(0)
    vectors = np.eye(4)[dataset.labels] + 0.6 * random.normal(size=(len(dataset.labels), 4))
    embeddings = toy_embeddings(dataset, vectors)
    run_folder("tiny").mkdir(parents=True)
    rows = feedback.measure_runs("tiny", {"cnn": SimpleNamespace(embeddings=embeddings)})
    assert rows["round"].to_list() == [0, 1, 2, 3]
    assert (rows["n_queries"] == len(dataset.queries)).all()
    assert feedback.read_weights("tiny", "cnn") == choose_weights(embeddings)
    assert "raises the mAP of cnn" in feedback.feedback_sentence(rows)
    # The file has plain numbers.
    plain = pd.read_csv(run_folder("tiny") / feedback.FILE)
    assert json.loads(plain.to_json(orient="records"))[0]["round"] == 0
