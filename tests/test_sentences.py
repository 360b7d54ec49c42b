"""Sentences claim no more than the numbers do: who is ahead is who the test says is ahead."""

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

# Nobody is called that in any sentence: these words say more than "ahead of".
TOO_MUCH = re.compile(r"\b(better|best|worse|worst|superior|outperforms?|beats?|wins?)\b")
N_QUERIES = 9
few = settings(max_examples=8, deadline=None)


def make_runs(scores: dict[str, list], baselines: int = 0) -> dict:
    """Runs by name, the last ones baselines."""
    names = list(scores)
    runs = {}
    for place, name in enumerate(names):
        is_baseline = place >= len(names) - baselines
        runs[name] = result(rows(scores[name], architecture=name), baseline=is_baseline)
    return runs


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
@example(apart(0, 0.5, 1, 0.2))
@example(apart(0, 0, 0.5, 0.5))
@example([[0.5] * N_QUERIES] * 4)
@given(st.lists(st.sampled_from([0.0, 0.05, 0.5, 1.0]), min_size=4, max_size=4).map(
    lambda each: apart(*each)))  # fmt: skip
def test_the_verdict_counts_the_differences_that_the_test_finds(scores):
    names = ["cnn", "resnet", "vgg", "pixels"]
    runs = make_runs(dict(zip(names, scores, strict=True)), baselines=1)
    pairs = tables.pairs(runs)
    outcomes = uncertainty.pair_outcomes(pairs, names)
    text = sentences.verdict(pairs, runs)
    n_different = (outcomes.loc[names[:3], names[:3]] == "win").to_numpy().sum()
    assert text.startswith(f"Of 3 pairs of architectures, {n_different} differ significantly (")
    unbeaten = [name for name in names[:3] if outcomes.loc[name, "pixels"] != "win"]
    assert re.findall(r"(\w+) is not significantly ahead of the baselines pixels", text) == unbeaten
    assert ("every architecture is significantly ahead of every baseline" in text) == (not unbeaten)
    assert not TOO_MUCH.search(text)


def test_one_architecture_alone_is_compared_with_nothing():
    runs = make_runs({"cnn": apart(1)[0], "random": apart(0)[0]}, baselines=1)
    assert sentences.verdict(tables.pairs(runs), runs).startswith("Only one architecture has")
    runs = make_runs({"raw_pixels": apart(1)[0], "random": apart(0)[0]}, baselines=2)
    assert sentences.verdict(tables.pairs(runs), runs).startswith("No architecture has results")


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


def seeds_told(runs: dict) -> str:
    """All that is said of the pairs of these runs."""
    pairs = tables.pairs(runs)
    return "\n".join(
        [
            sentences.answer(tables.quality_and_cost(runs), pairs),
            sentences.verdict(pairs, runs),
            sentences.scope(pairs, runs),
        ]
    )


def test_with_one_seed_a_verdict_is_about_the_trained_networks_and_seeds_are_named():
    runs = {"cnn": seeded("cnn", 0.5, 3), "vgg16": seeded("vgg16", 0.9, 1)}
    answer, cost, verdict, *scope = seeds_told(runs).replace("\n\n", "\n").split("\n")
    assert answer.endswith("significantly ahead of cnn. With other seeds, the order may differ.")
    assert verdict.endswith("1 differ significantly (these trained networks only).")
    assert scope[-1].endswith("may differ: the 3 seeds of cnn alone differ by up to 0.020 in mAP.")
    assert any("about these trained networks" in line for line in scope)
    assert not any("about architectures" in line for line in scope)


def test_where_no_architecture_has_several_seeds_that_is_said():
    runs = {"cnn": seeded("cnn", 0.5, 1), "vgg16": seeded("vgg16", 0.9, 1)}
    assert seeds_told(runs).endswith(f"{UNKNOWN}.")


def test_with_several_seeds_of_both_a_verdict_is_about_architectures():
    text = seeds_told({"cnn": seeded("cnn", 0.5, 3), "vgg16": seeded("vgg16", 0.9, 4)})
    assert "significantly ahead of cnn." in text
    assert "trained networks" not in text
    assert "may differ" not in text
    assert "about architectures" in text


def test_the_largest_difference_between_seeds_is_named_and_baselines_have_none():
    runs = {
        "cnn": seeded("cnn", 0.5, 2),
        "vgg16": seeded("vgg16", 0.5, 4),
        "random": seeded("random", 0.1, 9, baseline=True),
    }
    assert (
        sentences.between_seeds(runs) == "the 4 seeds of vgg16 alone differ by up to 0.030 in mAP"
    )


WAYS = ("unrestricted", "label_lookup", "soft", "predicted_class")
COMPARED = [("unrestricted", "label_lookup"), ("soft", "predicted_class")]


@few
@example([apart(0.5, 0, 0.5, 0), apart(0, 0.5, 0, 0.5)])
@example([apart(0.5, 0.5, 0.5, 0.5)])
@given(st.lists(st.tuples(values, values, values, values), min_size=1, max_size=2))
def test_an_embedding_is_ahead_of_the_label_only_where_the_test_says_so(scores):
    scores = [dict(zip(WAYS, each, strict=True)) for each in scores]
    runs = {f"run{place}": all_of_one([], **each) for place, each in enumerate(scores)}
    pairs = tables.search_pairs(runs)
    # All tests of one list are corrected together.
    compared = [uncertainty.compare(pd.DataFrame({one: each[one], other: each[other]}))
                for each in scores for one, other in COMPARED]  # fmt: skip
    compared = pd.concat(compared, ignore_index=True)
    expected = uncertainty.holm(compared["p"].to_numpy()) < 0.05
    assert pairs["is_significant"].tolist() == expected.tolist()
    text = sentences.retrieval_or_classification(pairs)
    lookup, soft = text.split("\n\n")
    assert not TOO_MUCH.search(text)
    for said, one, tests in ((lookup, "label_lookup", pairs[::2]), (soft, "soft", pairs[1::2])):
        ahead = tests[tests["is_significant"] & (tests["ahead"] == one)]["architecture"]
        (told,) = re.findall(
            r"significantly ahead of [^;(]*? for (run\d(?: and run\d)?)", said
        ) or [""]
        assert set(re.findall(r"run\d", told)) == set(ahead)


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
    table = tables.lost_and_won_back({"cnn": run})
    assert table.loc["cnn"].tolist() == [5, "3", "2", "0.90", "25.0 %"]


def test_lost_queries_of_several_seeds_are_a_mean():
    scores = {0: ([1, 0, 0, 1], [1, 0.5, 0, 1]), 1: ([1, 1, 0, 1], [1, 1, 0.5, 1])}
    run = lost_and_found(scores)
    run.summary["calibrations"] = {"0": {"mass": 0.95}, "1": {"mass": 0.5}}
    table = tables.lost_and_won_back({"cnn": run})
    assert table.loc["cnn"].tolist()[:4] == [4, "1.5", "1", "0.50 to 0.95"]


def test_what_has_no_classifier_is_not_asked_whether_it_only_classifies():
    runs = {"random": result(rows([0.5, 0.6], architecture="random"), baseline=True)}
    assert sentences.retrieval_or_classification(tables.search_pairs(runs)) == ""
    assert tables.lost_and_won_back(runs).empty


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
    table = sentences.published({"cnn": run}).set_index("protocol")["mAP on CIFAR-10"]
    shown = {*asked} & {"closed", "hashing_1k"} if dataset == "cifar10" else set()
    assert set(table.index) == shown
    assert ("closed" not in shown) or "50,000 training images as gallery" in table["closed"]
    assert ("hashing_1k" not in shown) or "59,000 in the gallery" in table["hashing_1k"]


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
    assert line.endswith("ahead of random; not significantly different from pixels.")
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
    assert "; it is untested against random." in said
    assert said.endswith("too few for an interval or a verdict, which need 6 classes and 3 draws.")
    assert "significant" not in said


def test_unseen_classes_that_were_not_measured_are_not_spoken_of():
    assert sentences.unseen({"cnn": result(rows([0.5, 0.6]))}) == ""


def test_an_architecture_without_baselines_is_told_by_itself():
    line, *_ = sentences.unseen(unseen(cnn=apart(0.5, 0.6))).split("\n")
    assert line.endswith("that it was not trained on.")


def test_a_run_is_described_by_its_own_numbers():
    frames = [
        rows([0.25, 0.75], labels=[0, 1], seed=seed, correct=[1.0, correct])
        for seed, correct in ((0, 0.0), (1, 1.0))
    ]
    said = sentences.describe_run(result(*frames, epochs=1))
    assert said.startswith("**cnn** ranks the whole gallery with a mean average precision (mAP) of")
    assert "precision (mAP) of 0.5 [" in said
    assert "\n- It classifies the queries with an accuracy of 0.8 [0.1," in said
    assert "\n- Its accuracy on its training images is 1.000 [1.000,\u00a01.000]." in said
    assert "(means of 2 seeds)" in said
    assert "2.5 ms (median)" in said
    assert "3.0 MB" in said
    assert "Training took 1 min 10 s; epochs: 1." in said


def test_a_baseline_is_described_without_what_it_has_not():
    said = sentences.describe_run(result(rows([0.25, 0.75], architecture="random"), baseline=True))
    assert "precision (mAP) of 0.5 [" in said
    for word in ("classifies", "Training", "seeds", "–", "nan"):
        assert word not in said


def test_the_least_cost_of_each_kind_is_named_with_its_number():
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
    place = {"cpu": "a processor", "cores": 2, "gpus": ["A GPU"]}
    runs["vgg16"].summary["trained_on"] = {"machine": place, "versions": {}}
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


def test_every_protocol_that_can_stand_first_is_explained():
    first = [name for name in PROTOCOLS if params.PARAMETERS["protocols"].bound.holds([name])]
    assert first == [name for name in PROTOCOLS if name != "unseen_classes"]
    for name in first:
        assert f"`{name}`" in sentences.protocol(name)
    # What the intervals cover, and what they do not.
    assert "of the same classes, but no other classes." in sentences.protocol("closed")
    assert "for new images they are too narrow" in sentences.protocol("held_out_gallery")
    assert "cover other classes." in sentences.protocol("unseen_classes")


def test_queries_that_nothing_is_relevant_to_are_said_to_be_left_out():
    run = result(rows([0.25, np.nan, 0.75], correct=1.0))
    said = sentences.describe_run(run)
    assert "precision (mAP) of 0.5 [" in said
    assert "Queries without a relevant image in the gallery were left out: 1." in said
    assert "left out" not in sentences.describe_run(result(rows([0.25, 0.75], correct=1.0)))


def answer(scores: dict[str, list], baselines: int = 0) -> str:
    runs = make_runs(scores, baselines)
    return sentences.answer(tables.quality_and_cost(runs), tables.pairs(runs))


@few
@example(apart(0, 0.5, 1))
@example(apart(0, 0, 0.5))
@example(apart(0.5, 0.5, 0))
@example([[0.5] * N_QUERIES] * 3)
@given(st.one_of(three, shifts.map(lambda each: apart(*each))))
def test_the_answer_claims_a_difference_only_where_the_test_finds_one(scores):
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
    assert not TOO_MUCH.search(text)


def test_the_answer_says_who_is_first_by_how_much_and_at_what_cost():
    low, high, baseline = apart(0.2, 0.8, 0.1)
    text = answer({"cnn": low, "vgg": high, "raw_pixels": baseline}, baselines=1)
    first, cost = text.split("\n\n")
    assert first.startswith(
        f"**vgg** has the highest mean average precision (mAP), {np.mean(high):.2f} ["
    )
    assert first.endswith("]: significantly ahead of cnn. With other seeds, the order may differ.")
    # 1,000 images a second.
    assert cost == "Embedding an image takes 1 ms with vgg and 1 ms with cnn."


def test_of_many_the_answer_names_only_exceptions():
    scores = dict(zip("abcd", apart(0.9, 0.5, 0.3, 0.1), strict=True))
    assert "]: significantly ahead of all other architectures." in answer(scores)
    assert "ahead of c and d; not significantly different from b." in answer(
        scores | {"b": apart(0.9)[0]}
    )


def test_a_baseline_that_is_ahead_is_said_to_be():
    low, high = apart(0.2, 0.8)
    text = answer({"cnn": low, "raw_pixels": high}, baselines=1)
    assert ": significantly behind raw_pixels (baseline). No other architecture" in text
    tied = answer({"cnn": low, "raw_pixels": low[::-1]}, baselines=1)
    assert ": not significantly different from raw_pixels (baseline)." in tied


def test_of_several_at_the_top_the_one_that_embeds_fastest_is_named():
    noise = apart(0.5)[0]
    runs = make_runs({"cnn": noise, "vgg": noise[::-1]})
    runs["vgg"].summary["speed"] = {"images_per_second": 50.0, "query_milliseconds": 1.0}
    text = sentences.answer(tables.quality_and_cost(runs), tables.pairs(runs))
    assert "]: not significantly different from" in text
    assert "Among the statistically tied leaders, cnn is the fastest. " in text
    assert "20 ms with vgg" in text


def test_with_one_architecture_or_none_the_answer_says_so():
    high, low = apart(0.8, 0.1)
    alone = answer({"cnn": high, "random": low}, baselines=1)
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
def test_leaks_are_counted_and_it_is_said_what_is_missed(pairs, n_queries, sentence, kinds):
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
    low, high, baseline = apart(0.2, 0.8, 0.1)
    runs = make_runs({"cnn": low, "vgg": high, "pixels": baseline}, baselines=1)
    pairs = tables.pairs(runs)
    texts = sentences.answer(tables.quality_and_cost(runs), pairs), sentences.verdict(pairs, runs)
    assert "]: untested against cnn; untested against pixels (baseline)." in texts[0]
    assert texts[1].startswith("Of 1 pairs of architectures, 0 differ")
    assert "not significantly ahead of the baselines pixels" in texts[1]
    assert "tied" not in "".join(texts)
    assert "fewer than 30 queries are untested" in sentences.scope(pairs, runs)
    assert tables.pairs_table(pairs)["significant"].tolist() == ["–"] * 3


def test_a_network_that_tells_no_images_apart_is_named():
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
        "mobile embeds all images alike (mean cosine similarity of two images: 1.00000)."
    )
