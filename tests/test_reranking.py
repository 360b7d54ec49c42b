"""Re-ranking: known values, and a reference implementation of the k-reciprocal method."""

import numpy as np
import pytest

from cbir.retrieval import ranking, reranking


def unit(vectors) -> np.ndarray:
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def clusters():
    """Queries and a gallery of three classes that overlap."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(3, 8))
    labels = random.integers(0, 3, 150)
    vectors = unit(centres[labels] + random.normal(size=(150, 8)))
    return vectors[:30], labels[:30], vectors[30:], labels[30:]


@pytest.mark.parametrize(("alpha", "expected"), [(0, [1.6, 0.8]), (1, [1.36, 0.48])])
def test_a_query_moves_towards_its_neighbours_in_proportion_to_similarity(alpha, expected):
    query, neighbour = unit([[1, 0]]), unit([[[0.6, 0.8]]])
    moved = reranking.expand_queries(query, neighbour, np.array([[0.6]]), alpha)
    np.testing.assert_allclose(moved, unit([expected]), rtol=1e-6)


def test_a_neighbour_with_negative_similarity_is_ignored():
    query, neighbour = unit([[1, 0]]), unit([[[-0.6, 0.8]]])
    moved = reranking.expand_queries(query, neighbour, np.array([[-0.6]]), 1)
    np.testing.assert_allclose(moved, query)


def test_each_gallery_image_moves_towards_its_neighbours_but_not_itself():
    gallery = unit([[1, 0], [0.8, 0.6], [0, 1]])
    moved = reranking.augment_gallery(gallery, 1, 1)
    expected = unit([[1 + 0.64, 0.48], [0.8 + 0.8, 0.6], [0.48, 1 + 0.36]])
    np.testing.assert_allclose(moved, expected, rtol=1e-6)


def reference_order(queries, gallery, k1, k2, share):
    """k-reciprocal re-ranking as in section 3 of Zhong et al. (2017), with Python sets."""
    similarity_matrix = (gallery.astype(float) @ gallery.T.astype(float)).round(12)

    def nearest(similarities, k):
        return [int(i) for i in np.argsort(-similarities, kind="stable")[:k]]

    lists = {k: [nearest(row, k + 1) for row in similarity_matrix] for k in (k1, round(k1 / 2))}

    def reciprocal(similarities, k, is_in_gallery):
        n = k + 1 if is_in_gallery else k
        return {
            i
            for i in nearest(similarities, n)
            if similarities[i] >= similarity_matrix[i, lists[k][i][-1]]
        }

    half = [reciprocal(row, round(k1 / 2), True) for row in similarity_matrix]

    def code(similarities, is_in_gallery):
        first = reciprocal(similarities, k1, is_in_gallery)
        added = [half[i] for i in first if len(first & half[i]) > 2 / 3 * len(half[i])]
        weights = np.zeros(len(gallery))
        for i in first.union(*added):
            weights[i] = np.exp(similarities[i] - 1)
        return weights / weights.sum()

    codes = np.array([code(row, True) for row in similarity_matrix])
    codes = np.array([codes[nearest(row, k2)].mean(axis=0) for row in similarity_matrix])
    orders = []
    for query in queries.astype(float):
        similarities = gallery.astype(float) @ query
        query_code = code(similarities, False)
        query_code = (query_code + codes[nearest(similarities, k2 - 1)].sum(axis=0)) / k2
        candidates = nearest(similarities, 40)
        distances = []
        for i in candidates:
            overlap = (
                np.minimum(query_code, codes[i]).sum() / np.maximum(query_code, codes[i]).sum()
            )
            jaccard = 1 - overlap
            distances.append((1 - share) * jaccard + share * (1 - similarities[i]))
        orders.append([candidates[i] for i in np.argsort(distances, kind="stable")])
    return np.array(orders)


@pytest.mark.parametrize(("k1", "k2", "share"), [(10, 3, 0.3), (6, 2, 0.1), (20, 6, 0.7)])
def test_k_reciprocal_order_equals_the_reference(clusters, k1, k2, share):
    queries, _, gallery, _ = clusters
    near = reranking.find_neighbourhoods(gallery, k1, k2)
    rankings, similarities = ranking.search(queries, gallery, 40)
    order = near.rerank(queries, rankings, similarities, share)
    np.testing.assert_array_equal(order, reference_order(queries, gallery, k1, k2, share))


def test_a_share_of_one_keeps_the_order(clusters):
    queries, _, gallery, _ = clusters
    near = reranking.find_neighbourhoods(gallery, 10, 3)
    rankings, similarities = ranking.search(queries, gallery, 40)
    np.testing.assert_array_equal(near.rerank(queries, rankings, similarities, 1.0), rankings)


def test_precision_counts_the_reordered_images_and_those_beyond_them(clusters, monkeypatch):
    monkeypatch.setattr(reranking, "DEPTH", 20)
    search = reranking._Search(*clusters)
    unchanged = search.average_precision(reorder=lambda queries, rankings, similarities: rankings)
    np.testing.assert_allclose(unchanged, search.average_precision())
    queries, labels, gallery, gallery_labels = clusters

    def best_first(_, rankings, similarities):
        is_hit = gallery_labels[rankings] == labels[:, None]
        return np.take_along_axis(rankings, np.argsort(~is_hit, axis=1, kind="stable"), axis=1)

    reordered = search.average_precision(reorder=best_first)
    order = np.argsort(-(queries @ gallery.T), axis=1, kind="stable")
    for row, positions in enumerate(order):
        hits = gallery_labels[positions] == labels[row]
        hits[:20] = np.sort(hits[:20])[::-1]
        ranks = 1 + np.flatnonzero(hits)
        assert reordered[row] == pytest.approx(np.mean(np.arange(1, len(ranks) + 1) / ranks))
