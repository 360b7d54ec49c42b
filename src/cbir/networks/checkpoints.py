"""What an interrupted training needs to go on: weights, optimizer, history, random layers."""

import json
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np

from cbir.cache import write_text

STATE, HISTORY = "state.npz", "history.json"


def _random_states(model: keras.Model) -> Iterator[keras.Variable]:
    """The states that dropout and augmentation draw from."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _random_states(layer)
        for name in ("seed_generator", "generator"):
            if isinstance(found := getattr(layer, name, None), keras.random.SeedGenerator):
                yield found.state


def seed_random_layers(model: keras.Model, seed: int, epoch: int) -> None:
    """Random layers draw from a state that runs on; set, it is the same after a resumption."""
    for place, state in enumerate(_random_states(model)):
        drawn = np.random.SeedSequence([seed, epoch, place]).generate_state(2)
        state.assign(drawn.astype(state.dtype))


def save(folder: Path, model: keras.Model, history: list[dict]) -> None:
    """The state after an epoch, in one file, so that its parts can never disagree."""
    arrays = {f"weight_{i}": value for i, value in enumerate(model.get_weights())}
    variables = model.optimizer.variables
    arrays |= {f"optimizer_{i}": np.asarray(value) for i, value in enumerate(variables)}
    temporary = folder / f"temporary-{STATE}"
    np.savez(temporary, history=json.dumps(history), **arrays)
    temporary.replace(folder / STATE)
    write_text(folder / HISTORY, json.dumps(history))


def resume(folder: Path, model: keras.Model) -> list[dict]:
    """Put the model where an interrupted run left it; the history up to there."""
    if not (folder / STATE).exists():
        return []
    with np.load(folder / STATE) as state:
        model.set_weights([state[f"weight_{i}"] for i in range(len(model.get_weights()))])
        model.optimizer.build(model.trainable_variables)
        for i, variable in enumerate(model.optimizer.variables):
            variable.assign(state[f"optimizer_{i}"])
        history = json.loads(str(state["history"]))
    print(f"going on after epoch {len(history)}", flush=True)
    return history
