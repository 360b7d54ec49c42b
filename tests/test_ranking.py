"""Rankings against a brute-force reference, in the presence of ties and of identical rows."""

import math
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from threadpoolctl import threadpool_info

from cbir.retrieval import metrics, ranking

# Three blocks; the last one holds a single query, whose product is computed in another way.
MANY = 2 * ranking.BLOCK + 1


def unit(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def random_unit(count: int, dimensions: int, seed: int) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(count, dimensions)))


def all_ranks(query, *arguments, **limits) -> np.ndarray:
    """The ranks of all blocks, which are of one length but for the last one."""
    blocks = [ranks for ranks, *_ in ranking.relevant_ranks(query, *arguments, **limits)]
    assert [len(ranks) for ranks in blocks[:-1]] == [len(blocks[0])] * (len(blocks) - 1)
    assert sum(map(len, blocks)) == len(query)
    return np.concatenate(blocks)


def reachable_positions(gallery_labels, row: int, restrict_to=None, exclude=None) -> list[int]:
    """Gallery positions that the search of a query may return."""
    positions = []
    for position, label in enumerate(gallery_labels):
        if restrict_to is not None:
            searched = restrict_to[row]
            if not (searched[label] if restrict_to.ndim == 2 else searched == label):
                continue
        if exclude is None or exclude[row] != position:
            positions.append(position)
    return positions


def exact_dot(vector, second_vector) -> Fraction:
    return sum(
        Fraction(float(a)) * Fraction(float(b)) for a, b in zip(vector, second_vector, strict=True)
    )


def signed_square(vector, gallery_vector) -> Fraction:
    """The signed square of the cosine, times the squared length of `vector`: it has no root."""
    product = exact_dot(vector, gallery_vector)
    return product * abs(product) / exact_dot(gallery_vector, gallery_vector)


def cosine(vector, gallery_vector) -> float:
    """The cosine, with an error of a few units in the last place if products are exact."""
    vector, gallery_vector = np.asarray(vector, np.float64), np.asarray(gallery_vector, np.float64)
    squares = math.fsum(vector * vector) * math.fsum(gallery_vector * gallery_vector)
    return math.fsum(vector * gallery_vector) / math.sqrt(squares)


def brute_force_answers(query, gallery, gallery_labels, **limits) -> list[list[tuple[int, float]]]:
    """(position, similarity) of each possible result, nearest first, ties in gallery order."""
    answers = []
    for row, vector in enumerate(query):
        falling = [signed_square(vector, gallery_vector) for gallery_vector in gallery]
        positions = reachable_positions(gallery_labels, row, **limits)
        order = sorted(positions, key=lambda position: (-falling[position], position))
        answers.append([(position, cosine(vector, gallery[position])) for position in order])
    return answers


def ranks_of(answers, labels, gallery_labels, exclude=None) -> list[list[float]]:
    """Ranks of each query's relevant images in the brute-force answers, not padded."""
    rows = []
    for row, answer in enumerate(answers):
        relevant = [
            position for position, label in enumerate(gallery_labels) if label == labels[row]
        ]
        if exclude is not None and exclude[row] in relevant:
            relevant.remove(exclude[row])
        ranks = [rank for rank, (position, _) in enumerate(answer, start=1) if position in relevant]
        rows.append(ranks + [np.inf] * (len(relevant) - len(ranks)))
    return rows


def padded(rows: list[list[float]]) -> np.ndarray:
    width = max(map(len, rows))
    return np.array([row + [np.nan] * (width - len(row)) for row in rows], np.float32)


values = st.sampled_from([-0.5, -0.25, -0.0, 0.0, 0.25, 0.5])


@st.composite
def problems(draw):
    """Queries, gallery, the labels of both, and the limits of the search.

    Few values and few classes, so that rows repeat and similarities tie.
    """
    dimensions = draw(st.integers(1, 3))
    n_queries, n_gallery = draw(st.integers(1, 6)), draw(st.integers(1, 12))

    def ids(size: int, least=0, most=3) -> np.ndarray:
        return draw(arrays(np.int64, size, elements=st.integers(least, most)))

    query, gallery = (
        draw(arrays(np.float32, (size, dimensions), elements=values))
        for size in (n_queries, n_gallery)
    )
    for rows in (query, gallery):
        rows[~rows.any(axis=1)] = 0.25
    labels, gallery_labels = ids(n_queries), ids(n_gallery)
    limits = {}
    kind = draw(st.sampled_from(["all", "one", "some"]))
    if kind == "one":
        limits["restrict_to"] = ids(n_queries)
    elif kind == "some":
        limits["restrict_to"] = draw(arrays(bool, (n_queries, 4)))
    if draw(st.booleans()):
        limits["exclude"] = ids(n_queries, -1, n_gallery - 1)
    return query, gallery, labels, gallery_labels, limits


@settings(max_examples=50, deadline=None)
@given(problem=problems(), k=st.integers(1, 15))
def test_search_equals_brute_force(problem, k):
    query, gallery, _, gallery_labels, limits = problem
    rankings, similarities = ranking.search(
        query, gallery, k, gallery_labels=gallery_labels, **limits
    )
    assert rankings.shape == similarities.shape == (len(query), min(k, len(gallery)))
    for row, answer in enumerate(brute_force_answers(query, gallery, gallery_labels, **limits)):
        missing = rankings.shape[1] - len(answer[:k])
        positions = [position for position, _ in answer[:k]] + [-1] * missing
        assert rankings[row].tolist() == positions
        expected = [similarity for _, similarity in answer[:k]] + [np.nan] * missing
        np.testing.assert_allclose(similarities[row], expected, rtol=1e-6)


@settings(max_examples=50, deadline=None)
@given(problem=problems())
def test_relevant_ranks_equal_brute_force(problem):
    query, gallery, labels, gallery_labels, limits = problem
    answers = brute_force_answers(query, gallery, gallery_labels, **limits)
    expected = ranks_of(answers, labels, gallery_labels, limits.get("exclude"))
    ranks = all_ranks(query, labels, gallery, gallery_labels, **limits)
    assert np.array_equal(ranks, padded(expected), equal_nan=True)


def crowded(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Integer queries and gallery whose similarities crowd, in a way that `kind` names."""
    random = np.random.default_rng(0)
    n = ranking.PIECE + 500
    first, ones = np.tile([1, 0], (MANY, 1)), np.ones((n, 1), int)
    if kind == "one value":
        return np.ones((MANY, 1), int), ones
    if kind == "near one":
        return first, np.hstack([4096 * ones, random.integers(0, 300, (n, 1))])
    if kind == "powers of two":  # Most of them in a tiny part of the range.
        signs = random.choice([-1, 1], (n, 1))
        return first, np.hstack([signs, 2 ** random.integers(0, 20, (n, 1))])
    if kind == "two clusters":
        pairs = np.hstack([1000 * ones, random.integers(0, 99, (n, 1))])
        return first, np.where(random.random((n, 1)) < 0.1, pairs, pairs[:, ::-1])
    if kind == "one-hot":
        return random.integers(1, 100, (MANY, 10)), np.eye(10, dtype=int)[random.integers(0, 10, n)]
    values = [0, 1] if kind == "codes of 0 and 1" else [-1, 1]
    query, gallery = random.choice(values, (MANY, 32)), random.choice(values, (n, 32))
    gallery[:, 0] = 1
    query[:, 1] = 1
    return query, gallery


KINDS = ["one value", "near one", "powers of two", "two clusters", "one-hot"]
KINDS += ["codes of 0 and 1", "codes of -1 and 1"]


@pytest.mark.parametrize("kind", KINDS)
def test_crowded_similarities_are_ranked_like_a_stable_sort(kind):
    query, gallery = crowded(kind)
    random = np.random.default_rng(1)
    labels = random.integers(0, 4, len(query))
    gallery_labels = random.integers(0, 3, len(gallery))
    products = query @ gallery.T
    # Quotients of integers are rounded correctly, so that equal ones are equal in float64.
    squares = products * abs(products) / np.square(gallery).sum(axis=1)
    rankings = np.argsort(-squares, axis=1, kind="stable")
    rows = [
        (np.flatnonzero(gallery_labels[ranking] == label) + 1).tolist()
        for ranking, label in zip(rankings, labels, strict=True)
    ]
    # Rows of unit length in float32 are ties where the integers are, if all values are of one size.
    kinds = [(query, gallery)]
    if "codes" in kind:
        kinds.append((unit(query), unit(gallery)))
    for vectors in kinds:
        ranks = all_ranks(vectors[0], labels, vectors[1], gallery_labels)
        assert np.array_equal(ranks, padded(rows), equal_nan=True)
        ranked_positions, _ = ranking.search(*vectors, 300)
        assert (ranked_positions == rankings[:, :300]).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), copies=st.integers(0, 30), k=st.integers(1, 60))
def test_search_of_unit_vectors_with_duplicates_equals_brute_force(seed, copies, k):
    gallery = random_unit(40, 8, seed)
    random = np.random.default_rng(seed)
    gallery[random.integers(0, 40, copies)] = gallery[random.integers(0, 40, copies)]
    query = random_unit(5, 8, seed + 1)
    similarity = query.astype(np.float64) @ gallery.astype(np.float64).T
    # Rows that are not identical differ by far more than float32 rounds.
    order = np.argsort(-similarity.round(6), axis=1, kind="stable")[:, :k]
    rankings, similarities = ranking.search(query, gallery, k)
    expected = np.take_along_axis(similarity, order, axis=1)
    assert np.allclose(similarities, expected, atol=1e-6)
    assert np.allclose(np.take_along_axis(similarity, rankings.astype(int), axis=1), expected)
    for row in similarities:
        assert (np.diff(row) <= 0).all()


def test_queries_of_every_block_get_their_answers():
    gallery = random_unit(50, 16, 0)
    rows = np.random.default_rng(1).integers(0, 50, MANY)
    rankings, similarities = ranking.search(gallery[rows], gallery, 3)
    assert rankings[:, 0].tolist() == rows.tolist()
    assert similarities[:, 0] == pytest.approx(np.ones(MANY), abs=1e-5)
    labels = np.arange(50)
    ranks = all_ranks(gallery[rows], labels[rows], gallery, labels)
    assert ranks.tolist() == [[1]] * MANY


def queries_and_copies() -> tuple[list[np.ndarray], np.ndarray, list[int]]:
    """Queries, a gallery in which row 5 is repeated, and the positions of its copies.

    A plain product gives these rows different last bits: where it divides the gallery into pieces,
    in the middle and at the end, and most of all for a single query.
    """
    gallery = random_unit(1003, 512, 2)
    copies = [5, 6, 77, 500, 501, 1000, 1001, 1002]
    gallery[copies] = gallery[5]
    queries = unit(gallery[5] + 0.3 * random_unit(MANY, 512, 3))
    return [queries, *np.split(queries[:20], 20)], gallery, copies


def test_identical_gallery_rows_are_ranked_in_gallery_order():
    queries, gallery, copies = queries_and_copies()
    for query in queries:
        rankings, similarities = ranking.search(query, gallery, len(copies))
        assert (rankings == copies).all()
        assert (similarities == similarities[:, :1]).all()


def test_identical_gallery_rows_have_ranks_in_gallery_order():
    queries, gallery, copies = queries_and_copies()
    labels = np.zeros(len(gallery), int)
    labels[copies[::2]], labels[copies[1::2]] = 1, 2
    for query in queries[1:]:
        odd, even = (all_ranks(query, np.array([label]), gallery, labels) for label in (1, 2))
        assert odd.tolist() == [[1, 3, 5, 7]]
        assert even.tolist() == [[2, 4, 6, 8]]


def test_copies_cut_off_at_k_are_the_last_ones():
    queries, gallery, copies = queries_and_copies()
    for query in queries:
        rankings, _ = ranking.search(query, gallery, 3)
        assert (rankings == copies[:3]).all()


def test_k_larger_than_the_gallery_returns_all_of_it():
    rankings, similarities = ranking.search(random_unit(3, 4, 0), random_unit(6, 4, 1), 100)
    assert rankings.shape == similarities.shape == (3, 6)
    assert (np.sort(rankings) == np.arange(6)).all()
    assert np.isfinite(similarities).all()


def test_search_and_relevant_ranks_agree():
    query, gallery = random_unit(MANY, 33, 0), random_unit(300, 33, 1)
    labels, gallery_labels = np.arange(MANY) % 5, np.arange(300) % 5
    rankings, _ = ranking.search(query, gallery, 300)
    ranks = all_ranks(query, labels, gallery, gallery_labels)
    expected = [
        np.flatnonzero(gallery_labels[ranking] == label) + 1
        for ranking, label in zip(rankings, labels, strict=True)
    ]
    assert (ranks == np.array(expected)).all()


def test_search_within_a_class_returns_only_that_class():
    gallery_labels = np.array([0, 1, 0, 2, 1, 0])
    gallery = unit([[1, 0], [1, 0.1], [1, 0.2], [1, 0.3], [1, 0.4], [1, 0.5]])
    query = unit([[1, 0]] * 3)
    # Class 0 has three images, class 1 two, class 3 none.
    rankings, similarities = ranking.search(
        query, gallery, 4, gallery_labels=gallery_labels, restrict_to=np.array([0, 1, 3])
    )
    assert rankings.tolist() == [[0, 2, 5, -1], [1, 4, -1, -1], [-1, -1, -1, -1]]
    assert np.isnan(similarities).tolist() == (rankings == -1).tolist()
    # Classes 0 and 2, class 1, none.
    some = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0]], bool)
    rankings, _ = ranking.search(query, gallery, 4, gallery_labels=gallery_labels, restrict_to=some)
    assert rankings.tolist() == [[0, 2, 3, 5], [1, 4, -1, -1], [-1, -1, -1, -1]]


def test_relevant_images_outside_the_searched_class_have_infinite_ranks():
    gallery_labels = np.array([0, 1, 0, 1, 1])
    gallery = unit([[1, 0], [1, 0.1], [1, 0.2], [1, 0.3], [1, 0.4]])
    labels, searched = np.array([0, 0, 1]), np.array([0, 1, 1])
    ranks = all_ranks(unit([[1, 0]] * 3), labels, gallery, gallery_labels, restrict_to=searched)
    # A query with two relevant images has one NaN beside the three ranks of another.
    expected = [[1, 2, np.nan], [np.inf, np.inf, np.nan], [1, 2, 3]]
    assert np.array_equal(ranks, expected, equal_nan=True)


def test_excluded_image_is_neither_ranked_nor_relevant():
    gallery_labels = np.array([0, 1, 0, 0])
    gallery = unit([[1, 0], [1, 0.1], [1, 0.2], [1, 0.3]])
    query, labels = unit([[1, 0]] * 3), np.zeros(3, int)
    # Excluded: an image of the query's class, an image of another class, no image.
    exclude = np.array([0, 1, -1])
    rankings, _ = ranking.search(query, gallery, 4, exclude=exclude)
    assert rankings.tolist() == [[1, 2, 3, -1], [0, 2, 3, -1], [0, 1, 2, 3]]
    ranks = all_ranks(query, labels, gallery, gallery_labels, exclude=exclude)
    assert np.array_equal(ranks, [[2, 3, np.nan], [1, 2, 3], [1, 3, 4]], equal_nan=True)


def test_exclusion_and_restriction_together():
    gallery_labels = np.array([0, 1, 0, 0])
    gallery = unit([[1, 0], [1, 0.1], [1, 0.2], [1, 0.3]])
    query, labels = unit([[1, 0]] * 3), np.zeros(3, int)
    exclude = np.array([0, 0, 1])
    # R (2, 2 and 3) leaves out an excluded relevant image, even outside the searched class.
    ranks = all_ranks(
        query, labels, gallery, gallery_labels, exclude=exclude, restrict_to=np.array([0, 1, 0])
    )
    expected = [[1, 2, np.nan], [np.inf, np.inf, np.nan], [1, 2, 3]]
    assert np.array_equal(ranks, expected, equal_nan=True)


def test_excluded_image_leaves_its_copies_in_the_ranking():
    gallery = unit([[1, 2], [1, 0], [1, 2], [1, 2]])
    rankings, similarities = ranking.search(gallery[:1], gallery, 4, exclude=np.array([0]))
    assert rankings.tolist() == [[2, 3, 1, -1]]
    assert similarities[0, 0] == similarities[0, 1]
    ranks = all_ranks(
        gallery[:1], np.array([1]), gallery, np.array([1, 0, 1, 1]), exclude=np.array([0])
    )
    assert ranks.tolist() == [[1, 2]]


def test_limits_apply_to_their_query_in_every_block():
    query, gallery = random_unit(MANY, 8, 0), random_unit(20, 8, 1)
    labels, gallery_labels = np.arange(MANY) % 5, np.arange(20) % 5
    exclude = np.arange(MANY) % 20
    limits = {"restrict_to": labels, "exclude": exclude}
    rankings, _ = ranking.search(query, gallery, 3, gallery_labels=gallery_labels, **limits)
    # Each class has four images, of which one is excluded.
    assert (gallery_labels[rankings] == labels[:, None]).all()
    assert (rankings != exclude[:, None]).all()
    assert (all_ranks(query, labels, gallery, gallery_labels, **limits) == [1, 2, 3]).all()


def test_rankings_are_int32_and_similarities_float32():
    query, gallery = random_unit(3, 4, 0), random_unit(6, 4, 1)
    rankings, similarities = ranking.search(query, gallery, 2)
    ranks = all_ranks(query, np.zeros(3, int), gallery, np.zeros(6, int))
    types = rankings.dtype, similarities.dtype, ranks.dtype
    assert types == (np.int32, np.float32, np.float32)


def test_query_of_a_class_that_the_gallery_lacks_has_no_relevant_images():
    labels = np.array([0, 7, 1])
    ranks = all_ranks(random_unit(3, 4, 0), labels, random_unit(3, 4, 1), np.array([0, 2, 0]))
    assert np.isfinite(ranks[0]).all()
    assert np.isnan(ranks[1:]).all()


def test_class_ids_may_have_large_gaps():
    query, gallery = random_unit(MANY, 4, 0), random_unit(30, 4, 1)
    near = np.arange(MANY) % 3, np.arange(30) % 3
    far = np.array([5, 10**6, 2**40])
    ranks = [
        all_ranks(query, labels, gallery, gallery_labels)
        for labels, gallery_labels in (near, (far[near[0]], far[near[1]]))
    ]
    assert np.array_equal(*ranks)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8, np.uint8, np.int64, bool])
def test_numbers_of_any_type_are_ranked_as_float64(dtype):
    random = np.random.default_rng(0)
    query, gallery = (random.integers(0, 5, (n, 6)).astype(dtype) for n in (20, 40))
    query[:, 0] = gallery[:, 1] = 1
    expected = search_outputs(query.astype(np.float64), gallery.astype(np.float64))
    for output, expected_output in zip(search_outputs(query, gallery), expected, strict=True):
        assert output.tobytes() == expected_output.tobytes()


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 3, 1e30, 1e300])
def test_vector_lengths_do_not_change_the_answer(scale):
    query, gallery = (random_unit(n, 6, n).astype(np.float64) for n in (20, 40))
    for scaled, expected in zip(
        search_outputs(query * scale, gallery / scale), search_outputs(query, gallery), strict=True
    ):
        np.testing.assert_allclose(scaled, expected, rtol=1e-6)


ROWS = np.eye(3, dtype=np.float32)
REFUSED = [
    ("query_embeddings", ROWS[0], r"got \(3,\)"),
    ("query_embeddings", np.where(ROWS[::-1] == 1, np.nan, 0), "row 0 is NaN or infinite"),
    ("query_embeddings", np.ma.masked_array(ROWS, ROWS == 1), "masked arrays"),
    ("query_embeddings", ROWS[:, :2] + 1, "2 dimensions, gallery_embeddings: 3"),
    ("gallery_embeddings", np.where(ROWS == 1, 0, np.inf), "row 0 is NaN or infinite"),
    ("gallery_embeddings", ROWS * [[1], [0], [1]], "row 1 is zero"),
    ("gallery_embeddings", ROWS[:0], r"got \(0, 3\)"),
    ("gallery_labels", np.array([0, -1, 1]), "row 1 is -1, below 0"),
    ("gallery_labels", np.ma.masked_array([0, 1, 1], [0, 0, 1]), "masked arrays"),
    ("restrict_to", np.ones((3, 2), int), "of bool, got .* of int64"),
    ("restrict_to", np.ma.masked_array(np.ones((3, 2), bool), False), "masked arrays"),
    ("restrict_to", np.ones((3, 1), bool), "1 classes, but gallery_labels has 1"),
    ("restrict_to", np.array([0, -2, 1]), "row 1 is -2, below 0"),
    ("exclude", np.array([0.0, 1, 2]), "got .* of float64"),
    ("k", -1, "expected an integer of . or more, got -1"),
    ("k", 2.0, "got 2.0"),
    ("k", True, "got True"),
]


@pytest.mark.parametrize(("name", "value", "message"), REFUSED)
def test_invalid_arguments_are_refused_by_name(name, value, message):
    labels = {"gallery_labels": np.array([0, 1, 1])}
    arguments = {"query_embeddings": ROWS, "gallery_embeddings": ROWS, "k": 1} | labels
    ranking.search(**arguments)
    query_labels = np.zeros(3, int)
    ranking.relevant_ranks(**arguments, query_labels=query_labels)
    with pytest.raises(ValueError, match=f"^{name}: .*{message}"):
        ranking.search(**arguments | {name: value})
    with pytest.raises(ValueError, match=f"^{name}: .*{message}"):
        ranking.relevant_ranks(**arguments | {name: value}, query_labels=query_labels)


def test_search_for_no_results_is_refused():
    with pytest.raises(ValueError, match="^k: expected an integer of 1 or more, got 0"):
        ranking.search(ROWS, ROWS, 0)


def test_negative_query_labels_are_refused():
    with pytest.raises(ValueError, match="^query_labels: row 2 is -1"):
        ranking.relevant_ranks(ROWS, np.array([0, 1, -1]), ROWS, np.arange(3))


@pytest.mark.parametrize("name", ["query_labels", "gallery_labels", "restrict_to", "exclude"])
def test_lengths_that_do_not_fit_are_refused_before_the_search(name):
    embeddings = {
        "query_embeddings": random_unit(3, 4, 0),
        "gallery_embeddings": random_unit(6, 4, 1),
    }
    labels = {"query_labels": np.zeros(3, int), "gallery_labels": np.zeros(6, int)}
    limits = {"restrict_to": np.zeros(3, int), "exclude": np.zeros(3, int)}
    arguments = embeddings | labels | limits
    arguments[name] = arguments[name][1:]
    with pytest.raises(ValueError, match=name):
        ranking.relevant_ranks(**arguments)
    if name != "query_labels":
        del arguments["query_labels"]
        with pytest.raises(ValueError, match=name):
            ranking.search(**arguments, k=1)


@pytest.mark.parametrize("position", [-2, 6])
def test_excluded_positions_beyond_the_gallery_are_refused(position):
    query, gallery, exclude = random_unit(2, 4, 0), random_unit(6, 4, 1), np.array([0, position])
    with pytest.raises(ValueError, match="exclude"):
        ranking.search(query, gallery, 1, exclude=exclude)
    with pytest.raises(ValueError, match="exclude"):
        ranking.relevant_ranks(query, np.zeros(2, int), gallery, np.zeros(6, int), exclude=exclude)


def test_restricted_search_needs_labels():
    with pytest.raises(ValueError, match="gallery_labels"):
        ranking.search(random_unit(2, 4, 0), random_unit(6, 4, 1), 1, restrict_to=np.zeros(2, int))


def search_outputs(query, gallery) -> list[np.ndarray]:
    labels = np.arange(len(query)) % 7, np.arange(len(gallery)) % 7
    ranks = all_ranks(query, labels[0], gallery, labels[1])
    return [ranks, *ranking.search(query, gallery, 100)]


def test_the_same_search_gives_the_same_bits():
    query, gallery = random_unit(MANY, 65, 0), random_unit(ranking.PIECE + 700, 65, 1)
    for first, second in zip(
        search_outputs(query, gallery), search_outputs(query, gallery), strict=True
    ):
        assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("cores", [None, 1, 3, 64])
def test_answers_are_independent_of_the_number_of_cores(cores, monkeypatch):
    query, gallery = random_unit(300, 65, 0), random_unit(ranking.PIECE + 700, 65, 1)
    expected = search_outputs(query, gallery)
    monkeypatch.setattr(ranking.os, "cpu_count", lambda: cores)
    for before, output in zip(expected, search_outputs(query, gallery), strict=True):
        assert before.tobytes() == output.tobytes()


def test_blocks_of_a_large_gallery_are_smaller(monkeypatch):
    query, gallery = random_unit(50, 8, 0), random_unit(90, 8, 1)
    labels = np.arange(50) % 3, np.arange(90) % 3
    expected = all_ranks(query, labels[0], gallery, labels[1])
    assert np.isfinite(expected).all()
    monkeypatch.setattr(ranking, "MAX_SIMILARITIES", 7 * 90)
    blocks = list(ranking.relevant_ranks(query, labels[0], gallery, labels[1]))
    assert [len(ranks) for ranks, *_ in blocks] == [7] * 7 + [1]
    assert np.array_equal(np.concatenate([ranks for ranks, *_ in blocks]), expected)
    monkeypatch.setattr(ranking, "MAX_SIMILARITIES", 1)
    assert np.array_equal(all_ranks(query, labels[0], gallery, labels[1]), expected)


def test_relevant_ranks_are_computed_block_by_block(monkeypatch):
    lengths, multiply = [], ranking._multiply

    def watch(threads, block, *arguments):
        lengths.append(len(block))
        multiply(threads, block, *arguments)

    monkeypatch.setattr(ranking, "_multiply", watch)
    blocks = ranking.relevant_ranks(
        random_unit(MANY, 8, 0), np.zeros(MANY, int), random_unit(20, 8, 1), np.zeros(20, int)
    )
    assert lengths == []
    for number, length in enumerate([ranking.BLOCK, ranking.BLOCK, 1], start=2):
        ranks, *_ = next(blocks)
        assert ranks.shape == (length, 20)
        # The first product is of a few queries, and shows how dense the similarities are.
        assert len(lengths) == number and lengths[-1] == length
    with pytest.raises(StopIteration):
        next(blocks)


def blas_threads() -> list[int]:
    return [
        library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"
    ]


def test_other_matrix_products_keep_their_threads():
    before = blas_threads()
    for _ in ranking.relevant_ranks(
        random_unit(MANY, 8, 0), np.zeros(MANY, int), random_unit(20, 8, 1), np.zeros(20, int)
    ):
        assert blas_threads() == before


def test_calls_on_several_threads_agree_and_restore_blas_threads():
    threads_before = blas_threads()
    query, gallery = random_unit(300, 65, 0), random_unit(ranking.PIECE + 700, 65, 1)
    expected = search_outputs(query, gallery)
    with ThreadPoolExecutor(4) as threads:
        for outputs in threads.map(lambda _: search_outputs(query, gallery), range(8)):
            for output, expected_output in zip(outputs, expected, strict=True):
                assert output.tobytes() == expected_output.tobytes()
    assert blas_threads() == threads_before


@pytest.mark.parametrize("restricted", [False, True])
def test_results_and_ranks_of_one_similarity_matrix_are_those_of_a_search(restricted):
    random = np.random.default_rng(3)
    query, gallery = random_unit(60, 8, 0), random_unit(40, 8, 1)
    gallery[7] = gallery[3]
    labels = random.integers(0, 4, 60), random.integers(0, 4, 40)
    limits = {"exclude": random.integers(-1, 40, 60)}
    if restricted:
        limits["restrict_to"] = random.random((60, 4)) < 0.5
    ((ranks, *results),) = ranking.relevant_ranks(
        query, labels[0], gallery, labels[1], k=9, **limits
    )
    searched = ranking.search(query, gallery, 9, gallery_labels=labels[1], **limits)
    for result, expected in zip(results, searched, strict=True):
        np.testing.assert_array_equal(result, expected)
    assert np.array_equal(
        ranks, all_ranks(query, labels[0], gallery, labels[1], **limits), equal_nan=True
    )


@pytest.mark.parametrize("k", [1, 5, 20])
def test_within_the_predicted_class_precision_and_map_are_the_accuracy(k):
    random = np.random.default_rng(0)
    gallery_labels = np.repeat(np.arange(4), 20)
    labels = random.integers(0, 4, MANY)
    predicted = np.where(random.random(MANY) < 0.7, labels, (labels + 1) % 4)
    accuracy = (predicted == labels).mean()
    assert 0 < accuracy < 1
    ranks = all_ranks(
        random_unit(MANY, 8, 1),
        labels,
        random_unit(80, 8, 2),
        gallery_labels,
        restrict_to=predicted,
    )
    means = metrics.per_query(ranks, [k]).mean()
    assert means[f"precision@{k}"] == pytest.approx(accuracy)
    assert means["average_precision"] == pytest.approx(accuracy)
    assert means[f"average_precision@{k}"] == pytest.approx(accuracy)
    assert means["r_precision"] == pytest.approx(accuracy)


def test_beyond_the_class_size_precision_within_the_predicted_class_falls_below_accuracy():
    gallery_labels = np.repeat(np.arange(2), 10)
    labels = np.array([0, 1, 1])
    ranks = all_ranks(
        random_unit(3, 8, 1), labels, random_unit(20, 8, 2), gallery_labels, restrict_to=labels
    )
    # All ten images of the class are returned: 10 of 40.
    assert metrics.precision_at_k(ranks, 40) == pytest.approx([10 / 40] * 3)


# Ties


def close_vectors(kind: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Queries and a gallery with many ties or near ties."""
    random = np.random.default_rng(seed)
    n_queries, n, d = 23, 150, int(random.integers(2, 70))
    if kind == "codes":
        return random.choice([-1.0, 1.0], (n_queries, d)), random.choice([-1.0, 1.0], (n, d))
    if kind == "counts":
        return random.integers(0, 4, (n_queries, d)) + 1, random.integers(0, 4, (n, d)) + 1
    # A few directions, most of their copies off by single bits.
    directions = random_unit(5, d, seed)
    gallery = directions[random.integers(0, 5, n)]
    off = random.random(gallery.shape) < 0.05
    gallery[off] = np.nextafter(gallery[off], np.float32(2))
    if kind == "permuted":
        gallery = gallery[:, random.permutation(d)]
        return np.full((n_queries, d), 0.5, np.float32), gallery
    return random_unit(n_queries, d, seed + 1), gallery


CLOSE = ["codes", "counts", "near copies", "permuted"]


@pytest.mark.parametrize("kind", CLOSE)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), cores=st.integers(1, 4), data=st.data())
def test_the_answer_of_a_query_is_independent_of_blocks_cores_and_other_queries(
    kind, seed, cores, data
):
    query, gallery = close_vectors(kind, seed)
    labels, gallery_labels = np.arange(len(query)) % 3, np.arange(len(gallery)) % 3

    def answers(rows) -> list[np.ndarray]:
        ranks = all_ranks(query[rows], labels[rows], gallery, gallery_labels)
        return [ranks, *ranking.search(query[rows], gallery, 40)]

    rows = [answers([row]) for row in range(23)]
    alone = [np.concatenate(parts) for parts in zip(*rows, strict=True)]
    order = data.draw(st.permutations(range(23)))
    cut = data.draw(st.integers(1, 22))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking.os, "cpu_count", lambda: cores)
        patch.setattr(ranking, "MANY", ranking.PROBE)
        patch.setattr(ranking, "DENSE", data.draw(st.sampled_from([-1, ranking.DENSE])))
        patch.setattr(ranking, "BLOCK", data.draw(st.integers(1, 30)))
        patch.setattr(ranking, "PIECE", data.draw(st.integers(1, 200)))
        patch.setattr(ranking, "MAX_SIMILARITIES", data.draw(st.sampled_from([1, 1000, 2**24])))
        parts = [answers(order[:cut]), answers(order[cut:])]
    for together, expected in zip(zip(*parts, strict=True), alone, strict=True):
        assert np.concatenate(together).tobytes() == expected[order].tobytes()


@pytest.mark.parametrize("kind", ["codes", "counts"])
def test_integer_queries_have_the_same_answer_beside_a_float_query(kind):
    query, gallery = close_vectors(kind, 3)
    together = search_outputs(np.vstack([query, query[:1] * np.pi]), gallery)
    for output, expected in zip(search_outputs(query, gallery), together, strict=True):
        assert output.tobytes() == expected[:-1].tobytes()
    # Multiples have the same similarities, but products beyond the integers of float32.
    for output, expected in zip(search_outputs(query, 10**5 * gallery), together, strict=True):
        assert output.tobytes() == expected[:-1].tobytes()


@pytest.mark.parametrize("kind", CLOSE)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_rankings_follow_exact_similarities(kind, seed):
    query, gallery = close_vectors(kind, seed)
    query = query[:2]
    rankings, _ = ranking.search(query, gallery, len(gallery))
    for vector, positions in zip(query, rankings, strict=True):
        similarity = np.array([cosine(vector, gallery_vector) for gallery_vector in gallery])
        order = np.argsort(-similarity, kind="stable")
        size = np.array([cosine(abs(vector), abs(gallery_vector)) for gallery_vector in gallery])[
            order
        ]
        tolerance = ranking.TIE * np.maximum(size[:-1], size[1:])
        first = np.append(True, similarity[order][:-1] - similarity[order][1:] > tolerance)
        ties = np.split(order, np.flatnonzero(first)[1:])
        assert positions.tolist() == np.concatenate([np.sort(tie) for tie in ties]).tolist()


@pytest.mark.parametrize(("angle", "is_tie"), [(5e-13, True), (1e-10, False)])
def test_similarities_up_to_the_tolerance_are_ties(angle, is_tie):
    # At a right angle, similarities differ by as much as angles.
    angles = np.array([0, 2, 1]) * angle
    gallery = np.column_stack([np.ones(3), 2 * angles - 1])
    rankings, similarities = ranking.search(np.array([[1.0, 1]]), gallery, 3)
    # The outer two differ by 1e-12; a chain would tie them even if they differed by more.
    assert rankings.tolist() == [[0, 1, 2] if is_tie else [1, 2, 0]]
    assert (len(set(similarities[0])) == 1) == is_tie


def test_products_in_float64_do_not_break_ties(monkeypatch):
    # Neighbours differ by the tolerance, so that the last bits decide.
    random = np.random.default_rng(0)
    query, vector = random.random((2, 64)) + 0.1
    step = query - vector * (query @ vector) / (vector @ vector)
    step *= query @ vector / (query @ step)
    gallery = vector + random.permutation(500)[:, None] * ranking.TIE * step
    queries = np.vstack([query, random.random((ranking.MANY, 64))])
    outputs = []
    for share in (1, -1):
        monkeypatch.setattr(ranking, "DENSE", share)
        outputs.append(search_outputs(queries, gallery))
    for first, second in zip(*outputs, strict=True):
        assert first.tobytes() == second.tobytes()


def test_small_similarities_are_ranked_if_they_are_exact():
    # As by `label_lookup`: probabilities of a query, and images that show one class each.
    query = np.array([[1, 1e-20, 1e-13, 1e-16, 1e-30]], np.float32)
    rankings, _ = ranking.search(query, np.eye(5), 5)
    assert rankings.tolist() == [[0, 2, 3, 1, 4]]


def test_equal_similarities_tie_at_any_scale():
    # Similarities are m / 512, and the last half are the first with their bits in another order.
    random = np.random.default_rng(5)
    n_positive = random.integers(0, 1024, (400, 1))
    codes = random.permuted(np.where(np.arange(1024) < n_positive, 1, -1), axis=1)
    codes = np.concatenate([codes, random.permuted(codes, axis=1)])
    query = np.ones((1, 1024))
    expected = np.argsort(-codes.sum(axis=1), kind="stable")
    for scale in (1, 1 / 32, 0.1, np.pi):
        rankings, _ = ranking.search(query, codes * scale, len(codes))
        assert (rankings == expected).all()


def test_a_similarity_is_independent_of_the_rows_computed_with_it():
    random = np.random.default_rng(0)
    gallery = ranking.prepare(random.normal(size=(9, 65)))
    codes = np.zeros(9, np.int32)
    query = ranking._Query(random.normal(size=65), 1.0, 0.0)
    similarities = []
    for order in (np.arange(9), np.arange(9)[::-1], random.permutation(9), np.array([3])):
        row_similarities = np.full(9, np.nan)
        ranking._write_similarities(
            query,
            ranking._Gallery(gallery.rows, gallery.scales, codes),
            order.astype(np.int32),
            row_similarities,
        )
        similarities.append(row_similarities[3])
    assert len(set(similarities)) == 1
    assert similarities[0] == pytest.approx(query.vector @ gallery.rows[3] * gallery.scales[3])


@pytest.mark.parametrize("size", [1e-4, 1])
def test_larger_errors_of_products_do_not_change_the_answer(size, monkeypatch):
    query, gallery = close_vectors("near copies", 1)
    expected, multiply = search_outputs(query, gallery), ranking._multiply

    def multiply_badly(threads, block, gallery, out):
        multiply(threads, block, gallery, out)
        out += np.random.default_rng(0).normal(scale=size, size=out.shape)

    monkeypatch.setattr(ranking, "_multiply", multiply_badly)
    for output, expected_output in zip(search_outputs(query, gallery), expected, strict=True):
        assert output.tobytes() == expected_output.tobytes()


@pytest.mark.slow
def test_ranks_beyond_the_integers_of_float32_are_exact():
    n = 2**24 + 3
    gallery, labels = np.ones((n, 1), np.int8), np.zeros(n, np.int8)
    labels[-3:] = 1
    ((ranks, *_),) = ranking.relevant_ranks(np.ones((1, 1), np.int8), [1], gallery, labels)
    assert ranks.tolist() == [[n - 2, n - 1, n]]


def test_ranks_of_large_galleries_are_float64(monkeypatch):
    arguments = random_unit(9, 4, 0), np.zeros(9, int), random_unit(20, 4, 1), np.arange(20) % 2
    expected = all_ranks(*arguments)
    monkeypatch.setattr(ranking, "MAX_FLOAT32", 19)
    ranks = all_ranks(*arguments)
    assert (expected.dtype, ranks.dtype) == (np.float32, np.float64)
    assert (ranks == expected).all()
