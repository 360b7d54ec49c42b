"""Engines for large galleries: results equal those of an exact search."""

import base64
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from cbir import StudyError
from cbir.retrieval import engines

N, D, CLASSES = 600, 16, 5


@pytest.fixture(scope="module")
def data():
    random = np.random.default_rng(0)
    vectors = random.normal(size=(N + 20, D)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors[:N], random.integers(0, CLASSES, N), np.arange(N) * 7 + 3, vectors[N:]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    pytest.importorskip("milvus_lite")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name("milvus-lite")
    folder = tmp_path_factory.mktemp("server")
    # Without --host, the server would listen on all interfaces.
    command = [program, "server", "--host", "127.0.0.1", "--port", str(port), "--data-dir", folder]
    process = subprocess.Popen(command)
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.2)
    yield f"http://127.0.0.1:{port}", process
    process.terminate()
    process.wait()


def open_engine(text, folder, name="pictures", key="k" * 64):
    package = {"faiss": "faiss", "milvus": "pymilvus"}.get(text.partition(":")[0])
    if package:
        pytest.importorskip(package, reason=f"{package} is not installed: `make scale` does it")
    return engines.open_engine(text, D, name=name, key=key, folder=folder)


# Milvus takes seconds to start.
@pytest.fixture(
    params=[
        "faiss:Flat",
        pytest.param("milvus:lite", marks=pytest.mark.slow),
        pytest.param("milvus:server", marks=pytest.mark.slow),
    ]
)
def engine(request, tmp_path):
    text = request.param
    if text == "milvus:lite":
        text = f"milvus:{tmp_path}/lite"
    elif text == "milvus:server":
        text = "milvus:" + request.getfixturevalue("server")[0]
    engine = open_engine(text, tmp_path, name=request.node.name.replace("[", "-").replace("]", ""))
    yield engine
    if hasattr(engine, "close"):
        engine.close()


def exact(data):
    engine = engines.Exact()
    engine.load(*data[:3])
    return engine


def test_engines_find_the_same_images_as_an_exact_search(engine, data):
    engine.load(*data[:3])
    rows, similarities = engine.search(data[3], 10)
    expected, expected_similarities = exact(data).search(data[3], 10)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(similarities, expected_similarities, atol=1e-6)


def test_engines_restrict_a_search_to_classes(engine, data):
    engine.load(*data[:3])
    restrict_to = np.random.default_rng(1).random((20, CLASSES)) < 0.4
    restrict_to[0] = False
    rows, similarities = engine.search(data[3], 10, restrict_to)
    expected, _ = exact(data).search(data[3], 10, restrict_to)
    np.testing.assert_array_equal(rows, expected)
    assert (rows[0] == -1).all()
    assert np.isnan(similarities[0]).all()


def test_loading_again_adds_and_removes_images(engine, data):
    embeddings, labels, ids, queries = data
    first = np.arange(0, 400)
    second = np.arange(200, N)
    engine.load(embeddings[first], labels[first], ids[first])
    engine.load(embeddings[second], labels[second], ids[second])
    rows, _ = engine.search(queries, 5)
    expected, _ = exact((embeddings[second], labels[second], ids[second])).search(queries, 5)
    np.testing.assert_array_equal(rows, expected)


@pytest.mark.parametrize(
    ("choice", "minimum"),
    [
        ("HNSW16;efSearch=64", 0.9),
        ("IVF8,Flat;nprobe=4", 0.6),
        ("IVF8,PQ4x4,RFlat;nprobe=8,k_factor_rf=8", 0.6),
        ("LSH64r,RFlat;k_factor_rf=10", 0.6),
    ],
)
def test_approximate_indexes_find_most_neighbours_with_true_similarities(
    choice, minimum, data, tmp_path
):
    engine = open_engine(f"faiss:{choice}", tmp_path)
    engine.load(*data[:3])
    rows, similarities = engine.search(data[3], 10)
    expected, _ = exact(data).search(data[3], 10)
    pairs = zip(rows, expected, strict=True)
    recall = np.mean([np.isin(row_ids, true_ids).mean() for row_ids, true_ids in pairs])
    assert recall >= minimum
    true_similarities = (data[0][rows] * data[3][:, None]).sum(axis=2)
    np.testing.assert_allclose(similarities, true_similarities, atol=1e-5)


@pytest.mark.parametrize("choice", ["HNSW16", "IVF8,Flat;nprobe=8"])
def test_approximate_indexes_return_only_the_requested_classes(choice, data, tmp_path):
    engine = open_engine(f"faiss:{choice}", tmp_path)
    engine.load(*data[:3])
    restrict_to = np.zeros((20, CLASSES), bool)
    restrict_to[:, 2] = True
    rows, _ = engine.search(data[3], 10, restrict_to)
    assert (rows >= 0).all()
    assert (data[1][rows] == 2).all()


@pytest.mark.parametrize("choice", ["LSH64r,RFlat", "PQ4x4fs"])
def test_indexes_without_restricted_search_refuse_it(choice, data, tmp_path):
    engine = open_engine(f"faiss:{choice}", tmp_path)
    engine.load(*data[:3])
    assert (engine.search(data[3], 5)[0] >= 0).all()
    with pytest.raises(StudyError, match="cannot search within classes: use"):
        engine.search(data[3], 5, np.ones((20, CLASSES), bool))


def test_a_faiss_index_is_read_again_and_rebuilt_if_damaged(data, tmp_path):
    open_engine("faiss:Flat", tmp_path).load(*data[:3])
    (path,) = tmp_path.glob("*.faiss")
    modified = path.stat().st_mtime_ns
    open_engine("faiss:Flat", tmp_path).load(*data[:3])
    assert path.stat().st_mtime_ns == modified
    content = path.read_bytes()
    half = len(content) // 2
    without_ids = content.replace(data[2].tobytes(), bytes(data[2].nbytes))
    for damaged in (content[:1000], b"", content[:half] + bytes(half), without_ids):
        path.write_bytes(damaged)
        engine = open_engine("faiss:Flat", tmp_path)
        engine.load(*data[:3])
        expected, _ = exact(data).search(data[3], 10)
        np.testing.assert_array_equal(engine.search(data[3], 10)[0], expected)


def test_each_faiss_choice_has_its_own_index(data, tmp_path):
    open_engine("faiss:Flat", tmp_path).load(*data[:3])
    engine = open_engine("faiss:SQ8", tmp_path)
    engine.load(*data[:3])
    exact_similarities = exact(data).search(data[3], 10)[1]
    assert not np.array_equal(engine.search(data[3], 10)[1], exact_similarities)


KILLED = """
import sys, numpy as np
from pathlib import Path
from cbir.retrieval import engines
text, folder = sys.argv[1:]
engines.BLOCK, engines.BLOCKS_PER_FILE = 50, 1
data = np.load(Path(folder, "data.npz"))
engine = engines.open_engine(text, 16, name="killed", key="k" * 64, folder=Path(folder))
print("loading", flush=True)
engine.load(data["vectors"], data["labels"], data["ids"])
"""


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["faiss:Flat", "milvus:lite"])
def test_killed_loading_continues_without_duplicates(kind, data, tmp_path):
    text = f"milvus:{tmp_path}/lite" if kind == "milvus:lite" else kind
    engine = open_engine(text, tmp_path, name="warm")
    if hasattr(engine, "close"):
        engine.close()
    np.savez(tmp_path / "data.npz", vectors=data[0], labels=data[1], ids=data[2])
    for delay in (0.01, 0.05, 0.1):
        command = [sys.executable, "-c", KILLED, text, str(tmp_path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
    engine = open_engine(text, tmp_path, name="killed")
    engine.load(*data[:3])
    rows, _ = engine.search(data[3], 10)
    expected, _ = exact(data).search(data[3], 10)
    np.testing.assert_array_equal(rows, expected)
    if hasattr(engine, "close"):
        engine.close()


@pytest.mark.slow
def test_milvus_refuses_a_gallery_of_another_network(data, tmp_path):
    engine = open_engine(f"milvus:{tmp_path}/lite", tmp_path, key="a" * 64)
    engine.load(*data[:3])
    engine.close()
    with pytest.raises(StudyError, match="another network"):
        open_engine(f"milvus:{tmp_path}/lite", tmp_path, key="b" * 64)
    # A name with the same beginning is another gallery.
    open_engine(f"milvus:{tmp_path}/lite", tmp_path, name="pictures-2", key="b" * 64).close()
    open_engine(f"milvus:{tmp_path}/lite", tmp_path, key="a" * 64).close()


@pytest.mark.faults
def test_a_second_process_waits_for_a_folder_of_milvus_lite(data, tmp_path):
    np.savez(tmp_path / "data.npz", vectors=data[0], labels=data[1], ids=data[2])
    engine = open_engine(f"milvus:{tmp_path}/lite", tmp_path)
    command = [sys.executable, "-c", KILLED, f"milvus:{tmp_path}/lite", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert f"process {os.getpid()}" in process.stdout.readline()
    engine.close()
    assert process.stdout.readline() == "loading\n"
    assert process.wait() == 0


@pytest.fixture
def failing_server():
    """A function that starts a failing server, and the tokens sent to that server."""
    grpc = pytest.importorskip("grpc")
    started, tokens = [], []

    def start(code: str) -> str:
        def fail(_, context):
            tokens.append(dict(context.invocation_metadata()).get("authorization"))
            context.abort(grpc.StatusCode[code], "as the test wants it")

        class Handler(grpc.GenericRpcHandler):
            def service(self, _):
                return grpc.unary_unary_rpc_method_handler(fail)

        server = grpc.server(ThreadPoolExecutor(2), handlers=[Handler()])
        started.append(server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        return f"http://127.0.0.1:{port}"

    yield start, tokens
    for server in started:
        server.stop(None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "code", ["UNAVAILABLE", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED", "UNAUTHENTICATED"]
)
def test_a_failing_milvus_server_is_reported_without_the_token(
    code, failing_server, tmp_path, monkeypatch, capfd
):
    start, tokens = failing_server
    monkeypatch.setattr(engines, "PATIENCE", 2)
    monkeypatch.setenv("MILVUS_TOKEN", "root:secret-9")
    where, started = start(code), time.perf_counter()
    with pytest.raises(StudyError, match=f"{where} failed.*check its address, its ver") as error:
        open_engine(f"milvus:{where}", tmp_path)
    assert time.perf_counter() - started < 20
    sent = base64.b64encode(b"root:secret-9").decode()
    assert set(tokens) == {sent}
    printed = str(error.value) + "".join(capfd.readouterr())
    assert "\n" not in str(error.value)
    assert not [secret for secret in ("secret-9", sent) if secret in printed]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_unreachable_milvus_server_is_reported_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "PATIENCE", 2)
    with pytest.raises(StudyError, match="http://127.0.0.1:1 failed.*start the server"):
        open_engine("milvus:http://127.0.0.1:1", tmp_path)


@pytest.mark.faults
def test_a_search_times_out_on_a_hanging_milvus_server(server, data, tmp_path, monkeypatch):
    where, process = server
    engine = open_engine(f"milvus:{where}", tmp_path, name="hangs")
    engine.load(*data[:3])
    monkeypatch.setattr(engines, "PATIENCE", 3)
    process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(StudyError, match=f"{where} failed"):
            engine.search(data[3], 10)
    finally:
        process.send_signal(signal.SIGCONT)
    monkeypatch.setattr(engines, "PATIENCE", 60)
    rows, _ = engine.search(data[3], 10)
    np.testing.assert_array_equal(rows, exact(data).search(data[3], 10)[0])
    engine.close()


@pytest.mark.slow
def test_another_index_of_milvus_replaces_the_first(data, tmp_path):
    for choice in (";HNSW", ""):
        engine = open_engine(f"milvus:{tmp_path}/lite{choice}", tmp_path)
        engine.load(*data[:3])
        index = engine._client.describe_index(engine._collection, "vector")
        assert index["index_type"] == (choice[1:] or "FLAT")
        rows, _ = engine.search(data[3], 10)
        engine.close()
    np.testing.assert_array_equal(rows, exact(data).search(data[3], 10)[0])


@pytest.mark.slow
def test_only_a_milvus_server_limits_the_number_of_results(data, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "MOST_RESULTS", 3)
    engine = open_engine(f"milvus:{tmp_path}/lite", tmp_path)
    engine.load(*data[:3])
    try:
        rankings, _ = engine.search(data[3], 4)
        assert rankings.shape[1] == 4
        engine._is_server = True
        with pytest.raises(StudyError, match="at most 3 results, not 4: lower k, or use exact"):
            engine.search(data[3], 4)
        engine._is_server = False
    finally:
        engine.close()


@pytest.mark.parametrize("text", ["exakt", "faiss", "faiss:", "milvus:", ""])
def test_unknown_engines_are_refused_with_the_known_ones(text, tmp_path):
    with pytest.raises(StudyError, match="use exact, faiss:HNSW32"):
        engines.open_engine(text, D, name="pictures", key="k" * 64, folder=tmp_path)


@pytest.mark.parametrize("choice", ["NoSuchIndex", "HNSW32;nosuch=3"])
def test_unknown_faiss_choices_are_refused(choice, tmp_path):
    with pytest.raises(StudyError, match="faiss does not accept"):
        open_engine(f"faiss:{choice}", tmp_path)


def test_a_gallery_too_small_for_an_index_is_refused_in_one_line(data, tmp_path):
    engine = open_engine("faiss:IVF1024,Flat", tmp_path)
    with pytest.raises(StudyError, match="built from 600 embeddings .*1024.*: use faiss:HNSW32"):
        engine.load(*data[:3])


@pytest.mark.parametrize(("text", "package"), [("faiss:Flat", "faiss"), ("milvus:x", "pymilvus")])
def test_a_missing_package_is_reported_with_the_command(text, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(StudyError, match=f"{package} is not installed: run `make"):
        engines.open_engine(text, D, name="pictures", key="k" * 64, folder=tmp_path)
