"""Sentences of the report: they call an architecture ahead only if the test is significant."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from invented import all_of_one, result, rows

from cbir.images import leaks
from cbir.images.protocols import PROTOCOLS
from cbir.reporting import sentences, tables
from cbir.retrieval import uncertainty
from cbir.studies import params

pytestmark = pytest.mark.usefixtures("few_queries")

# Words that claim more than "ahead of" does: no sentence uses them.
OVERCLAIMS = re.compile(r"\b(better|best|worse|worst|superior|outperforms?|beats?|wins?)\b")
N_QUERIES = 9
few_examples = settings(max_examples=8, deadline=None)


def make_runs(scores: dict[str, list], baselines: int = 0) -> dict:
    """Runs by name, the last ones baselines."""
    names = list(scores)
    runs = {}
    for index, name in enumerate(names):
        is_baseline = index >= len(names) - baselines
        runs[name] = result(rows(scores[name], architecture=name), baseline=is_baseline)
    return runs


def shifted_scores(*shifts: float) -> list[list[float]]:
    """Scores of one run per shift: the shift plus some noise."""
    noise = np.random.default_rng(0).normal(0, 0.05, (len(shifts), N_QUERIES))
    return np.clip(np.array(shifts)[:, None] + noise, 0, 1).tolist()


values = st.lists(
    st.floats(0, 1, width=32).map(lambda value: round(value, 2)),
    min_size=N_QUERIES,
    max_size=N_QUERIES,
)
three_score_lists = st.tuples(values, values, values)
shifts = st.lists(st.sampled_from([0.0, 0.03, 0.5]), min_size=3, max_size=3)


@few_examples
@example(shifted_scores(0, 0.5, 1, 0.2))
@example(shifted_scores(0, 0, 0.5, 0.5))
@example([[0.5] * N_QUERIES] * 4)
@given(st.lists(st.sampled_from([0.0, 0.05, 0.5, 1.0]), min_size=4, max_size=4).map(
    lambda drawn: shifted_scores(*drawn)))  # fmt: skip
def test_the_verdict_counts_significant_differences(scores):
    names = ["cnn", "resnet", "vgg", "pixels"]
    runs = make_runs(dict(zip(names, scores, strict=True)), baselines=1)
    pairs = tables.pairs(runs)
    outcomes = uncertainty.pair_outcomes(pairs, names)
    text = sentences.verdict(pairs, runs)
    n_different = (outcomes.loc[names[:3], names[:3]] == "win").to_numpy().sum()
    assert text.startswith(f"Of 3 pairs of architectures, {n_different} differ significantly")
    unbeaten = [name for name in names[:3] if outcomes.loc[name, "pixels"] != "win"]
    assert re.findall(r"(\w+) is not significantly ahead of pixels", text) == unbeaten
    assert ("every architecture is significantly ahead of every baseline" in text) == (not unbeaten)
    assert not OVERCLAIMS.search(text)


def test_a_single_architecture_is_not_compared():
    runs = make_runs({"cnn": shifted_scores(1)[0], "random": shifted_scores(0)[0]}, baselines=1)
    assert sentences.verdict(tables.pairs(runs), runs).startswith("Only one architecture has")
    runs = make_runs(
        {"raw_pixels": shifted_scores(1)[0], "random": shifted_scores(0)[0]}, baselines=2
    )
    assert sentences.verdict(tables.pairs(runs), runs).startswith("No architecture has results")


UNKNOWN = "no architecture here has several seeds, so the variation between seeds is unknown"


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


def verdict_texts(runs: dict) -> str:
    """The sentences about the pairs of these runs."""
    pairs = tables.pairs(runs)
    return "\n".join(
        [
            sentences.answer(tables.quality_and_cost(runs), pairs),
            sentences.verdict(pairs, runs),
            sentences.scope(pairs, runs),
        ]
    )


def test_with_one_seed_the_verdict_is_about_trained_networks_and_gives_the_spread_of_seeds():
    runs = {"cnn": seeded("cnn", 0.5, 3), "vgg16": seeded("vgg16", 0.9, 1)}
    answer, cost, verdict, *scope = verdict_texts(runs).replace("\n\n", "\n").split("\n")
    assert answer.endswith("significantly ahead of cnn. With other seeds, the order may differ.")
    assert verdict.endswith("1 differ significantly in mAP (these trained networks only).")
    assert scope[-1].endswith("may differ: the 3 seeds of cnn alone differ by up to 0.020 in mAP.")
    assert any("about these trained networks" in line for line in scope)
    assert not any("about the architectures" in line for line in scope)


def test_without_several_seeds_the_scope_says_that_their_spread_is_unknown():
    runs = {"cnn": seeded("cnn", 0.5, 1), "vgg16": seeded("vgg16", 0.9, 1)}
    assert verdict_texts(runs).endswith(f"{UNKNOWN}.")


def test_with_several_seeds_of_both_a_verdict_is_about_architectures():
    text = verdict_texts({"cnn": seeded("cnn", 0.5, 3), "vgg16": seeded("vgg16", 0.9, 4)})
    assert "significantly ahead of cnn." in text
    assert "trained networks" not in text
    assert "may differ" not in text
    assert "about the architectures" in text


def test_the_largest_difference_between_seeds_leaves_out_baselines():
    runs = {
        "cnn": seeded("cnn", 0.5, 2),
        "vgg16": seeded("vgg16", 0.5, 4),
        "random": seeded("random", 0.1, 9, baseline=True),
    }
    assert (
        sentences.between_seeds(runs) == "the 4 seeds of vgg16 alone differ by up to 0.030 in mAP"
    )


SEARCHES = ("unrestricted", "label_lookup", "soft", "predicted_class")
COMPARED = [("unrestricted", "label_lookup"), ("soft", "predicted_class")]


@few_examples
@example([shifted_scores(0.5, 0, 0.5, 0), shifted_scores(0, 0.5, 0, 0.5)])
@example([shifted_scores(0.5, 0.5, 0.5, 0.5)])
@given(st.lists(st.tuples(values, values, values, values), min_size=1, max_size=2))
def test_a_search_is_ahead_only_where_the_difference_is_significant(scores):
    scores = [dict(zip(SEARCHES, values, strict=True)) for values in scores]
    runs = {f"run{index}": all_of_one([], **by_search) for index, by_search in enumerate(scores)}
    pairs = tables.search_pairs(runs)
    # All tests of one list are corrected together.
    compared = [uncertainty.compare(pd.DataFrame({name: by_search[name] for name in pair}))
                for by_search in scores for pair in COMPARED]  # fmt: skip
    compared = pd.concat(compared, ignore_index=True)
    expected = uncertainty.holm(compared["p"].to_numpy()) < 0.05
    assert pairs["is_significant"].tolist() == expected.tolist()
    text = sentences.retrieval_or_classification(pairs)
    lookup, soft = text.split("\n\n")
    assert not OVERCLAIMS.search(text)
    for paragraph, search, tests in (
        (lookup, "label_lookup", pairs[::2]),
        (soft, "soft", pairs[1::2]),
    ):
        ahead = tests[tests["is_significant"] & (tests["ahead"] == search)]["architecture"]
        (names_in_text,) = re.findall(
            r"significantly ahead of [^;(]*? for (run\d(?: and run\d)?)", paragraph
        ) or [""]
        assert set(re.findall(r"run\d", names_in_text)) == set(ahead)


def test_the_answer_lists_the_architectures_for_which_the_classifier_is_ahead():
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
            for seed in range(seeds) for search in SEARCHES
        ]  # fmt: skip
        runs[name] = result(*frames)
    answer = sentences.retrieval_or_classification(tables.search_pairs(runs)).splitlines()[0]
    assert answer == (
        "Ranking by predicted class probabilities alone is significantly ahead of ranking by "
        "embedding for ahead and ahead3; not significantly different from it for tied; "
        "significantly behind it for behind (these trained networks only: ahead, behind and tied)."
    )
    alike = {name: replace(runs["ahead"], architecture=name) for name in "abc"}
    assert sentences.retrieval_or_classification(tables.search_pairs(alike)).splitlines()[0] == (
        "Ranking by predicted class probabilities alone is significantly ahead of ranking by "
        "embedding for all architectures (these trained networks only)."
    )


def run_with_lost_queries(seeds: dict[int, tuple[list, list]]):
    """A run from two lists per seed: is a query's class predicted, and its score under `soft`."""
    frames = []
    for seed, (correct, soft) in seeds.items():
        for search in ("unrestricted", "predicted_class", "label_lookup"):
            frames.append(rows(np.array(correct, float), seed=seed, search=search, correct=correct))
        frames.append(rows(soft, seed=seed, search="soft", correct=correct, searched=0.25))
    return result(*frames)


def test_lost_queries_and_those_that_soft_wins_back_are_counted():
    run = run_with_lost_queries({0: ([1, 0, 0, 0, 1], [0.9, 0.5, 0.0, 0.1, 0.8])})
    table = tables.lost_and_won_back({"cnn": run})
    assert table.loc["cnn"].tolist() == [5, "3", "2", "0.90", "25.0 %"]


def test_lost_queries_are_averaged_over_seeds():
    scores = {0: ([1, 0, 0, 1], [1, 0.5, 0, 1]), 1: ([1, 1, 0, 1], [1, 1, 0.5, 1])}
    run = run_with_lost_queries(scores)
    run.summary["calibrations"] = {"0": {"mass": 0.95}, "1": {"mass": 0.5}}
    table = tables.lost_and_won_back({"cnn": run})
    assert table.loc["cnn"].tolist()[:4] == [4, "1.5", "1", "0.50 to 0.95"]


def test_runs_without_a_classifier_are_left_out_of_retrieval_or_classification():
    runs = {"random": result(rows([0.5, 0.6], architecture="random"), baseline=True)}
    assert sentences.retrieval_or_classification(tables.search_pairs(runs)) == ""
    assert tables.lost_and_won_back(runs).empty


@pytest.mark.parametrize("dataset", ["digits", "cifar10", "data/cifar10", "data/shapes"])
@pytest.mark.parametrize(
    "protocols",
    [
        ["closed"], ["held_out_gallery"], ["hashing_1k"], ["closed", "hashing_1k"],
        ["held_out_gallery", "unseen_classes"],
    ],
)  # fmt: skip
def test_published_figures_are_shown_only_for_their_own_protocol(dataset, protocols):
    run = result(*[rows([0.5], protocol=protocol) for protocol in protocols], dataset=dataset)
    table = sentences.published({"cnn": run}).set_index("protocol")["mAP on CIFAR-10"]
    expected = {*protocols} & {"closed", "hashing_1k"} if dataset == "cifar10" else set()
    assert set(table.index) == expected
    assert ("closed" not in expected) or "50,000 training images as gallery" in table["closed"]
    assert ("hashing_1k" not in expected) or "59,000 in the gallery" in table["hashing_1k"]


def unseen(**scores: list[list[float]]) -> dict:
    """Runs by name with the scores of each draw; those named random or pixels are baselines."""
    runs = {}
    for name, draws in scores.items():
        frames = [rows(draws[0], architecture=name)]
        for draw, values_of_draw in enumerate(draws):
            columns = {"protocol": "unseen_classes", "draw": draw}
            queries = range(draw * N_QUERIES, (draw + 1) * N_QUERIES)
            frames.append(rows(values_of_draw, architecture=name, queries=queries, **columns))
        runs[name] = result(*frames, baseline=name in ("random", "pixels"))
    return runs


def labelled(means: list[float], n: int = 4) -> dict:
    """Scores and labels of n queries for each of two classes, with these means."""
    noise = np.linspace(-0.02, 0.02, n)
    return {"scores": np.concatenate([mean + noise for mean in means]), "labels": [0] * n + [1] * n}


def test_unseen_classes_are_averaged_and_compared_with_each_baseline():
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
    assert line.endswith("ahead of random; not significantly different from pixels.")
    assert scope.startswith("Classes: 8, draws: 4. Each mean is over the classes.")


def test_few_unseen_classes_give_no_verdict_whatever_the_number_of_queries():
    runs = {}
    for name, mean in (("cnn", 0.9), ("random", 0.1)):
        frames = [rows([0.5] * 8, architecture=name)]
        for draw in range(2):
            scores = labelled([mean, mean], n=500)
            frames.append(rows(**scores, architecture=name, protocol="unseen_classes", draw=draw))
        runs[name] = result(*frames, baseline=name == "random")
    text = sentences.unseen(runs)
    assert "**cnn** reaches an mAP of 0.900 on classes" in text
    assert "; it is untested against random." in text
    assert text.endswith("too few for an interval or a verdict, which need 6 classes and 3 draws.")
    assert "significant" not in text


def test_unseen_classes_that_were_not_measured_give_no_text():
    assert sentences.unseen({"cnn": result(rows([0.5, 0.6]))}) == ""


def test_unseen_classes_without_baselines_give_no_comparison():
    line, *_ = sentences.unseen(unseen(cnn=shifted_scores(0.5, 0.6))).split("\n")
    assert line.endswith("that it was not trained on.")


def test_a_run_is_described_by_its_own_numbers():
    frames = [
        rows([0.25, 0.75], labels=[0, 1], seed=seed, correct=[1.0, correct])
        for seed, correct in ((0, 0.0), (1, 1.0))
    ]
    text = sentences.describe_run(result(*frames, epochs=1))
    assert text.startswith("**cnn** ranks the whole gallery with a mean average precision (mAP) of")
    assert "precision (mAP) of 0.5 [" in text
    assert "\n- It classifies the queries with an accuracy of 0.8 [0.1," in text
    assert "\n- Its accuracy on its training images is 1.000 [1.000,\u00a01.000]." in text
    assert "(means of 2 seeds)" in text
    assert "2.5 ms (median)" in text
    assert "3.0 MB" in text
    assert "Training took 1 min 10 s; epochs: 1." in text


def test_a_baseline_is_described_without_classifier_training_and_seeds():
    text = sentences.describe_run(result(rows([0.25, 0.75], architecture="random"), baseline=True))
    assert "precision (mAP) of 0.5 [" in text
    for word in ("classifies", "Training", "seeds", "–", "nan"):
        assert word not in text


def test_the_lowest_cost_of_each_kind_is_given_with_its_architecture():
    numbers = {
        "cnn": [1.0, 256, 30.0, 900.0, 5.0, 1.0],
        "vgg16": [15.0, 256, 20.4, 100.0, 4.0, 1.0],
        "random": [np.nan, 128, np.nan, 1e6, 0.1, 1.0],
    }
    costs = pd.DataFrame.from_dict(numbers, orient="index", columns=list(tables.COSTS))
    runs = make_runs({"cnn": [0.5], "vgg16": [0.5], "random": [0.1]}, baselines=1)
    assert sentences.cheapest(costs, runs) == (
        "**vgg16** trains in the shortest time (20 s) and answers a query fastest (4 ms); "
        "**cnn** embeds an image fastest (1.11 ms)."
    )
    assert sentences.cheapest(costs, {name: runs[name] for name in ("cnn", "random")}) == ""


def test_training_times_of_several_machines_are_not_compared():
    runs = make_runs({"cnn": [0.5], "vgg16": [0.5]})
    machine = {"cpu": "a processor", "cores": 2, "gpus": ["A GPU"]}
    runs["vgg16"].summary["trained_on"] = {"machine": machine, "versions": {}}
    costs = tables.costs(runs)
    assert "trains" not in sentences.cheapest(costs, runs)
    table = tables.costs_table(costs, runs)
    assert table["training (s)"].tolist() == ["70", "70 (on A GPU)"]
    assert "Training took 1 min 10 s (on A GPU);" in sentences.describe_run(runs["vgg16"])
    runs["cnn"].summary["trained_on"] = runs["vgg16"].summary["trained_on"]
    assert "**cnn** trains in the shortest time (70 s)" in sentences.cheapest(costs, runs)


def test_architectures_without_results_are_grouped_by_the_whole_reason():
    reasons = ["a: not run", "vgg16: weights: no file x.h5: give a path", "b: not run"]
    assert sentences.without_results(reasons).splitlines() == [
        "- No results for **a** and **b**: not run",
        "- No results for **vgg16**: weights: no file x.h5: give a path",
    ]
    assert sentences.without_results([]) == ""


def test_every_protocol_that_can_come_first_is_explained():
    first = [name for name in PROTOCOLS if params.PARAMETERS["protocols"].bound.holds([name])]
    assert first == [name for name in PROTOCOLS if name != "unseen_classes"]
    for name in first:
        assert f"`{name}`" in sentences.protocol(name)
    # Each text says what its intervals cover.
    assert "of the same classes, but neither other classes nor other seeds." in sentences.protocol(
        "closed"
    )
    assert "for new images they are too narrow" in sentences.protocol("held_out_gallery")
    assert "cover other classes." in sentences.protocol("unseen_classes")


def test_queries_without_relevant_images_are_reported_as_left_out():
    run = result(rows([0.25, np.nan, 0.75], correct=1.0))
    text = sentences.describe_run(run)
    assert "precision (mAP) of 0.5 [" in text
    assert "Queries without a relevant image in the gallery were left out: 1." in text
    assert "left out" not in sentences.describe_run(result(rows([0.25, 0.75], correct=1.0)))


def answer(scores: dict[str, list], baselines: int = 0) -> str:
    runs = make_runs(scores, baselines)
    return sentences.answer(tables.quality_and_cost(runs), tables.pairs(runs))


@few_examples
@example(shifted_scores(0, 0.5, 1))
@example(shifted_scores(0, 0, 0.5))
@example(shifted_scores(0.5, 0.5, 0))
@example([[0.5] * N_QUERIES] * 3)
@given(st.one_of(three_score_lists, shifts.map(lambda drawn: shifted_scores(*drawn))))
def test_the_answer_reports_the_differences_that_are_significant(scores):
    scores = dict(zip(["cnn", "resnet", "vgg"], scores, strict=True))
    text = answer(scores)
    (first,) = re.findall(r"^\*\*(\w+)\*\* has the highest mean average precision", text)
    means = {name: np.mean(values) for name, values in scores.items()}
    assert means[first] == pytest.approx(max(means.values()))
    outcomes = uncertainty.pair_outcomes(tables.pairs(make_runs(scores)), list(scores)).loc[first]
    (relations,) = re.findall(r"\d\]?: ([^.]*)\.", text)
    for relation in relations.split("; "):
        outcome = next(
            key for key, word in sentences.RELATIONS.items() if relation.startswith(word)
        )
        names = set(re.findall(r"cnn|resnet|vgg", relation))
        assert names == set(outcomes.index[outcomes == outcome])
    assert ("Among the statistically tied leaders" in text) == ("tie" in outcomes.to_list())
    assert not OVERCLAIMS.search(text)


def test_the_answer_gives_the_leader_its_mean_average_precision_and_its_cost():
    low, high, baseline = shifted_scores(0.2, 0.8, 0.1)
    text = answer({"cnn": low, "vgg": high, "raw_pixels": baseline}, baselines=1)
    first, cost = text.split("\n\n")
    assert first.startswith(
        f"**vgg** has the highest mean average precision (mAP), {np.mean(high):.2f} ["
    )
    assert first.endswith("]: significantly ahead of cnn. With other seeds, the order may differ.")
    # 1,000 images per second.
    assert cost == "Embedding an image takes 1 ms with vgg and 1 ms with cnn."


def test_the_answer_lists_only_exceptions_among_many_architectures():
    scores = dict(zip("abcd", shifted_scores(0.9, 0.5, 0.3, 0.1), strict=True))
    assert "]: significantly ahead of all other architectures." in answer(scores)
    assert "ahead of c and d; not significantly different from b." in answer(
        scores | {"b": shifted_scores(0.9)[0]}
    )


def test_the_answer_reports_a_baseline_that_is_ahead():
    low, high = shifted_scores(0.2, 0.8)
    text = answer({"cnn": low, "raw_pixels": high}, baselines=1)
    assert ": significantly behind raw_pixels (baseline). No other architecture" in text
    tied = answer({"cnn": low, "raw_pixels": low[::-1]}, baselines=1)
    assert ": not significantly different from raw_pixels (baseline)." in tied


def test_the_answer_is_about_networks_if_a_baseline_has_a_higher_map():
    low, high, lowest = shifted_scores(0.4, 0.8, 0.1)
    text = answer({"cnn": low, "vgg": lowest, "raw_pixels": high}, baselines=1)
    assert text.startswith("**cnn** has the highest mean average precision (mAP) of the networks, ")
    text = answer({"cnn": high, "vgg": lowest, "raw_pixels": low}, baselines=1)
    assert text.startswith("**cnn** has the highest mean average precision (mAP), 0.")


def test_the_answer_gives_the_fastest_of_the_tied_leaders():
    noise = shifted_scores(0.5)[0]
    runs = make_runs({"cnn": noise, "vgg": noise[::-1]})
    runs["vgg"].summary["speed"] = {"images_per_second": 50.0, "query_milliseconds": 1.0}
    text = sentences.answer(tables.quality_and_cost(runs), tables.pairs(runs))
    assert "]: not significantly different from" in text
    assert "Among the statistically tied leaders, cnn embeds fastest. " in text
    assert "20 ms with vgg" in text


def test_the_answer_reports_a_single_architecture_or_none():
    high, low = shifted_scores(0.8, 0.1)
    alone = answer({"cnn": high, "random": low}, baselines=1)
    assert alone.startswith("**cnn** reaches a mean average precision (mAP) of 0.8")
    assert "]. No other architecture has results." in alone
    assert alone.endswith("takes 1 ms with cnn.")
    assert "nan" not in answer({"cnn": [0.5]})
    none = answer({"random": high, "raw_pixels": low}, baselines=2)
    assert none == "No architecture has results; only baselines do."


def copies(
    identical: tuple[int, ...] = (), near: tuple[int, ...] = (), conflicts: tuple[int, ...] = ()
) -> pd.DataFrame:
    queries = [*identical, *near]
    kinds = ["identical"] * len(identical) + ["near-duplicate"] * len(near)
    is_conflict = pd.Series([query in conflicts for query in queries], dtype=bool)
    return pd.DataFrame({"query": queries, "kind": kinds, "is_conflict": is_conflict})


@pytest.mark.parametrize(
    ("pairs", "n_queries", "sentence", "kinds"),
    [
        (copies(), 359, "No copy of a query was found in the gallery (359 queries).", (0, 0)),
        (
            copies((1, 2, 3), tuple(range(10, 19))),
            10_000,
            "Queries with a copy in the gallery: 12 of 10,000 (0.1 %).",
            (3, 9),
        ),
        (
            copies((), (4, 4)),
            100,
            "Queries with a copy in the gallery: 1 of 100 (1.0 %).",
            (0, 1),
        ),
        (
            copies((4,), (4, 5)),
            8,
            "Queries with a copy in the gallery: 2 of 8 (25.0 %).",
            (1, 1),
        ),
        (
            copies((7,)),
            10_000,
            "Queries with a copy in the gallery: 1 of 10,000 (less than 0.1 %).",
            (1, 0),
        ),
    ],
)
def test_leaks_are_counted_and_changes_that_are_not_detected_are_listed(
    pairs, n_queries, sentence, kinds
):
    audit = leaks.Audit(pairs, copies(), n_queries, 30, 0)
    assert sentences.describe_leaks(audit) == sentence
    details, (identical, near) = sentences.leak_details(audit), kinds
    assert f"- Leaks with identical pixels: {identical}, near-duplicates: {near}.\n" in details
    assert "crops to less than 90 % of the side, shifts by more than 6 % of it" in details


def test_label_conflicts_and_copies_for_validation_are_counted():
    audit = leaks.Audit(
        leaks=copies((1, 2), (3, 3, 4), conflicts=(2, 3)),
        validation_copies=copies((), (5, 6, 6), conflicts=(6,)),
        n_queries=100,
        n_validation=40,
        n_identical_conflicts=7,
    )
    text = sentences.leak_details(audit)
    assert (
        "Label conflicts, which have a copy with another label: queries: 2, validation images: 1; "
        "images of the whole data set, with identical pixels: 7.\n- "
        "Validation images with a copy in the training images: 2 of 40 (5.0 %)."
    ) in text


def test_pairs_with_few_queries_are_untested_not_tied(monkeypatch):
    monkeypatch.setattr(uncertainty, "MIN_QUERIES", 30)
    low, high, baseline = shifted_scores(0.2, 0.8, 0.1)
    runs = make_runs({"cnn": low, "vgg": high, "pixels": baseline}, baselines=1)
    pairs = tables.pairs(runs)
    texts = sentences.answer(tables.quality_and_cost(runs), pairs), sentences.verdict(pairs, runs)
    assert "]: untested against cnn; untested against pixels (baseline)." in texts[0]
    assert texts[1].startswith("Of 1 pairs of architectures, 0 differ")
    assert "not significantly ahead of pixels" in texts[1]
    assert "tied" not in "".join(texts)
    assert "fewer than 30 queries are untested" in sentences.scope(pairs, runs)
    assert tables.pairs_table(pairs)["significant"].tolist() == ["–"] * 3


def test_collapsed_networks_are_listed_with_the_reason():
    labels = [0, 1, 0, 1]
    good = result(rows([0.5] * 4, labels=labels, predicted=[0, 1, 1, 1]), mean_similarity=0.9)
    one_class = result(
        rows([0.5] * 4, architecture="vgg", labels=labels, predicted=1), mean_similarity=0.9
    )
    alike = result(rows([0.5] * 4, architecture="mobile", labels=labels), mean_similarity=1.0)
    baseline = result(rows([0.5] * 4, architecture="raw", predicted=-1), baseline=True)
    assert sentences.collapsed({"cnn": good, "raw": baseline}) == ""
    text = sentences.collapsed({"cnn": good, "vgg": one_class, "mobile": alike, "raw": baseline})
    assert text.startswith(
        "**Collapsed:** vgg predicts cross for every query (seed 0); "
        "mobile gives all images nearly the same embedding (mean similarity: 1.00000)."
    )
