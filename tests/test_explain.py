"""Explanations: maps are tested against random maps, and results are cached."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import build_network, load_shapes, train_network

from cbir import StudyError, explain
from cbir.images.pictures import enlarge_map
from cbir.networks import architecture
from cbir.retrieval import ranking, uncertainty

SIDE = 32
RESULT = np.array([1, 0], np.float32)


def by_corner(images: np.ndarray) -> tuple[np.ndarray, None]:
    """Embeddings with similarity to `RESULT` equal to the brightness of the upper left corner."""
    bright = images[:, :8, :8].mean(axis=(1, 2, 3)) / 255
    return np.column_stack([bright, np.sqrt(1 - bright**2)]).astype(np.float32), None


def pictures(count: int) -> np.ndarray:
    """Noise with a bright upper left corner."""
    images = np.random.default_rng(0).integers(0, 120, (count, SIDE, SIDE, 3), dtype=np.uint8)
    images[:, :8, :8] += 130
    return images


def corner_maps(count: int) -> np.ndarray:
    maps = np.zeros((count, 4, 4), np.float32)
    maps[:, 0, 0] = 1
    return maps


def curves_of(maps: np.ndarray, encode=by_corner, **settings) -> pd.DataFrame:
    """Curves of as many pictures as there are maps."""
    results = np.tile(RESULT, (len(maps), 1))
    return explain.perturbation_curves(encode, pictures(len(maps)), results, maps, **settings)


def gains(maps: np.ndarray, **settings) -> pd.DataFrame:
    """A row for deletion_gain and one for insertion_gain: mean and interval."""
    areas = explain.faithfulness(curves_of(maps, **settings))
    return uncertainty.intervals(areas[["deletion_gain", "insertion_gain"]], limits=None)


# --- perturbation tests


def test_a_map_of_the_relevant_part_is_better_than_random_maps():
    assert (gains(corner_maps(30))["ci_low"] > 0.05).all()


def test_a_map_of_the_irrelevant_part_is_worse_than_random_maps():
    assert (gains(1 - corner_maps(30))["ci_high"] < -0.05).all()


def test_random_maps_do_not_differ_significantly_from_random_maps():
    maps = np.random.default_rng(0).random((60, 4, 4)).astype(np.float32)
    means = gains(maps)
    assert (means["value"].abs() < 0.05).all()
    assert ((means["ci_low"] < 0) & (means["ci_high"] > 0)).all()


def test_a_map_is_compared_with_the_map_of_another_pair():
    maps = corner_maps(8)
    maps[1::2] = maps[1::2, ::-1, ::-1]  # every second map wrongly marks the opposite corner
    areas = explain.faithfulness(curves_of(maps))
    columns = ["deletion_gain_over_other", "insertion_gain_over_other"]
    for name in columns:
        assert (areas[name][::2] > 0.05).all()
        assert (areas[name][1::2] < -0.05).all()
    # Equal maps do not differ.
    equal_areas = explain.faithfulness(curves_of(corner_maps(8)))
    assert (equal_areas[columns].abs() < 0.05).all(None)


def test_an_empty_map_does_not_differ_from_random_maps():
    means = gains(np.zeros((60, 4, 4), np.float32))
    assert ((means["ci_low"] < 0) & (means["ci_high"] > 0)).all()


def test_curves_lead_from_the_image_to_its_blur_and_back():
    curves = curves_of(corner_maps(3), steps=4)
    assert list(curves.columns) == ["pair", "share", *explain.CURVES]
    assert curves["pair"].tolist() == np.repeat([0, 1, 2], 5).tolist()
    assert curves["share"].tolist() == [0, 0.25, 0.5, 0.75, 1] * 3
    similarities = by_corner(pictures(3))[0] @ RESULT
    first, last = (curves[curves["share"] == share].reset_index() for share in (0, 1))
    for name in ("deletion", "deletion_other", "deletion_random"):
        np.testing.assert_allclose(first[name], similarities, atol=1e-6)
        assert (last[name] < similarities - 0.1).all()
    for name in ("insertion", "insertion_other", "insertion_random"):
        np.testing.assert_allclose(last[name], similarities, atol=1e-6)
        np.testing.assert_allclose(first[name], last["deletion"], atol=1e-6)


def test_each_step_changes_its_share_of_pixels_in_the_order_of_the_map():
    batches = []

    def encode(images):
        batches.append(images)
        return by_corner(images)

    curves_of(corner_maps(1), encode, steps=4, random_maps=2)
    (images,) = batches
    # Deletion and insertion by the map, another pair's and two random maps, 3 steps each; both
    # ends once.
    assert len(images) == 2 * 4 * 3 + 2
    assert images.dtype == np.uint8
    image, blurred, *changed = images
    assert np.array_equal(image, pictures(1)[0])
    assert blurred.std() < image.std() / 2
    # Blurring almost never leaves a pixel equal in all three colours.
    differ = np.array([(perturbed != image).any(axis=-1) for perturbed in changed])
    shares = differ.mean(axis=(1, 2)).reshape(2, 4, 3)
    np.testing.assert_allclose(shares[0], np.tile([0.25, 0.5, 0.75], (4, 1)), atol=0.005)
    np.testing.assert_allclose(shares[1], np.tile([0.75, 0.5, 0.25], (4, 1)), atol=0.005)
    deleted, inserted = differ.reshape(2, 4, 3, SIDE, SIDE)[:, 0, 0]
    assert deleted[:6, :6].all()
    assert not inserted[:6, :6].any()


def test_random_maps_depend_only_on_the_seed():
    first, repeated, another = (curves_of(corner_maps(4), seed=seed) for seed in (0, 0, 1))
    assert first.equals(repeated)
    own_maps = ["deletion", "insertion"]
    assert first[own_maps].iloc[1].equals(another[own_maps].iloc[1])
    assert not np.array_equal(first["deletion_random"], another["deletion_random"])


def test_areas_and_gains_by_hand():
    curves = pd.DataFrame(
        {
            "pair": [0, 0, 0, 1, 1, 1],
            "share": [0, 0.5, 1] * 2,
            "deletion": [1, 0.2, 0, 1, 1, 1],
            "deletion_other": [1, 0.4, 0, 1, 0, 1],
            "deletion_random": [1, 0.5, 0, 1, 1, 1],
            "insertion": [0, 0.6, 1, 1, 0, 1],
            "insertion_other": [0, 0.8, 1, 0, 0, 0],
            "insertion_random": [0, 0.5, 1, 1, 1, 1],
        }
    )
    areas = explain.faithfulness(curves)
    assert areas.index.tolist() == [0, 1]
    # By the trapezoidal rule: (1 + 0.2) / 4 + (0.2 + 0) / 4, and so on.
    by_hand = [[0.35, 0.45, 0.5, 0.55, 0.65, 0.5], [1, 0.5, 1, 0.5, 0, 1]]
    np.testing.assert_allclose(areas[explain.CURVES], by_hand)
    np.testing.assert_allclose(areas["deletion_gain"], [0.15, 0])
    np.testing.assert_allclose(areas["insertion_gain"], [0.05, -0.5])
    np.testing.assert_allclose(areas["deletion_gain_over_other"], [0.1, -0.5])
    np.testing.assert_allclose(areas["insertion_gain_over_other"], [-0.1, 0.5])


def test_an_enlarged_map_is_smooth_and_keeps_its_maximum():
    large = enlarge_map(corner_maps(1)[0], SIDE)
    assert large.shape == (SIDE, SIDE)
    assert large.dtype == np.float32
    assert large[0, 0] == large.max() == 1
    # Half way between the middles of two positions, at 3.5 and 11.5 pixels.
    np.testing.assert_allclose(large[0, 7:9].mean(), 0.5, atol=1e-6)
    assert (np.diff(large[0]) <= 0).all()
    assert np.abs(np.diff(large[0])).max() <= 1 / 8 + 1e-6
    np.testing.assert_allclose(enlarge_map(np.full((3, 5), 0.25), 7), 0.25)


def test_queries_are_taken_from_each_class_in_turn():
    labels = np.array([2, 0, 0, 1, 0, 2])
    assert explain.alternate_classes(labels, 10).tolist() == [1, 3, 0, 2, 5, 4]
    assert explain.alternate_classes(labels, 2).tolist() == [1, 3]


# --- explanations of a network


@pytest.fixture(scope="module")
def images(shared_project):
    return load_shapes()


@pytest.fixture(scope="module")
def trained(images, small_cnn):
    network = build_network("cnn", pooling="attention", dropout=0.0)
    return network, train_network(network, images, epochs=6, measured_epochs=[])


def explain_three(trained, images, network=None, rankings=None, finish=None, **settings):
    """Explain three queries; the network is only used if nothing is cached."""
    embedded = architecture.embed(*trained, images, **(finish or {}))
    nearest, similarities = ranking.search(embedded.query, embedded.gallery, 2)
    rankings = nearest if rankings is None else rankings
    settings = {"count": 3, "steps": 4, "random_maps": 1} | settings
    return explain.explain_queries(network, embedded, rankings, **settings), nearest, similarities


@pytest.mark.parametrize("finish", [{}, {"whitening": 2, "test_time_flips": True}])
def test_queries_and_their_nearest_results_are_explained_once(trained, images, finish):
    explanation, rankings, similarities = explain_three(trained, images, trained[0], finish=finish)
    expected = explain.alternate_classes(images.query_labels, 3)
    assert explanation.queries.tolist() == expected.tolist()
    assert explanation.results.tolist() == rankings[explanation.queries, 0].tolist()
    np.testing.assert_allclose(
        explanation.similarities, similarities[explanation.queries, 0], atol=1e-5
    )
    assert explanation.maps.layer == "stage3_conv1"
    assert explanation.maps.query.shape == explanation.maps.result.shape == (3, 8, 8)
    # The curves begin at the similarity that the study measures.
    untouched = explanation.curves[explanation.curves["share"] == 0]
    np.testing.assert_allclose(untouched["deletion"], explanation.similarities, atol=1e-4)
    assert len(explanation.faithfulness) == 3
    # Without a network, the explanation must come from the cache.
    repeated, *_ = explain_three(trained, images, finish=finish)
    assert repeated.artifact.key == explanation.artifact.key
    assert repeated.curves.equals(explanation.curves)
    assert np.array_equal(repeated.maps.result, explanation.maps.result)


def test_whitening_changes_the_maps(trained, images):
    plain, *_ = explain_three(trained, images, trained[0])
    whitened, *_ = explain_three(trained, images, trained[0], finish={"whitening": 2})
    assert not np.allclose(plain.maps.query, whitened.maps.query, atol=0.05)


def test_attention_maps_are_the_weights_of_the_pooling(trained, images):
    explanation, *_ = explain_three(trained, images, trained[0], kind="attention")
    assert (explanation.kind, explanation.maps.layer) == ("attention", "pooling")
    positions = images.gallery[explanation.results]
    weights = np.asarray(trained[0].attention(images.images[positions], training=False))
    by_hand = weights / weights.max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(explanation.maps.result, by_hand, atol=1e-5)


def test_maps_of_a_trained_network_are_better_than_random_maps(trained, images):
    explanation, *_ = explain_three(trained, images, trained[0], count=12, random_maps=3)
    assert (explanation.faithfulness[["deletion_gain", "insertion_gain"]].mean() > 0).all()


def test_queries_without_results_are_left_out(trained, images):
    rankings = np.zeros((len(images.queries), 2), int)
    rankings[explain.alternate_classes(images.query_labels, 3)[1]] = -1
    explanation, *_ = explain_three(trained, images, trained[0], rankings)
    assert len(explanation.queries) == len(explanation.maps.query) == 2
    assert explanation.results.tolist() == [0, 0]


def test_an_unknown_kind_of_map_is_refused_with_the_known_ones(trained, images):
    with pytest.raises(StudyError, match="unknown kind of map 'saliency'.*similarity, attention"):
        explain_three(trained, images, SimpleNamespace(), kind="saliency")
