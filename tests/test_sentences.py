"""Sentences claim no more than the numbers do: who is ahead is who the test says is ahead."""

import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from invented import all_of_one, result, rows

from cbir.images import leaks
from cbir.images.protocols import PROTOCOLS
from cbir.reporting import sentences, tables, tidy
from cbir.reporting.estimates import Estimate
from cbir.retrieval import uncertainty
from cbir.studies import params

pytestmark = pytest.mark.usefixtures("few_queries")

# Nobody is called that in any sentence: these words say more than "ahead of".
TOO_MUCH = re.compile(r"\b(better|best|worse|worst|superior|outperforms?|beats?|wins?)\b")
N_QUERIES = 9
few = settings(max_examples=20, deadline=None)


def make_runs(scores: dict[str, list], baselines: int = 0) -> dict:
    """Runs by name, the last ones baselines."""
    names = list(scores)
    runs = {}
    for place, name in enumerate(names):
        is_baseline = place >= len(names) - baselines
        runs[name] = result(rows(scores[name], architecture=name), baseline=is_baseline)
    return runs


def told(sentences: str) -> list[tuple[str, str]]:
    """Pairs of the names of whom the verdict calls ahead, and of whom it is ahead of."""
    return re.findall(r"\*\*(\w+)\*\* is significantly ahead of (\w+) \(difference", sentences)


def undecided(sentences: str) -> set[frozenset]:
    pairs = re.findall(r"- \*\*(\w+)\*\* is not significantly different from (\w+) \(", sentences)
    return {frozenset(pair) for pair in pairs}


def apart(*shifts: float) -> list[list[float]]:
    """Scores of runs, each higher than the first by so much, with some noise."""
    noise = np.random.default_rng(0).normal(0, 0.05, (len(shifts), N_QUERIES))
    return np.clip(np.array(shifts)[:, None] + noise, 0, 1).tolist()


values = st.lists(
    st.floats(0, 1, width=32).map(lambda value: round(value, 2)),
    min_size=N_QUERIES,
    max_size=N_QUERIES,
)
three = st.tuples(values, values, values)
shifts = st.lists(st.sampled_from([0.0, 0.03, 0.5]), min_size=3, max_size=3)


@few
@example(apart(0, 0.5, 1))
@example(apart(0, 0, 0.5))
@example([[0.5] * N_QUERIES] * 3)
@given(st.one_of(three, shifts.map(lambda each: apart(*each))))
def test_the_verdict_says_ahead_only_where_the_test_finds_a_difference(scores):
    runs = make_runs(dict(zip(["cnn", "resnet", "vgg"], scores, strict=True)))
    pairs = tables.pairs(runs)
    text = sentences.verdict(pairs, runs)
    expected = pairs[pairs["is_significant"]]
    assert told(text) == list(zip(expected["ahead"], expected["behind"], strict=True))
    assert text.count(" is significantly ahead of ") == len(expected)
    tied = pairs[~pairs["is_significant"]]
    assert undecided(text) == {
        frozenset(pair) for pair in zip(tied["ahead"], tied["behind"], strict=True)
    }
    assert text.count("not significantly different") == len(tied)
    assert not TOO_MUCH.search(text)
    assert (pairs["is_significant"] == (pairs["p_holm"] < 0.05)).all()


def test_a_winner_and_a_tie_are_told_as_such():
    (low,) = apart(0.2)
    runs = make_runs({"cnn": low, "resnet": low[::-1], "vgg": [0.9] * N_QUERIES})
    text = sentences.verdict(tables.pairs(runs), runs)
    assert sorted(told(text)) == [("vgg", "cnn"), ("vgg", "resnet")]
    assert undecided(text) == {frozenset(("cnn", "resnet"))}


@few
@example(apart(0, 0.5, 0.5, 1))
@example(apart(0.5, 0.5, 0.5, 0.5))
@given(
    st.lists(st.sampled_from([0.0, 0.05, 0.5, 1.0]), min_size=4, max_size=4).map(
        lambda each: apart(*each)
    )
)
def test_a_baseline_is_said_to_be_where_the_test_sees_it(scores):
    names = ["cnn", "vgg", "raw_pixels", "random"]
    runs = make_runs(dict(zip(names, scores, strict=True)), baselines=2)
    pairs = tables.pairs(runs)
    outcomes = uncertainty.pair_outcomes(pairs, names)
    text = sentences.verdict(pairs, runs)
    for baseline in ("raw_pixels", "random"):
        (line,) = re.findall(rf"^- The baseline {baseline}: (.+)\.$", text, re.MULTILINE)
        line = re.sub(r" \(these trained networks only[^)]*\)", "", line)
        parts = dict(part.split(": ") for part in line.split("; "))
        said = {name: what for what, names in parts.items() for name in names.split(", ")}
        words = {
            "win": "significantly ahead of it",
            "tie": "not significantly different from it",
            "loss": "significantly behind it",
        }
        # Baselines among themselves are nobody's question.
        assert said == {name: words[outcomes.loc[name, baseline]] for name in ("cnn", "vgg")}
    assert not re.search(r"(raw_pixels|random)\*\* is|(of|from) (raw_pixels|random)", text)


def test_one_architecture_alone_is_compared_with_nothing_but_baselines():
    runs = make_runs({"cnn": apart(1)[0], "random": apart(0)[0]}, baselines=1)
    text = sentences.verdict(tables.pairs(runs), runs)
    assert text.startswith("Only one architecture has results")
    assert "- The baseline random: significantly ahead of it: cnn (these trained networks" in text


def test_baselines_alone_are_not_called_an_architecture():
    runs = make_runs({"raw_pixels": apart(1)[0], "random": apart(0)[0]}, baselines=2)
    text = sentences.verdict(tables.pairs(runs), runs)
    assert text.startswith("No architecture has results")
    assert "The baseline" not in text


def test_the_verdict_names_who_is_ahead_and_by_how_much():
    pair = {"ahead": "vgg16", "behind": "cnn", "difference": 0.1234, "ci_low": 0.1}
    pair |= {
        "ci_high": 0.15,
        "p": 0.0123,
        "p_holm": 0.0123,
        "n_queries": 1060,
        "is_significant": True,
        "covers_seeds": True,
    }
    runs = make_runs({"cnn": [0.5], "vgg16": [0.6]})
    text = sentences.verdict(pd.DataFrame([pair]), runs)
    numbers = "(difference 0.123 [0.100,\u00a00.150], p = 0.012)"
    assert f"- **vgg16** is significantly ahead of cnn {numbers}." in text


UNKNOWN = "no architecture here has several seeds, so how much seeds differ is unknown"


def seeded(name: str, level: float, n_seeds: int, baseline: bool = False):
    """A run whose mAP rises by 0.01 from seed to seed, with 40 queries that differ a little."""
    noise = np.random.default_rng(0).normal(0, 0.02, 40)
    return result(
        *[
            rows(level + 0.01 * seed + noise, architecture=name, seed=seed)
            for seed in range(n_seeds)
        ],
        baseline=baseline,
    )


def test_with_one_seed_a_line_is_about_the_trained_networks_and_shows_what_seeds_are_known_to_do():
    runs = {"cnn": seeded("cnn", 0.5, 3), "vgg16": seeded("vgg16", 0.9, 1)}
    text = sentences.verdict(tables.pairs(runs), runs)
    line, _, scope = text.split("\n")
    assert line.startswith("- **vgg16** is significantly ahead of cnn (difference 0.39")
    assert line.endswith("; these trained networks only).")
    assert scope.endswith("may differ: the 3 seeds of cnn alone differ by up to 0.020 in mAP.")
    assert "about these trained networks" in scope
    assert "about architectures" not in scope


def test_where_no_architecture_has_several_seeds_that_is_said():
    runs = {"cnn": seeded("cnn", 0.5, 1), "vgg16": seeded("vgg16", 0.9, 1)}
    line, *_, scope = sentences.verdict(tables.pairs(runs), runs).split("\n")
    assert line.endswith("these trained networks only).")
    assert scope.endswith(f"{UNKNOWN}.")
    assert UNKNOWN in sentences.in_short(tables.quality_and_cost(runs), tables.pairs(runs), runs)


def test_with_several_seeds_of_both_a_line_is_about_architectures():
    runs = {"cnn": seeded("cnn", 0.5, 3), "vgg16": seeded("vgg16", 0.9, 4)}
    line, _, scope = sentences.verdict(tables.pairs(runs), runs).split("\n")
    assert line.startswith("- **vgg16** is significantly ahead of cnn (difference 0.4")
    assert "trained networks" not in line
    assert "about architectures" in scope
    assert "trained networks" not in scope


def test_the_largest_difference_between_seeds_is_named_and_baselines_have_none():
    runs = {
        "cnn": seeded("cnn", 0.5, 2),
        "vgg16": seeded("vgg16", 0.5, 4),
        "random": seeded("random", 0.1, 9, baseline=True),
    }
    assert (
        sentences.between_seeds(runs) == "the 4 seeds of vgg16 alone differ by up to 0.030 in mAP"
    )


def test_a_baseline_is_compared_with_architectures_and_with_networks():
    runs = {
        "cnn": seeded("cnn", 0.5, 3),
        "vgg16": seeded("vgg16", 0.9, 1),
        "random": seeded("random", 0.1, 1, baseline=True),
    }
    text = sentences.verdict(tables.pairs(runs), runs)
    assert (
        "- The baseline random: significantly ahead of it: cnn, vgg16 "
        "(these trained networks only for vgg16)." in text
    )
    assert "about architectures" in text
    assert "about these trained networks" in text


def test_the_answer_says_once_how_much_seeds_differ():
    runs = {name: seeded(name, level, 1) for name, level in [("a", 0.9), ("b", 0.6), ("c", 0.3)]}
    runs["d"] = seeded("d", 0.1, 3)
    text = sentences.in_short(tables.quality_and_cost(runs), tables.pairs(runs), runs)
    (relations,) = (part for part in text.split(". ") if part.startswith("It is "))
    assert relations.count("these trained networks only") == 2
    assert text.count("the 3 seeds of d alone differ by up to 0.020 in mAP") == 1


@pytest.mark.parametrize(
    ("p", "said"), [(0.0001, "p < 0.001"), (0.001, "p = 0.001"), (0.25, "p = 0.250")]
)
def test_no_chance_is_called_zero(p, said):
    assert sentences.p_value(p) == said


WAYS = ("unrestricted", "label_lookup", "soft", "predicted_class")
COMPARED = [("unrestricted", "label_lookup"), ("soft", "predicted_class")]


@few
@example([apart(0.5, 0, 0.5, 0), apart(0, 0.5, 0, 0.5)])
@example([apart(0.5, 0.5, 0.5, 0.5)])
@given(st.lists(st.tuples(values, values, values, values), min_size=1, max_size=2))
def test_an_embedding_is_ahead_of_the_label_only_where_the_test_says_so(scores):
    scores = [dict(zip(WAYS, each, strict=True)) for each in scores]
    runs = {f"run{place}": all_of_one([], **each) for place, each in enumerate(scores)}
    text = sentences.retrieval_or_classification(runs)
    lines = [line for line in text.splitlines() if line.startswith("- ")]
    pairs = [uncertainty.compare(pd.DataFrame({one: each[one], other: each[other]}))
             for each in scores for one, other in (WAYS[:2], WAYS[2:])]  # fmt: skip
    compared = pd.concat(pairs, ignore_index=True)
    # All tests of one list are corrected together.
    told_apart = uncertainty.holm(compared["p"].to_numpy()) < 0.05
    said = [part for line in lines for part in line.split(" Searching only the predicted class ")]
    assert [line.partition(":")[0] for line in lines] == [f"- **{name}**" for name in runs]
    for text, pair, is_told, (one, other) in zip(
        said, compared.itertuples(), told_apart, COMPARED * len(scores), strict=True
    ):
        is_ahead = pair.ahead == one
        assert (f"{one} is significantly ahead of {other} (" in text) == (is_told and is_ahead)
        assert (f"{one} is significantly behind {other} (" in text) == (is_told and not is_ahead)
        assert (f"{one} is not significantly different from {other} (" in text) == (not is_told)
        assert not TOO_MUCH.search(text)
    for text, each in zip(said[::2], scores, strict=True):
        means = uncertainty.intervals(pd.DataFrame(each))
        unrestricted, lookup = (tidy.number(means.loc[[way]]) for way in WAYS[:2])
        assert f"by embedding gives an mAP of {unrestricted}, " in text
        assert f"probabilities {lookup}: " in text


def test_the_answer_names_for_whom_the_classifier_alone_is_ahead():
    low, high, noise = 0.3, 0.7, np.random.default_rng(0).normal(0, 0.02, 40)
    runs = {}
    for name, embedding, lookup, seeds in (
        ("ahead", low, high, 1), ("ahead3", low, high, 3), ("behind", high, low, 1),
        ("tied", low, low, 1),
    ):  # fmt: skip
        values = {"unrestricted": embedding, "label_lookup": lookup}
        frames = [
            rows(values.get(search, 0.5) + noise + 0.001 * seed, architecture=name, search=search,
                 seed=seed, correct=1.0)
            for seed in range(seeds) for search in WAYS
        ]  # fmt: skip
        runs[name] = result(*frames)
    answer = sentences.retrieval_or_classification(runs).splitlines()[0]
    assert answer == (
        "Predicted class probabilities alone, compared with the embedding, are significantly ahead "
        "of it for ahead, ahead3 (these trained networks only for ahead); not significantly "
        "different from it for tied (these trained networks only); significantly behind it for "
        "behind (these trained networks only)."
    )


def lost_and_found(seeds: dict[int, tuple[list, list]]):
    """A run from, by seed, whether each query's class is predicted and what `soft` scores."""
    frames = []
    for seed, (correct, soft) in seeds.items():
        for search in ("unrestricted", "predicted_class", "label_lookup"):
            frames.append(rows(np.array(correct, float), seed=seed, search=search, correct=correct))
        frames.append(rows(soft, seed=seed, search="soft", correct=correct, searched=0.25))
    return result(*frames)


def test_lost_queries_are_counted_and_those_that_soft_wins_back():
    run = lost_and_found({0: ([1, 0, 0, 0, 1], [0.9, 0.5, 0.0, 0.1, 0.8])})
    said = sentences.retrieval_or_classification({"cnn": run})
    assert "loses 3 of 5 queries (60.0 %)" in said
    assert "up to a total probability of 0.90 (25.0 % of the gallery on average)" in said
    assert "which contain the true class of 2 of these queries" in said


def test_lost_queries_of_several_seeds_are_a_mean():
    scores = {0: ([1, 0, 0, 1], [1, 0.5, 0, 1]), 1: ([1, 1, 0, 1], [1, 1, 0.5, 1])}
    said = sentences.retrieval_or_classification({"cnn": lost_and_found(scores)})
    assert "loses 1.5 of 4 queries (37.5 %, a mean over seeds)" in said
    assert "the true class of 1.0 of these queries" in said


def test_what_has_no_classifier_is_not_asked_whether_it_only_classifies():
    baseline = result(rows([0.5, 0.6], architecture="random"), baseline=True)
    assert sentences.retrieval_or_classification({"random": baseline}) == ""


@pytest.mark.parametrize("dataset", ["digits", "cifar10", "data/cifar10", "data/shapes"])
@pytest.mark.parametrize(
    "asked",
    [
        ["closed"], ["held_out_gallery"], ["hashing_1k"], ["closed", "hashing_1k"],
        ["held_out_gallery", "unseen_classes"],
    ],
)  # fmt: skip
def test_published_figures_stand_beside_their_own_protocol_alone(dataset, asked):
    run = result(*[rows([0.5], protocol=each) for each in asked], dataset=dataset)
    said = sentences.published({"cnn": run})
    is_it = dataset == "cifar10"
    assert ("GreedyHash .932" in said) == (is_it and "closed" in asked)
    assert ("DSDH .790" in said) == (is_it and "hashing_1k" in asked)
    assert bool(said) == (is_it and bool({"closed", "hashing_1k"} & {*asked}))
    for name in ("held_out_gallery", "unseen_classes"):
        assert name not in said


def test_published_figures_are_those_of_whole_rankings_with_their_gallery():
    run = result(rows([0.5]), rows([0.5], protocol="hashing_1k"), dataset="cifar10")
    lines = [each for each in sentences.published({"cnn": run}).splitlines() if each[:2] == "- "]
    assert [line.partition(" on ")[0] for line in lines] == ["- closed", "- hashing_1k"]
    assert "50,000 training images as gallery" in lines[0]
    assert "59,000 in the gallery" in lines[1]


def unseen(**scores: list[list[float]]) -> dict:
    """Runs by name with the scores of each draw; those named random or pixels are baselines."""
    runs = {}
    for name, draws in scores.items():
        frames = [rows(draws[0], architecture=name)]
        for draw, each in enumerate(draws):
            place = {"protocol": "unseen_classes", "draw": draw}
            queries = range(draw * N_QUERIES, (draw + 1) * N_QUERIES)
            frames.append(rows(each, architecture=name, queries=queries, **place))
        runs[name] = result(*frames, baseline=name in ("random", "pixels"))
    return runs


def labelled(means: list[float], n: int = 4) -> dict:
    """Scores and labels of n queries for each of two classes, with these means."""
    noise = np.linspace(-0.02, 0.02, n)
    return {"scores": np.concatenate([mean + noise for mean in means]), "labels": [0] * n + [1] * n}


def test_unseen_classes_are_told_over_classes_and_draws_against_each_baseline():
    networks = [[0.60, 0.70], [0.65, 0.75], [0.55, 0.72], [0.70, 0.60]]
    pixels = [[0.62, 0.66], [0.70, 0.70], [0.50, 0.78], [0.66, 0.64]]
    runs = {}
    for name, draws in (("cnn", networks), ("random", [[0.1, 0.1]] * 4), ("pixels", pixels)):
        frames = [rows([0.5] * 8, architecture=name)]
        for draw, means in enumerate(draws):
            scores = labelled(means)
            scores["labels"] = [2 * draw + label for label in scores["labels"]]
            frames.append(rows(**scores, architecture=name, protocol="unseen_classes", draw=draw))
        runs[name] = result(*frames, baseline=name != "cnn")
    line, _, scope = sentences.unseen(runs).split("\n")
    assert line.startswith("- **cnn** reaches an mAP of 0.66 [0.")
    assert "(0.635 to 0.700 by draw)" in line
    assert re.search(
        r"ahead of random \(difference 0\.56 \[0\.\d+,\u00a00\.\d+\], p < 0\.001\)", line
    )
    assert "not significantly different from pixels (difference 0.00" in line
    assert scope.startswith("Classes: 8, draws: 4. Each mean is over the classes.")


def test_few_unseen_classes_give_no_verdict_however_many_queries_there_are():
    runs = {}
    for name, mean in (("cnn", 0.9), ("random", 0.1)):
        frames = [rows([0.5] * 8, architecture=name)]
        for draw in range(2):
            scores = labelled([mean, mean], n=500)
            frames.append(rows(**scores, architecture=name, protocol="unseen_classes", draw=draw))
        runs[name] = result(*frames, baseline=name == "random")
    said = sentences.unseen(runs)
    assert "**cnn** reaches an mAP of 0.900 on classes" in said
    assert "It is untested against random (difference 0.800, too few classes)." in said
    assert said.endswith("too few for an interval or a verdict, which need 6 classes and 3 draws.")
    assert "significant" not in said


def test_unseen_classes_that_were_not_measured_are_not_spoken_of():
    assert sentences.unseen({"cnn": result(rows([0.5, 0.6]))}) == ""


def test_an_architecture_without_baselines_is_told_by_itself():
    line, *_ = sentences.unseen(unseen(cnn=apart(0.5, 0.6))).split("\n")
    assert line.endswith("by draw).")


def test_a_run_is_described_by_its_own_numbers():
    frames = [
        rows([0.25, 0.75], labels=[0, 1], seed=seed, correct=[1.0, correct])
        for seed, correct in ((0, 0.0), (1, 1.0))
    ]
    said = sentences.describe_run(result(*frames, epochs=1))
    assert said.startswith("**cnn** ranks the whole gallery of 5,000 images")
    assert "precision of 0.5 [" in said
    assert " It classifies 2 queries with an accuracy of 0.8 [0.1," in said
    assert "and its training images with an accuracy of 1.000 [1.000,\u00a01.000]." in said
    assert "(means of 2 seeds)" in said
    assert "2.5 ms (median)" in said
    assert "3.0 MB" in said
    assert "Training took 1 min 10 s; epochs: 1." in said


def test_a_baseline_is_described_without_what_it_has_not():
    said = sentences.describe_run(result(rows([0.25, 0.75], architecture="random"), baseline=True))
    assert "mean average precision of 0.5 [" in said
    for word in ("classifies", "Training", "seeds", "–", "nan"):
        assert word not in said


def test_the_least_cost_of_each_kind_is_named_with_its_number():
    columns = {
        "cnn": [1.0, 256, 30.0, 900.0, 5.0, 1.0],
        "vgg16": [15.0, 256, 20.4, 100.0, 4.0, 1.0],
        "random": [np.nan, 128, np.nan, 1e6, 0.1, 1.0],
    }
    costs = pd.DataFrame(columns, index=list(tables.COSTS))
    runs = make_runs({"cnn": [0.5], "vgg16": [0.5], "random": [0.1]}, baselines=1)
    said = sentences.cheapest(costs, runs)
    assert "training (s): vgg16 (20)" in said
    assert "embedding (images/s): cnn (900)" in said
    assert "query (ms, median): vgg16 (4.0)" in said
    assert "random" not in said
    assert sentences.cheapest(costs, {name: runs[name] for name in ("cnn", "random")}) == ""


def test_training_times_of_several_machines_are_not_compared():
    runs = make_runs({"cnn": [0.5], "vgg16": [0.5]})
    place = {"cpu": "a processor", "cores": 2, "gpus": ["A GPU"]}
    runs["vgg16"].summary["trained_on"] = {"machine": place, "versions": {}}
    costs = tables.costs(runs)
    said = sentences.cheapest(costs, runs)
    assert "training (s)" not in said
    assert said.endswith("Training times are not comparable, because machines differ.")
    table = tables.costs_table(costs, runs)
    assert table.loc["training (s)"].tolist() == [70.0, "70 (on A GPU)"]
    assert "Training took 1 min 10 s (on A GPU);" in sentences.describe_run(runs["vgg16"])
    runs["cnn"].summary["trained_on"] = runs["vgg16"].summary["trained_on"]
    assert "training (s): cnn (70)" in sentences.cheapest(costs, runs)


def test_reasons_with_colons_are_told_whole():
    text = sentences.without_results(["vgg16: weights: no file x.h5: give a path"])
    assert text == "- **vgg16** has no results: weights: no file x.h5: give a path"
    assert sentences.without_results([]) == ""


def test_every_protocol_that_can_stand_first_is_explained():
    first = [name for name in PROTOCOLS if params.PARAMETERS["protocols"].bound.holds([name])]
    assert len(first) == 3
    for name in first:
        assert f"`{name}`" in sentences.protocol(name)


def test_how_sure_the_soft_search_must_be_is_told_for_all_seeds():
    scores = {0: ([1, 0], [1, 0.5]), 1: ([1, 1], [1, 1]), 2: ([1, 1], [1, 1])}
    run = lost_and_found(scores)
    run.summary["calibrations"] = {"0": {"mass": 0.95}, "1": {"mass": 0.5}, "2": {"mass": 0.9}}
    assert "up to a total probability of 0.50 to 0.95 (" in sentences.retrieval_or_classification(
        {"a": run}
    )


def test_queries_that_nothing_is_relevant_to_are_said_to_be_left_out():
    run = result(rows([0.25, np.nan, 0.75], correct=1.0))
    said = sentences.describe_run(run)
    assert "precision of 0.5 [" in said
    assert "Queries without a relevant image in the gallery were left out: 1." in said
    assert "left out" not in sentences.describe_run(result(rows([0.25, 0.75], correct=1.0)))


def in_short(scores: dict[str, list], baselines: int = 0) -> str:
    runs = make_runs(scores, baselines)
    return sentences.in_short(tables.quality_and_cost(runs), tables.pairs(runs), runs)


@few
@example(apart(0, 0.5, 1))
@example(apart(0, 0, 0.5))
@example(apart(0.5, 0.5, 0))
@example([[0.5] * N_QUERIES] * 3)
@given(st.one_of(three, shifts.map(lambda each: apart(*each))))
def test_the_answer_claims_a_difference_only_where_the_test_finds_one(scores):
    scores = dict(zip(["cnn", "resnet", "vgg"], scores, strict=True))
    text = in_short(scores)
    (first,) = re.findall(r"^\*\*(\w+)\*\* has the highest mAP", text)
    means = {name: np.mean(values) for name, values in scores.items()}
    assert means[first] == pytest.approx(max(means.values()))
    pairs = tables.pairs(make_runs(scores))
    with_first = pairs[(pairs["ahead"] == first) | (pairs["behind"] == first)]
    (relations,) = [part for part in text.split(". ") if part.startswith("It is ")]
    relations = re.sub(r"; these trained networks only[^)]*", "", relations)
    parts = relations.removeprefix("It is ").split("; ")
    tied = "".join(part for part in parts if part.startswith("not significantly"))
    different = "".join(part for part in parts if part.startswith("significantly"))
    for pair in with_first.itertuples():
        (other,) = {pair.ahead, pair.behind} - {first}
        assert (other in different) == pair.is_significant
        assert (other in tied) != pair.is_significant
        numbers = f"(difference {Estimate(pair.difference, pair.ci_low, pair.ci_high)}, "
        if not pair.is_significant:
            assert f"{other} {numbers}{sentences.p_value(pair.p_holm)})" in tied
    assert ("Among the statistically tied leaders" in text) == bool(tied)
    assert not TOO_MUCH.search(text)


def test_the_answer_says_who_is_first_by_how_much_and_at_what_cost():
    low, high, baseline = apart(0.2, 0.8, 0.1)
    text = in_short({"cnn": low, "vgg": high, "raw_pixels": baseline}, baselines=1)
    difference = np.mean(high) - np.mean(low)
    assert text.startswith(f"**vgg** has the highest mAP, {np.mean(high):.2f} [")
    assert f" It is significantly ahead of cnn (difference {difference:.2f} [" in text
    lead = np.mean(high) - np.mean(baseline)
    assert f"highest mAP, raw_pixels, is significantly behind vgg (difference {lead:.2f}" in text
    # 1,000 images a second, 3 MB for 5,000 of them.
    assert "takes 1 ms and 600 bytes with vgg; 1 ms and 600 bytes with cnn." in text
    assert text.count(". ") == 4  # five sentences


def test_a_baseline_that_is_ahead_is_said_to_be():
    low, high = apart(0.2, 0.8)
    text = in_short({"cnn": low, "raw_pixels": high}, baselines=1)
    assert re.search(r"raw_pixels, is significantly ahead of cnn \(difference 0\.\d+ \[", text)
    tied = in_short({"cnn": low, "raw_pixels": low[::-1]}, baselines=1)
    assert "raw_pixels, is not significantly different from cnn (difference 0.000" in tied


def test_of_several_at_the_top_the_one_that_embeds_fastest_is_named():
    noise = apart(0.5)[0]
    runs = make_runs({"cnn": noise, "vgg": noise[::-1]})
    runs["vgg"].summary["speed"] = {"images_per_second": 50.0, "query_milliseconds": 1.0}
    text = sentences.in_short(tables.quality_and_cost(runs), tables.pairs(runs), runs)
    assert "It is not significantly different from" in text
    assert "Among the statistically tied leaders, cnn is the fastest. " in text
    assert "20 ms and 600 bytes with vgg" in text


def test_with_one_architecture_or_none_the_answer_says_so():
    high, low = apart(0.8, 0.1)
    alone = in_short({"cnn": high, "random": low}, baselines=1)
    assert ". No other architecture has results." in alone
    assert "The baseline with the highest mAP, random, is" in alone
    assert "takes 1 ms and 600 bytes with cnn." in alone
    assert "nan" not in in_short({"cnn": [0.5]})
    none = in_short({"random": high, "raw_pixels": low}, baselines=2)
    assert none == "No architecture has results; only baselines do."


def copies(
    identical: tuple[int, ...] = (), near: tuple[int, ...] = (), conflicts: tuple[int, ...] = ()
) -> pd.DataFrame:
    queries = [*identical, *near]
    kinds = ["identical"] * len(identical) + ["near-duplicate"] * len(near)
    is_conflict = pd.Series([query in conflicts for query in queries], dtype=bool)
    return pd.DataFrame({"query": queries, "kind": kinds, "is_conflict": is_conflict})


@pytest.mark.parametrize(
    ("pairs", "n_queries", "words"),
    [
        (copies(), 359, "none found among 359"),
        (
            copies((1, 2, 3), tuple(range(10, 19))),
            10_000,
            "12 of 10,000 (0.1 %); with identical pixels: 3, near-duplicates: 9",
        ),
        (
            copies((), (4, 4)),
            100,
            "1 of 100 (1.0 %); with identical pixels: 0, near-duplicates: 1",
        ),
        (
            copies((4,), (4, 5)),
            8,
            "2 of 8 (25.0 %); with identical pixels: 1, near-duplicates: 1",
        ),
        (
            copies((7,)),
            10_000,
            "1 of 10,000 (less than 0.1 %); with identical pixels: 1, near-duplicates: 0",
        ),
    ],
)
def test_leaks_are_counted_in_the_sentence_that_says_what_is_missed(pairs, n_queries, words):
    text = sentences.describe_leaks(leaks.Audit(pairs, copies(), n_queries, 30, 0))
    first = text.split(". ")[0]
    assert first.startswith(
        f"Queries that are also in the gallery: {words}; the search misses most "
    )
    assert "crops to less than 90 % of the side" in first
    assert "shifts by more than 6 %" in first


def test_label_conflicts_and_copies_for_validation_are_counted():
    audit = leaks.Audit(
        leaks=copies((1, 2), (3, 3, 4), conflicts=(2, 3)),
        validation_copies=copies((), (5, 6, 6), conflicts=(6,)),
        n_queries=100,
        n_validation=40,
        n_identical_conflicts=7,
    )
    text = sentences.describe_leaks(audit)
    assert (
        "Label conflicts, copies with another label: 2 of these queries, 1 validation images, and, "
        "with identical pixels, 7 images of the whole data set. "
        "Validation images with a copy in the training images: 2 of 40 (5.0 %)."
    ) in text


def test_pairs_with_few_queries_are_untested_not_tied(monkeypatch):
    monkeypatch.setattr(uncertainty, "MIN_QUERIES", 30)
    low, high, baseline = apart(0.2, 0.8, 0.1)
    runs = make_runs({"cnn": low, "vgg": high, "pixels": baseline}, baselines=1)
    pairs = tables.pairs(runs)
    answer = sentences.in_short(tables.quality_and_cost(runs), pairs, runs)
    assert " It is untested against cnn (difference 0." in answer
    verdict = sentences.verdict(pairs, runs)
    assert "- **vgg** is untested against cnn (difference 0." in verdict
    assert "- The baseline pixels: untested against it: cnn, vgg." in verdict
    for text in (answer, verdict.partition("\n\n")[0]):
        assert "fewer than 30 queries)" in text
        assert "significant" not in text
        assert "tied" not in text
    assert tables.pairs_table(pairs)["significant"].tolist() == ["–"] * 3
