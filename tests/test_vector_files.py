"""Vectors of other programs: matched by name, refused with the reason, measured like others."""

import json
import re
from dataclasses import replace
from pathlib import Path

import invented
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, load_shapes

from cbir import StudyError
from cbir.networks import baselines, embeddings, vector_files
from cbir.reporting import provenance, sentences, tables
from cbir.reporting.runs import save_run
from cbir.retrieval import evaluation
from cbir.search.searchers import open_searcher


@pytest.fixture(scope="module")
def images(shared_project):
    return load_shapes()


@pytest.fixture(scope="module")
def pixels(images):
    """Vectors as of another program: those of raw_pixels."""
    return baselines.describe_images("raw_pixels", images.images, 0)


@pytest.fixture(scope="module")
def points(images):
    """Vectors of few dimensions, so that a file is written quickly."""
    return np.random.default_rng(0).normal(size=(len(images.names), 6)).astype(np.float32)


@pytest.fixture
def write(tmp_path):
    """Write columns to a file of either kind, and return its path as in YAML."""

    def write(kind: str = "npz", **columns) -> str:
        path = tmp_path / f"vectors.{kind}"
        if kind == "npz":
            np.savez(path, **columns)
        else:
            values = {name: [*column] for name, column in columns.items()}
            pd.DataFrame(values).to_parquet(path)
        return str(path)

    return write


def class_probabilities(images, share: float = 0.8) -> np.ndarray:
    """(n, 3) probabilities: that of the true class is `share`."""
    rest = (1 - share) / 2
    return np.full((len(images.labels), 3), rest) + (share - rest) * np.eye(3)[images.labels]


def test_the_example_of_the_documentation_writes_a_file_that_a_study_reads(images, tmp_path):
    text = (ROOT / "docs" / "vectors.md").read_text("utf-8")
    example = re.search(r"```python\n(.*?)```", text, re.S)[1]
    for documented, path in {
        "path/to/holiday": "data/shapes",
        "*.jpg": "*.png",
        "data/dinov2.npz": str(tmp_path / "vectors.npz"),
    }.items():
        assert documented in example
        example = example.replace(documented, path)
    exec(example, {"embed": lambda path: [path.stat().st_size, 1.0]})
    vectors, probabilities = vector_files.read(str(tmp_path / "vectors.npz"), images)
    sizes = [Path("data/shapes", name).stat().st_size for name in images.names]
    assert vectors.tolist() == [[size, 1.0] for size in sizes]
    assert probabilities is None


def save(name: str, vectors: str, **measurement):
    """A run of vectors, without its notebook."""
    measurement = invented.MEASUREMENT | measurement
    states = evaluation.measure(
        load_shapes(),
        embed_view=lambda view, seed: embeddings.embed_baseline("vectors", view, seed, vectors),
        measurement=measurement,
    )
    speed = evaluation.measure_speed(
        states[0].embeddings, embeddings.baseline_encoder("vectors", 0)
    )
    return save_run("tiny", name, measurement=measurement, states=states, speed=speed)


@pytest.mark.parametrize("kind", ["npz", "parquet"])
@pytest.mark.parametrize(
    "name",
    [
        "{}",
        "./{}",
        "data/shapes/{}",
        "/home/me/data/shapes/{}",
    ],
)
def test_rows_are_matched_to_images_by_the_end_of_their_path(kind, name, images, points, write):
    order = np.random.default_rng(0).permutation(len(points))
    paths = np.array([name.format(image_name) for image_name in images.names])[order]
    probabilities = class_probabilities(images)[order]
    file = write(kind, path=paths, vector=points[order], probabilities=probabilities)
    vectors, probabilities_read = vector_files.read(file, images)
    np.testing.assert_array_equal(vectors, points)
    np.testing.assert_allclose(probabilities_read, class_probabilities(images), rtol=1e-6)
    assert (vectors.dtype, probabilities_read.dtype) == (np.float32, np.float32)


def test_rows_of_other_images_are_ignored_even_if_invalid(images, points, write):
    paths = np.array([*images.names, "circle/other.png", "circle/other.png"])
    broken = np.full((2, points.shape[1]), np.nan, np.float32)
    file = write(path=paths, vector=np.concatenate([points, broken]))
    np.testing.assert_array_equal(vector_files.read(file, images)[0], points)


@pytest.mark.parametrize("kind", ["float16", "float64", "int8", "uint8", "int64"])
def test_vectors_may_have_any_numeric_type(kind, images, write):
    codes = np.random.default_rng(0).integers(1, 100, (len(images.names), 8)).astype(kind)
    vectors, probabilities = vector_files.read(
        write(path=np.array(images.names), vector=codes), images
    )
    np.testing.assert_array_equal(vectors, codes.astype(np.float32))
    assert probabilities is None


def broken(images, points) -> dict[str, tuple[dict, str]]:
    """Changes of a valid file by name, each with the error that it causes."""
    names, likelihoods = np.array(images.names), class_probabilities(images)
    n, first, third = len(names), re.escape(repr(images.names[0])), re.escape(repr(images.names[2]))

    def changed(values, row, value):
        values = values.astype(np.float64)
        values[row] = value
        return values

    rows = {"path": names[:-1], "vector": points[:-1], "probabilities": likelihoods[:-1]}
    twice = np.array([*names[:-1], f"x/{names[0]}"])
    zeros = np.isin(np.arange(n), [2, 5])
    return {
        "an image is missing": (
            rows,
            f"no row for 1 of {n} images, the first is {re.escape(repr(images.names[-1]))}; "
            f"its paths are like {first}",
        ),
        "other names": ({"path": np.char.add(names, "x")}, f"no row for {n} of {n} images, the"),
        "no rows": ({"path": names[:0], "vector": points[:0], "probabilities": likelihoods[:0]},
                    f"no row for {n} of {n} images, .*; it has no rows$"),
        "an image twice": (
            {"path": twice}, f"two rows for the image {first}: {first} and 'x/.*: keep one"
        ),
        "names that are numbers": ({"path": np.arange(n)}, "'path' must be a text in each row"),
        "no vectors": ({"vector": None}, "no column 'vector', only 'path', 'probabilities'"),
        "no names": ({"path": None}, "no column 'path', only 'vector', 'probabilities'"),
        "too few vectors": ({"vector": points[:-1]}, "'vector' must have a row for each value of"),
        "a number each": ({"vector": points[:, 0]}, "'vector' must be a list of numbers in each"),
        "matrices": ({"vector": points.reshape(n, -1, 3)}, "'vector' must be a list of numbers in"),
        "no dimension": ({"vector": points[:, :0]}, "'vector' must be a list of numbers in each"),
        "texts": ({"vector": points.astype(str)}, "'vector' must be a list of numbers in each row"),
        "NaN": ({"vector": changed(points, 2, np.nan)},
                f"'vector' is NaN, infinite or too large for 1 of {n} images, the first is "
                f"{third}$"),
        "infinite": ({"vector": changed(points, (2, 0), np.inf)}, "'vector' is NaN, infinite or"),
        "beyond float32": ({"vector": changed(points, (2, 0), 1e39)}, "'vector' is NaN, infinite"),
        "zero": ({"vector": changed(points, zeros, 0)},
                 "the length of 'vector' is 0 or infinite in float32 for 2 of "
                 f"{n} images, the first is {third}$"),
        "too small": ({"vector": changed(points, 2, 1e-30)}, "'vector' is 0 or infinite in"),
        "too long": ({"vector": changed(points, 2, 1e30)}, "'vector' is 0 or infinite in"),
        "too few classes": ({"probabilities": likelihoods[:, :2]},
                            "'probabilities' must have a value for each of the 3 classes, in the "
                            "order circle, cross, square, not 2"),
        "logits": ({"probabilities": np.log(likelihoods)}, "'probabilities' is negative for"),
        "scores": ({"probabilities": changed(likelihoods, (2, 0), 0.9)},
                   f"the sum of 'probabilities' is not 1 for 1 of {n} images, the first is {third}$"
                   ),
        "no probability": ({"probabilities": changed(likelihoods, (2, 0), np.nan)},
                           "'probabilities' is NaN, infinite or too large for 1 of"),
    }  # fmt: skip


BROKEN = [
    "an image is missing", "other names", "no rows", "an image twice", "names that are numbers",
    "no vectors", "no names", "too few vectors", "a number each", "matrices", "no dimension",
    "texts", "NaN", "infinite", "beyond float32", "zero", "too small", "too long",
    "too few classes", "logits", "scores", "no probability",
]  # fmt: skip


def refusal(file: str, images) -> str:
    with pytest.raises(StudyError) as caught:
        vector_files.read(file, images)
    message = str(caught.value)
    assert message.startswith(f"vectors: {file}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_does_not_fit_is_refused_with_the_reason(case, images, points, write):
    cases = broken(images, points)
    assert list(cases) == BROKEN
    change, reason = cases[case]
    whole = {
        "path": np.array(images.names),
        "vector": points,
        "probabilities": class_probabilities(images),
    }
    columns = {name: column for name, column in (whole | change).items() if column is not None}
    assert re.search(reason, refusal(write(**columns), images))


@pytest.mark.parametrize("vectors", ["shorter", "missing"])
def test_a_parquet_row_of_another_length_is_refused(vectors, images, points, write):
    rows = [*points]
    rows[2] = rows[2][:-1] if vectors == "shorter" else None
    message = refusal(write("parquet", path=images.names, vector=rows), images)
    assert "'vector' must have the same length in each row, but has the shape (6,) for" in message
    assert message.endswith(f"for {images.names[2]!r}")


def test_an_array_of_python_objects_is_not_opened(images, points, write):
    file = write(path=np.array(images.names, object), vector=points)
    assert "cannot be read (ValueError: Object arrays cannot be loaded" in refusal(file, images)


@pytest.mark.parametrize("kind", ["npz", "parquet"])
@pytest.mark.parametrize("damage", ["empty", "text", "cut"])
def test_a_damaged_file_is_refused_in_one_line(kind, damage, images, points, write):
    file = write(kind, path=np.array(images.names), vector=points)
    content = Path(file).read_bytes()
    damaged = {"empty": b"", "text": b"path,vector\n", "cut": content[: len(content) // 2]}
    Path(file).write_bytes(damaged[damage])
    assert "cannot be read (" in refusal(file, images)


@pytest.mark.parametrize("file", ["gone.npz", "."])
def test_a_missing_file_is_refused(file, images, tmp_path):
    with pytest.raises(StudyError, match=f"vectors: no readable file {tmp_path}"):
        vector_files.read(str(tmp_path / file), images)


def test_vectors_of_raw_pixels_score_like_the_baseline(images, pixels, write):
    order = np.arange(len(pixels))[::-1]
    file = write("parquet", path=np.array(images.names)[order], vector=pixels[order])
    measurement = {"seeds": [0, 1], "protocols": ["closed", "held_out_gallery", "unseen_classes"]}
    ours = invented.save_baseline("raw_pixels", **measurement)
    theirs = save("pixels", file, **measurement)
    columns = [name for name in ours.metrics if name != "architecture"]
    pd.testing.assert_frame_equal(theirs.metrics[columns], ours.metrics[columns])
    assert theirs.is_baseline
    np.testing.assert_array_equal(theirs.rankings["unrestricted"], ours.rankings["unrestricted"])


def test_class_probabilities_allow_every_search(images, pixels, write):
    sure = class_probabilities(images)
    wrong = images.queries[0]
    sure[wrong] = np.roll(sure[wrong], 1)
    run = save("sure", write(path=np.array(images.names), vector=pixels, probabilities=sure))
    assert run.summary["searches"] == [
        "unrestricted", "predicted_class", "soft", "label_lookup", "oracle_class",
    ]  # fmt: skip
    n = len(images.queries)
    quality = tables.quality({"sure": run}).loc["sure"]
    assert quality["accuracy"].value == pytest.approx(1 - 1 / n)
    assert quality["mAP, predicted class"].value == pytest.approx(1 - 1 / n)
    counts = tables.confusions({"sure": run})["sure"].to_numpy()
    assert (counts.sum(), np.trace(counts)) == (n, n - 1)
    text = sentences.describe_run(run)
    assert f"It classifies the queries with an accuracy of {quality['accuracy']}." in text
    assert "training" not in text
    assert "MB; the time to make them is unknown." in text
    assert len(tables.search_pairs({"sure": run})) == 2


def test_probabilities_are_not_used_for_unseen_classes(images, pixels, write):
    file = write(
        path=np.array(images.names), vector=pixels, probabilities=class_probabilities(images)
    )
    run = save("sure", file, protocols=["closed", "unseen_classes"])
    unseen = run.per_query[run.per_query["protocol"] == "unseen_classes"]
    assert set(unseen["search"]) == {"unrestricted"}
    assert unseen["correct"].isna().all()
    assert "The vectors of sure were made elsewhere, where a network may have been trained on" in (
        provenance.pretrained_warning({"sure": run})
    )


def test_unknown_costs_are_left_out(images, pixels, write):
    run = save("pixels", write(path=np.array(images.names), vector=pixels))
    costs = tables.costs({"pixels": run}).loc["pixels"]
    assert costs["embedding size"] == pixels.shape[1]
    assert np.isnan(costs[["embedding (images/s)", "query (ms, median)"]]).all()
    point = tables.quality_and_cost({"pixels": run}).loc["pixels"]
    assert np.isnan(point["milliseconds"])
    assert point["bytes"] == 4 * pixels.shape[1]


def test_path_and_sha256_are_recorded(images, pixels, write):
    file = write(path=np.array(images.names), vector=pixels)
    run = save("pixels", file)
    (sha256, _) = vector_files.fingerprints(file, images)
    assert run.summary["vectors"] == {"source": file, "sha256": sha256}
    assert provenance.weights_label({"pixels": run}) == (
        f"The vectors of pixels were made elsewhere: vectors.npz (SHA-256 {sha256[:12]}…)."
    )


def test_another_file_or_other_names_change_the_key(images, pixels, write):
    file = write(path=np.array(images.names), vector=pixels)
    first = embeddings.embed_baseline("vectors", images, 0, file)
    # The key does not depend on the seed, but on the names.
    assert embeddings.embed_baseline("vectors", images, 1, file).artifact == first.artifact
    renamed = replace(images, names=[f"new/{name}" for name in images.names])
    with pytest.raises(StudyError, match="no row for 48 of 48 images"):
        embeddings.embed_baseline("vectors", renamed, 0, file)
    write(path=np.array(images.names), vector=pixels + 1)
    assert embeddings.embed_baseline("vectors", images, 0, file).artifact.key != first.artifact.key


def test_vectors_have_no_encoder():
    assert embeddings.baseline_encoder("vectors", 0) is None


def test_a_picture_cannot_be_embedded_without_a_network(images, pixels, write):
    save("pixels", write(path=np.array(images.names), vector=pixels))
    command = 'make report STUDY=tiny ARCHITECTURES="pixels"'
    Path("reports/tiny/manifest.json").write_text(json.dumps({"command": command}))
    message = "in .*, only baselines: add an architecture, and run `make report STUDY=tiny` first"
    with pytest.raises(StudyError, match=message):
        open_searcher("tiny", "pixels")
    invented.save_network("cnn", 2.0)
    message = "pixels in reports/tiny has no network that could embed pictures: choose from cnn"
    with pytest.raises(StudyError, match=message):
        open_searcher("tiny", "pixels")
