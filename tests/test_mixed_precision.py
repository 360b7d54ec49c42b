"""Half precision: when it is chosen and restored, and the precision of results."""

import os
import subprocess
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from conftest import build_network

from cbir.networks import models, training
from cbir.networks.models import _compute_capability, best_precision, use_precision

HALF = ["mixed_bfloat16", "mixed_float16"]


@pytest.fixture
def gpus(monkeypatch):
    """Sets the number of GPUs and their compute capability."""

    def have(count: int, capability: float) -> None:
        devices = [f"gpu:{index}" for index in range(count)]
        monkeypatch.setattr(
            keras.distribution,
            "list_devices",
            lambda kind=None: devices if kind == "gpu" else ["cpu:0"],
        )
        monkeypatch.setattr(models, "_compute_capability", lambda: capability)

    return have


@pytest.mark.parametrize(
    ("count", "capability", "policy"),
    [
        (0, 9.0, "float32"),
        (1, 9.0, "mixed_bfloat16"),
        (2, 8.6, "mixed_bfloat16"),
        (1, 8.0, "mixed_bfloat16"),
        (1, 7.5, "mixed_float16"),
        (1, 7.0, "mixed_float16"),
        (1, 6.1, "float32"),
        (1, 0, "float32"),
    ],
)
def test_half_precision_is_used_on_suitable_gpus(gpus, count, capability, policy):
    gpus(count, capability)
    assert best_precision() == policy


@pytest.mark.parametrize(("capability", "policy"), [(8.0, "mixed_bfloat16"), (0, "float32")])
def test_the_driver_decides_for_backends_that_list_no_devices(monkeypatch, capability, policy):
    def list_devices(kind=None):
        raise AttributeError("no distribution_lib")

    monkeypatch.setattr(keras.distribution, "list_devices", list_devices)
    monkeypatch.setattr(models, "_compute_capability", lambda: capability)
    assert best_precision() == policy


def test_full_precision_is_used_if_half_is_not_requested(gpus):
    gpus(1, 9.0)
    with use_precision(False) as policy:
        assert policy == "float32"
        assert keras.layers.Dense(1).compute_dtype == "float32"


def test_the_policy_is_restored_after_its_context(gpus):
    gpus(1, 9.0)
    before = keras.config.dtype_policy().name
    with use_precision(True) as policy:
        assert policy == "mixed_bfloat16"
        layer = keras.layers.Dense(1)
    assert (layer.compute_dtype, layer.variable_dtype) == ("bfloat16", "float32")
    assert keras.config.dtype_policy().name == before == "float32"


def test_the_policy_is_restored_after_an_error(gpus):
    gpus(1, 7.0)
    with pytest.raises(RuntimeError, match="within"), use_precision(True):
        raise RuntimeError("within")
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.parametrize(
    ("output", "capability"),
    [("9.0\n", 9.0), ("8.6\n7.5\n", 7.5), ("", 0), ("no devices were found", 0)],
)
def test_the_weakest_gpu_decides_the_capability(monkeypatch, output, capability):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=output))
    assert _compute_capability() == capability


@pytest.mark.parametrize(
    "error", [FileNotFoundError("nvidia-smi"), subprocess.TimeoutExpired("nvidia-smi", 20)]
)
def test_a_missing_or_failing_driver_counts_as_no_gpu(monkeypatch, error):
    def run(*_, **__):
        raise error

    monkeypatch.setattr(subprocess, "run", run)
    assert _compute_capability() == 0


@pytest.mark.parametrize(
    ("has_gpu", "is_deterministic", "augmentation", "compiles"),
    [
        (True, False, [], True),
        (True, False, ["flip"], True),
        (True, False, ["zoom"], False),  # XLA cannot compile it
        (True, True, [], False),
        (False, False, [], False),
    ],
)
def test_xla_compiles_on_gpus_unless_a_layer_or_determinism_excludes_it(
    monkeypatch, has_gpu, is_deterministic, augmentation, compiles
):
    import tensorflow as tf
    from tensorflow.python.framework import config

    # TensorFlow reads the setting of `cbir/__init__.py`.
    assert config.is_op_determinism_enabled() == (os.environ["TF_DETERMINISTIC_OPS"] == "1")
    monkeypatch.setattr(config, "is_op_determinism_enabled", lambda: is_deterministic)
    devices = [SimpleNamespace(device_type="GPU" if has_gpu else "CPU")]
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda *_: devices)
    model = training.augmented(build_network().model, augmentation)
    model.compile("adam", "sparse_categorical_crossentropy")
    assert model.jit_compile == compiles


def test_keras_rejects_xla_with_determinism_even_if_requested(monkeypatch):
    from tensorflow.python.framework import config

    monkeypatch.setattr(config, "is_op_determinism_enabled", lambda: True)
    model = build_network().model
    with pytest.warns(UserWarning, match="doesn't support `jit_compile=True`"):
        model.compile("adam", "sparse_categorical_crossentropy", jit_compile=True)
    assert not model.jit_compile


@pytest.mark.parametrize("policy", HALF)
@pytest.mark.parametrize(
    "pooling", ["avg", "gem", pytest.param("attention", marks=pytest.mark.slow)]
)
def test_embeddings_and_probabilities_are_in_full_precision(monkeypatch, policy, pooling):
    monkeypatch.setattr(models, "best_precision", lambda: policy)
    network = build_network("cnn_strong", mixed_precision=True, pooling=pooling)
    assert network.parameters["precision"] == policy
    half = policy.removeprefix("mixed_")
    assert network.body.get_layer("stem_conv").compute_dtype == half
    assert {weight.dtype for weight in network.model.trainable_weights} == {"float32"}
    images = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    embeddings, probabilities = network.encoder(images, training=False)
    assert np.asarray(embeddings).dtype == np.asarray(probabilities).dtype == np.float32
    np.testing.assert_allclose(np.asarray(probabilities).sum(axis=1), 1, atol=1e-6)
    full = build_network("cnn_strong", pooling=pooling).encoder(images, training=False)[0]
    np.testing.assert_allclose(embeddings, full, atol=0.05 * np.abs(full).max())
    assert not np.array_equal(embeddings, full)


def test_a_pooled_embedding_is_in_full_precision(monkeypatch):
    monkeypatch.setattr(models, "best_precision", lambda: "mixed_bfloat16")
    network = build_network("cnn_strong", mixed_precision=True, embedding="pooled")
    assert network.head.get_layer("embedding").output.dtype == "float32"


def test_attention_in_half_precision_sums_to_one(monkeypatch):
    monkeypatch.setattr(models, "best_precision", lambda: "mixed_bfloat16")
    network = build_network("cnn_strong", mixed_precision=True, pooling="attention")
    weights = np.asarray(network.attention(np.zeros((2, 32, 32, 3), np.uint8)), np.float32)
    np.testing.assert_allclose(weights.sum(axis=(1, 2)), 1, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("policy", HALF)
def test_a_network_learns_in_half_precision(monkeypatch, policy):
    monkeypatch.setattr(models, "best_precision", lambda: policy)
    network = build_network("cnn", mixed_precision=True, pooling="gem", dropout=0.0)
    images = np.random.default_rng(1).integers(0, 256, (6, 32, 32, 3)).astype(np.float32)
    network.model.compile("adam", "sparse_categorical_crossentropy", run_eagerly=True)
    losses = [network.model.train_on_batch(images, np.arange(6) % 3) for _ in range(6)]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("augmentation", [[], ["flip"]])
def test_the_loss_is_scaled_in_float16_also_with_augmentation(monkeypatch, augmentation):
    monkeypatch.setattr(models, "best_precision", lambda: "mixed_float16")
    network = build_network("cnn_strong", mixed_precision=True)
    trained = training.augmented(network.model, augmentation)
    trained.compile("adam", "sparse_categorical_crossentropy")
    assert isinstance(trained.optimizer, keras.optimizers.LossScaleOptimizer)
    assert trained.output.dtype == "float32"
