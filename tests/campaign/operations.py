"""The library's operations on objects that threads share, for the parts about threads: what each does, reads and writes.

An operation gives arrays whose bits are the same whenever it is called on a scene, as long as nobody writes meanwhile what it
reads or writes itself; or None, where what it gives depends on what was done before.
"""

from __future__ import annotations

import copy
import gc
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import fastlstm
from fastlstm import losses
from tests.campaign.scene import Scene


@dataclass(frozen=True)
class Operation:
    """Something that a user may do."""

    name: str
    act: Callable[[Scene], Any]
    reads: frozenset[str]
    writes: frozenset[str]

    def disturbs(self, other: Operation) -> bool:
        """Whether the other's result is undefined while this one runs on the same scene."""
        return bool(self.writes & (other.reads | other.writes))


OPERATIONS: list[Operation] = []


def operation(reads: str = "", writes: str = "") -> Callable[[Callable[[Scene], Any]], Callable[[Scene], Any]]:
    """Add a function to the operations: what it reads and writes, in words."""

    def note(act: Callable[[Scene], Any]) -> Callable[[Scene], Any]:
        OPERATIONS.append(Operation(act.__name__, act, frozenset(reads.split()), frozenset(writes.split())))
        return act

    return note


def arrays_of(value: Any) -> list[np.ndarray]:
    """All arrays of a result, in order."""
    if isinstance(value, tuple | list):
        return [array for part in value for array in arrays_of(part)]
    if isinstance(value, dict):
        return arrays_of(list(value.values()))
    return [np.array(value)]


# Layers. A backward pass adds to the gradients, which none of these reads but those that say so.


@operation("layer")
def layer_call(s: Scene) -> Any:
    return s.layer(s.x)


@operation("layer")
def layer_ragged_call(s: Scene) -> Any:
    return s.layer(s.x, lengths=np.arange(s.batch) % (s.steps + 1), resets=np.ones((s.steps, s.batch), bool))


@operation("layer")
def layer_train(s: Scene) -> Any:
    out, state, backprop = s.layer.forward_train(s.x)
    return out, state, backprop(np.ones_like(out))


@operation("layer")
def layer_train_unused(s: Scene) -> Any:
    out, _, backprop = s.layer.forward_train(s.x[:1])
    backprop.close()
    return out


@operation("", "layer")
def layer_edit(s: Scene) -> None:
    with s.layer.edit() as params:
        for array in params.values():
            array *= -1


@operation("", "layer")
def layer_load_state_dict(s: Scene) -> None:
    own, others = s.weights
    s.layer.load_state_dict(others)
    s.layer.load_state_dict(own)


@operation("layer")
def layer_state_dict(s: Scene) -> Any:
    return s.layer.state_dict()


@operation()
def layer_zero_grads(s: Scene) -> None:
    s.layer.zero_grads()


@operation("", "layer layer_optimizer")
def layer_optimizer_step(s: Scene) -> None:
    s.optimizer.step(s.layer.params, s.layer.grads)


@operation("layer")
def layer_pickle(s: Scene) -> Any:
    return pickle.load(io.BytesIO(pickle.dumps(s.layer)))(s.x)


@operation("layer")
def layer_copy(s: Scene) -> Any:
    return copy.deepcopy(s.layer)(s.x)


@operation()
def layer_new(s: Scene) -> Any:
    made = fastlstm.GRU(6, s.hidden, seed=1)
    out, _, backprop = made.forward_train(s.x)
    return backprop(out)


@operation()
def layer_clip(s: Scene) -> None:
    fastlstm.clip_grad_norm(s.layer.grads, 1.0)


# Streams: of one state, so for one thread at a time but for `refresh`


@operation("forward", "stream")
def stream_steps(s: Scene) -> Any:
    s.stream.reset()
    s.stream(s.row)
    return s.stream(s.row).copy()


@operation("", "stream")
def stream_reset(s: Scene) -> None:
    s.stream.reset()


@operation("stream")
def stream_state(s: Scene) -> None:
    arrays_of(s.stream.state)


@operation("forward")
def stream_refresh(s: Scene) -> None:
    s.forward_layer.params.bump()
    s.stream.refresh()


@operation("forward")
def stream_new(s: Scene) -> Any:
    return fastlstm.Stream(s.forward_layer)(s.row).copy()


@operation("", "forward")
def stream_source_edit(s: Scene) -> None:
    with s.forward_layer.edit() as params:
        params["bias_ih_l0"] *= -1


# Cells and the rest of a network


@operation()
def cell_call(s: Scene) -> Any:
    return s.cell_layer(s.x[0])


@operation()
def cell_train(s: Scene) -> Any:
    state, backprop = s.cell_layer.forward_train(s.x[0])
    return state, backprop(state)


@operation("linear")
def linear_call(s: Scene) -> Any:
    return s.linear(s.x)


@operation("linear")
def linear_train(s: Scene) -> Any:
    out, backprop = s.linear.forward_train(s.x)
    return out, backprop(out)


@operation("", "linear")
def linear_edit(s: Scene) -> None:
    with s.linear.edit() as params:
        params["weight"] *= -1


@operation()
def embedding_train(s: Scene) -> Any:
    out, backprop = s.embedding.forward_train(s.ids)
    backprop(out)
    return out


@operation()
def dropout_train(s: Scene) -> Any:
    return fastlstm.Dropout(0.5, seed=3).forward_train(s.x)[0]


@operation()
def cross_entropy(s: Scene) -> Any:
    return losses.softmax_cross_entropy(s.x.reshape(-1, 6), np.arange(s.x.size // 6) % 6)


@operation()
def errors(s: Scene) -> Any:
    return losses.mean_squared_error(s.x, s.x * 0), losses.mean_absolute_error(s.x, s.x * 0)


@operation("arrays")
def norm(s: Scene) -> Any:
    return fastlstm.grad_norm(s.arrays)


@operation("", "arrays")
def clip_value(s: Scene) -> None:
    fastlstm.clip_grad_value(s.arrays, 0.5)


@operation()
def optimizers(s: Scene) -> Any:
    params = {"w": s.numbers(s.hidden * 50)}
    for make in (fastlstm.SGD, fastlstm.Adam, fastlstm.AdamW, fastlstm.RMSprop):
        make(lr=0.01).step(params, {"w": params["w"] * 0.5})
    return params


# Models and training. Batches of training zero the gradients first, so that only one at a time has its own.


@operation("model")
def model_call(s: Scene) -> Any:
    return s.model(s.ids)


@operation("model", "model_grads")
def model_train(s: Scene) -> Any:
    s.model.zero_grads()
    logits, state, backprop = s.model.forward_train(s.ids)
    backprop(logits)
    return logits, state, dict(s.model.grads)


@operation("model", "model_grads model_carried")
def model_train_batch(s: Scene) -> Any:
    loss, _ = s.model.train_batch(s.ids, s.ids)
    return loss, dict(s.model.grads)


@operation("", "model model_grads model_carried trainer")
def trainer_step(s: Scene) -> None:
    s.trainer.step(s.ids, s.ids)


@operation("model trainer")
def trainer_evaluate(s: Scene) -> Any:
    return s.trainer.evaluate(s.text)


@operation("model trainer")
def trainer_save_and_load(s: Scene) -> Any:
    s.trainer.save(s.path)
    return fastlstm.load(s.path).model.state_dict()


@operation("model")
def generate(s: Scene) -> Any:
    text = s.run.generate("ab", 5, seed=1)
    return [ord(character) for character in text]


@operation()
def train_anew(s: Scene) -> Any:
    model = fastlstm.LanguageModel(11, cell=s.cell, hidden_size=9, num_layers=1, seed=4)
    trainer = fastlstm.Trainer(model, progress=False)
    return [trainer.step(s.ids, s.ids) for _ in range(2)], model.state_dict()


@operation("regressor")
def regressor_predict(s: Scene) -> Any:
    return s.regressor.predict(s.x)


@operation("regressor", "regressor_grads")
def regressor_train(s: Scene) -> Any:
    loss, _ = s.regressor.train_batch(s.x, s.targets)
    return loss, dict(s.regressor.grads)


@operation("", "regressor")
def regressor_fit_normalization(s: Scene) -> None:
    s.regressor.fit_normalization(s.x, s.targets)


# The process


@operation()
def threads(s: Scene) -> None:
    fastlstm.set_num_threads(1 + fastlstm.num_threads() % 3)


@operation()
def collect(s: Scene) -> None:
    gc.collect()
