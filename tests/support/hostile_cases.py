"""Every public function that takes arrays, with arguments for it: the table that tests and the campaign give hostile arrays to.

A use leaves nothing behind: what it changes beside its arguments is put back before the next one. Knows the public names.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np

import fastlstm
from fastlstm import losses, optim
from tests.support.hostile import Arrays, Case, Slot

STEPS, BATCH, INPUTS, HIDDEN, VOCABULARY, OUTPUTS, HORIZON = 4, 3, 5, 6, 7, 2, 3
LAYERS = {"LSTM": fastlstm.LSTM, "GRU": fastlstm.GRU, "RNN": fastlstm.RNN}
CELLS = {"LSTMCell": fastlstm.LSTMCell, "GRUCell": fastlstm.GRUCell, "RNNCell": fastlstm.RNNCell}
OPTIMIZERS = {name: getattr(fastlstm, name) for name in ("SGD", "Adam", "AdamW", "RMSprop")}

# Public functions that take no array: numbers, names, paths, and data or arrays of the library's own.
WITHOUT = {
    *(f"{name}.__init__" for name in (*LAYERS, *CELLS, *OPTIMIZERS)),
    *(f"{name}.__init__" for name in ("CosineWarmup", "Dropout", "Embedding", "LanguageModel", "Linear", "Plateau")),
    *(f"{name}.__init__" for name in ("SequenceClassifier", "SequenceRegressor", "StepDecay", "Stream", "Trainer")),
    "Run.__init__",
    "Run.generate",
    "Run.stream",
    "load",
    "flatten",
    "set_num_threads",
    "Batches.batches",
    "TokenStream.batches",
    "Callback.on_epoch",
    "Callback.on_step",
    *(
        f"{name}.{method}"
        for name in ("Constant", "CosineWarmup", "Plateau", "StepDecay")
        for method in ("__call__", "state =", "update")
    ),
    *(f"{name}.{method}" for name in OPTIMIZERS for method in ("beside", "hypers", "lr =", "record")),
    "Dropout.load_state_dict",  # it has no parameters
    *(f"{name}.random_state =" for name in ("LanguageModel", "SequenceClassifier", "SequenceRegressor")),
    *(f"{name}.shaped" for name in ("SequenceClassifier", "SequenceRegressor")),
    *(f"{name}.training" for name in ("LanguageModel", "SequenceClassifier", "SequenceRegressor")),  # a half of train_batch
    "Trainer.evaluate",
    "Trainer.fit",
    "Trainer.resume",
    "Trainer.save",
}


def public() -> Iterator[str]:
    """Every function and method that the package's names lead to and that takes an argument, as "Class.method"."""
    for name in fastlstm.__all__:
        found = getattr(fastlstm, name)
        if isinstance(found, types.ModuleType):
            for function, value in vars(found).items():
                if inspect.isfunction(value) and value.__module__ == found.__name__ and not function.startswith("_"):
                    yield f"{name}.{function}"
        elif not inspect.isclass(found):
            if inspect.signature(found).parameters:
                yield name
        elif not issubclass(found, Exception):
            yield from (f"{name}.{method}" for method in _methods(found))


def _methods(cls: type) -> Iterator[str]:
    for name in dir(cls):
        found = inspect.getattr_static(cls, name)
        if name.startswith("_") and name not in ("__init__", "__call__"):
            continue
        if isinstance(found, property):
            if found.fset:
                yield f"{name} ="
        elif inspect.isroutine(found) and found is not object.__init__:
            parameters = inspect.signature(getattr(cls, name)).parameters
            if len(parameters) > (not isinstance(found, classmethod | staticmethod)):
                yield name


class _Make:
    """Plain arrays of a dtype, equal ones for equal shapes and names."""

    def __init__(self, storage: str) -> None:
        self.storage = storage

    def numbers(self, *shape: int, dtype: str | None = None) -> np.ndarray:
        rng = np.random.default_rng(list(shape) or [1])
        # Quarters from -2 to 2, of which int8 and float16 keep enough to differ.
        return (rng.integers(-8, 9, shape) / 4).astype(dtype or self.storage)

    def ids(self, *shape: int, below: int = VOCABULARY, dtype: str = "int32") -> np.ndarray:
        return np.random.default_rng(list(shape)).integers(0, below, shape).astype(dtype)

    def slot(self, *shape: int, **options: Any) -> Slot:
        return Slot(self.numbers(*shape), **options)

    def states(self, cell: str, width: int, name: str = "state", *, axes: tuple[int, ...] = ()) -> dict[str, Slot]:
        """Slots of a state argument, under the argument's name and the part's."""
        lstm = cell.upper().startswith("LSTM")
        parts = ("h", "c") if lstm else ("h",)
        return {
            f"{name}_{p}": self.slot(*axes, width, named=f"{name} ({p})" if lstm else name, optional=True, lists=lstm)
            for p in parts
        }


def state(arrays: Arrays, name: str = "state") -> Any:
    """The state argument of those slots."""
    h = arrays[f"{name}_h"]
    return (h, arrays[f"{name}_c"]) if f"{name}_c" in arrays else h


def _marks(*shape: int, **options: Any) -> Slot:
    return Slot(np.random.default_rng(list(shape)).random(shape) < 0.3, optional=True, **options)


def _lengths() -> Slot:
    return Slot(np.array([STEPS, 0, 2][:BATCH]), optional=True)


@cache
def table(dtype: str) -> dict[str, list[Case]]:
    """The uses of every public function, by its name, for layers and models of a dtype."""
    make = _Make("float64" if dtype == "float64" else "float32")
    parts = (_layers, _cells, _small, _language_model, _series, _streams, _trainers, _optimizers, _losses, _steps, _data)
    found: dict[str, list[Case]] = {}
    for part in parts:
        for name, case in part(dtype, make):
            found.setdefault(name, []).append(case)
    return found


Cases = Iterator[tuple[str, Case]]


def _loading(owner: Any, name: str, named: str = "") -> Case:
    saved = owner.state_dict()

    def call(a: Arrays) -> Any:
        owner.load_state_dict(saved)
        owner.load_state_dict({name: a[name]}, strict=False)
        return owner.state_dict()

    return Case(call, {name: Slot(saved[name])})


def _layers(dtype: str, make: _Make) -> Cases:
    for name, cls in LAYERS.items():
        layer = cls(INPUTS, HIDDEN, 2, dtype=dtype, seed=0, dropout=0.5)
        axes = (2, BATCH)
        given = {
            "x": make.slot(STEPS, BATCH, INPUTS),
            **make.states(name, HIDDEN, axes=axes),
            "lengths": _lengths(),
            "resets": _marks(STEPS, BATCH),
        }

        def options(a: Arrays) -> dict[str, Any]:
            return {"lengths": a["lengths"], "resets": a["resets"]}

        def train(a: Arrays, layer: Any = layer) -> Any:
            layer.dropout_calls = 0
            layer.zero_grads()
            out, state_n, backprop = layer.forward_train(a["x"], state(a), **options(a))
            return out, state_n, backprop(a["dout"], state(a, "dstate_n")), layer.grads.flat.copy()

        yield f"{name}.__call__", Case(lambda a, f=layer: f(a["x"], state(a), **options(a)), given)
        backward = {"dout": make.slot(STEPS, BATCH, HIDDEN, optional=True), **make.states(name, HIDDEN, "dstate_n", axes=axes)}
        yield f"{name}.forward_train", Case(train, given | backward)
        yield f"{name}.load_state_dict", _loading(layer, "weight_hh_l0")
        turned = cls(INPUTS, HIDDEN, batch_first=True, bidirectional=True, dtype=dtype, seed=0)
        yield f"{name}.__call__", Case(lambda a, f=turned: f(a["x"]), {"x": make.slot(BATCH, STEPS, INPUTS)})


def _cells(dtype: str, make: _Make) -> Cases:
    for name, cls in CELLS.items():
        cell = cls(INPUTS, HIDDEN, dtype=dtype, seed=0)
        given = {"x": make.slot(BATCH, INPUTS), **make.states(name, HIDDEN, axes=(BATCH,))}

        def train(a: Arrays, cell: Any = cell) -> Any:
            cell.zero_grads()
            out, backprop = cell.forward_train(a["x"], state(a))
            return out, backprop(state(a, "dstate")), cell.grads.flat.copy()

        yield f"{name}.__call__", Case(lambda a, f=cell: f(a["x"], state(a)), given)
        yield f"{name}.forward_train", Case(train, given | make.states(name, HIDDEN, "dstate", axes=(BATCH,)))
        yield f"{name}.load_state_dict", _loading(cell, "weight_ih")


def _small(dtype: str, make: _Make) -> Cases:
    linear = fastlstm.Linear(INPUTS, HIDDEN, dtype=dtype, seed=0)
    embedding = fastlstm.Embedding(VOCABULARY, INPUTS, dtype=dtype, seed=0)
    dropout = fastlstm.Dropout(0.5, dtype=dtype, seed=0)

    def train(layer: Any, a: Arrays, name: str) -> Any:
        layer.zero_grads()
        if layer is dropout:
            layer.calls = 0
        out, backprop = layer.forward_train(a[name])
        return out, backprop(a["dout"]), layer.grads.flat.copy()

    uses: tuple[tuple[str, Any, str, Slot, int], ...] = (
        ("Linear", linear, "x", make.slot(2, BATCH, INPUTS), HIDDEN),
        ("Embedding", embedding, "ids", Slot(make.ids(2, BATCH)), INPUTS),
        ("Dropout", dropout, "x", make.slot(2, BATCH, INPUTS), INPUTS),
    )
    for name, layer, argument, slot, width in uses:
        yield f"{name}.__call__", Case(lambda a, f=layer, n=argument: f(a[n]), {argument: slot})
        slots = {argument: slot, "dout": make.slot(2, BATCH, width)}
        yield f"{name}.forward_train", Case(lambda a, f=layer, n=argument: train(f, a, n), slots)
    yield "Linear.load_state_dict", _loading(linear, "bias")
    yield "Embedding.load_state_dict", _loading(embedding, "weight")


def _language_model(dtype: str, make: _Make) -> Cases:
    model = fastlstm.LanguageModel(VOCABULARY, hidden_size=HIDDEN, dtype=dtype, seed=0)
    states, ids = make.states("lstm", HIDDEN, axes=(2, BATCH)), Slot(make.ids(STEPS, BATCH))

    def train(a: Arrays) -> Any:
        model.zero_grads()
        logits, state_n, backprop = model.forward_train(a["ids"], state(a))
        return logits, state_n, backprop(a["dlogits"], state(a, "dstate_n")), model.grads.flat.copy()

    def batch(a: Arrays) -> Any:
        loss, carried = model.train_batch(a["inputs"], a["targets"], state(a))
        return loss, carried, model.grads.flat.copy()

    yield "LanguageModel.__call__", Case(lambda a: model(a["ids"], state(a)), {"ids": ids} | states)
    backward = make.states("lstm", HIDDEN, "dstate_n", axes=(2, BATCH))
    backward["dlogits"] = make.slot(STEPS, BATCH, VOCABULARY, optional=True)
    yield "LanguageModel.forward_train", Case(train, {"ids": ids} | states | backward)
    given = {"inputs": ids, "targets": ids} | states
    yield "LanguageModel.train_batch", Case(batch, given)
    yield "LanguageModel.eval_batch", Case(lambda a: model.eval_batch(a["inputs"], a["targets"], state(a)), given)
    yield "LanguageModel.load_state_dict", _loading(model, "head.bias")


class _Given:
    """Data of one batch, as given."""

    def __init__(self, a: Arrays) -> None:
        self._batch = a["inputs"], a["targets"], a["lengths"]

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Any, ...]]:
        yield self._batch


def _models(dtype: str) -> dict[str, Any]:
    sizes: dict[str, Any] = {"hidden_size": HIDDEN, "dtype": dtype, "seed": 0}
    regressor = fastlstm.SequenceRegressor(INPUTS, OUTPUTS, HORIZON, **sizes)
    return {"SequenceRegressor": regressor, "SequenceClassifier": fastlstm.SequenceClassifier(INPUTS, VOCABULARY, **sizes)}


def _series(dtype: str, make: _Make) -> Cases:
    x = make.slot(STEPS, BATCH, INPUTS, exact=True)
    for name, model in _models(dtype).items():
        regressor = name == "SequenceRegressor"
        targets = make.slot(BATCH, HORIZON, OUTPUTS) if regressor else Slot(make.ids(BATCH))
        saved = model.state_dict()
        dout, named = (make.slot(BATCH, HORIZON, OUTPUTS), "dout") if regressor else (make.slot(BATCH, VOCABULARY), "dlogits")

        def train(a: Arrays, model: Any = model, named: str = named) -> Any:
            model.zero_grads()
            out, backprop = model.forward_train(a["x"], a["lengths"])
            return out, backprop(a[named]), model.grads.flat.copy()

        def batch(a: Arrays, model: Any = model) -> Any:
            return model.train_batch(a["inputs"], a["targets"], lengths=a["lengths"]), model.grads.flat.copy()

        def learn(a: Arrays, act: Callable[[Any, Arrays], Any], model: Any = model, saved: Any = saved) -> Any:
            model.load_state_dict(saved)
            act(model, a)
            learned = model.buffers
            model.load_state_dict(saved)
            return learned

        def fit(model: Any, a: Arrays, regressor: bool = regressor) -> None:
            model.fit_normalization(a["inputs"], *([a["targets"]] if regressor else []))

        given = {"x": x, "lengths": _lengths()}
        for method in ("__call__", "predict", *([] if regressor else ["predict_probabilities"])):
            act, one = getattr(model, method), {"x": make.slot(STEPS, INPUTS, exact=True)}
            yield f"{name}.{method}", Case(lambda a, act=act: act(a["x"], a["lengths"]), given)
            yield f"{name}.{method}", Case(lambda a, act=act: act(a["x"]), one)
        yield f"{name}.forward_train", Case(train, given | {named: dout})
        given = {"inputs": x, "targets": targets, "lengths": _lengths()}
        yield f"{name}.train_batch", Case(batch, given)
        yield (
            f"{name}.eval_batch",
            Case(lambda a, f=model: f.eval_batch(a["inputs"], a["targets"], lengths=a["lengths"]), given),
        )
        learned = {"inputs": x} | ({"targets": targets} if regressor else {})
        yield f"{name}.fit_normalization", Case(lambda a, f=learn, g=fit: f(a, g), learned)
        seen = {"inputs": x} | ({"targets": targets} if regressor else {}) | {"lengths": _lengths()}

        def prepare(model: Any, a: Arrays, plain: Any = targets.plain) -> None:
            model.prepare(_Given({"targets": plain} | a))

        yield f"{name}.prepare", Case(lambda a, f=learn, g=prepare: f(a, g), seen)
        yield f"{name}.load_state_dict", _loading(model, "head.weight")
        yield f"{name}.load_state_dict", _loading(model, "normalization.input_mean")


def _streams(dtype: str, make: _Make) -> Cases:
    layer = fastlstm.LSTM(INPUTS, HIDDEN, 2, dtype=dtype, seed=0)
    model = fastlstm.LanguageModel(VOCABULARY, hidden_size=HIDDEN, dtype=dtype, seed=0)
    sources: dict[str, Any] = {"layer": layer, "model": model, **_models(dtype)}
    sources["SequenceRegressor"].fit_normalization(make.numbers(9, INPUTS), make.numbers(9, OUTPUTS))
    for kind, source in sources.items():
        for batch in (1, BATCH):
            step = fastlstm.Stream(source, batch)
            ids = kind == "model"
            x = Slot(make.ids(batch)) if ids else make.slot(batch, INPUTS, exact=True)
            y = step(x.plain)

            def call(a: Arrays, step: Any = step, start: Any = x.plain) -> Any:
                step.reset()
                step(start)  # so that resets have something to do
                return step(a["x"], a["out"], a["resets"]), np.array(step.state, dtype=object).size, step.state, a["out"]

            out = Slot(np.zeros_like(y), optional=True, written=True)
            yield "Stream.__call__", Case(call, {"x": x, "out": out, "resets": _marks(batch)})
    step = fastlstm.Stream(layer, BATCH)

    def hold(a: Arrays) -> Any:
        step.state = state(a)
        return step.state, step(make.numbers(BATCH, INPUTS)).copy()

    yield "Stream.state =", Case(hold, make.states("lstm", HIDDEN, axes=(2, BATCH)))


def _trainers(dtype: str, make: _Make) -> Cases:
    models = {"text": fastlstm.LanguageModel(VOCABULARY, hidden_size=HIDDEN, dtype=dtype, seed=0), **_models(dtype)}
    for name, model in models.items():
        trainer, saved = fastlstm.Trainer(model, fastlstm.SGD(0.1), progress=False), model.state_dict()

        def call(a: Arrays, trainer: Any = trainer, model: Any = model, saved: Any = saved) -> Any:
            model.load_state_dict(saved)
            trainer.reset_state()
            given = {"lengths": a["lengths"]} if "lengths" in a else {}
            losses = [trainer.step(a["inputs"], a["targets"], **given) for _ in range(2)]
            return losses, model.params.flat.copy()

        ids = Slot(make.ids(STEPS, BATCH))
        targets = {"SequenceRegressor": make.slot(BATCH, HORIZON, OUTPUTS), "SequenceClassifier": Slot(make.ids(BATCH))}
        x = make.slot(STEPS, BATCH, INPUTS, exact=True)
        series = {"inputs": x, "targets": targets.get(name, ids), "lengths": _lengths()}
        yield "Trainer.step", Case(call, {"inputs": ids, "targets": ids} if name == "text" else series)


def _optimizers(dtype: str, make: _Make) -> Cases:
    for name, cls in OPTIMIZERS.items():

        def step(a: Arrays, cls: Any = cls) -> Any:
            optimizer = cls(lr=0.1)
            for _ in range(2):
                optimizer.step({"w": a["w"], "b": a["b"]}, {"w": a["dw"], "b": a["db"]})
            return a["w"], a["b"], optimizer.state_arrays()

        def load(a: Arrays, cls: Any = cls) -> Any:
            optimizer = cls(lr=0.1, **({"momentum": 0.5} if cls is fastlstm.SGD else {}))
            kinds = optimizer._kinds()
            optimizer.load_state_arrays({f"{kind}.w": a["array"] for kind in kinds})
            return optimizer.state_arrays()

        yield (
            f"{name}.step",
            Case(
                step,
                {
                    "w": make.slot(4, 9, named="params['w']", written=True),
                    "b": make.slot(9, named="params['b']", written=True),
                    "dw": make.slot(4, 9, named="grads['w']", exact=True),
                    "db": make.slot(9, named="grads['b']", exact=True),
                },
            ),
        )
        kinds = {"SGD": "momentum", "RMSprop": "square"}
        yield f"{name}.load_state_arrays", Case(load, {"array": make.slot(4, 9, named=f"{kinds.get(name, 'm')}.w", exact=True)})

    def clip(a: Arrays, function: Callable[[Arrays, float], Any]) -> Any:
        return function(a, 0.7), dict(a)

    written = {name: make.slot(size, named=f"grads['{name}']", written=True) for name, size in (("w", 11), ("b", 4))}
    read = {name: make.slot(slot.plain.size, named=slot.named, exact=True) for name, slot in written.items()}
    yield "clip_grad_norm", Case(lambda a: clip(a, optim.clip_grad_norm), written)
    yield "clip_grad_value", Case(lambda a: clip(a, optim.clip_grad_value), written)
    yield "grad_norm", Case(optim.grad_norm, read)


def _losses(dtype: str, make: _Make) -> Cases:
    logits, targets = make.slot(STEPS, BATCH, VOCABULARY, exact=True), Slot(make.ids(STEPS, BATCH))

    def out(*shape: int) -> dict[str, Slot]:
        return {"out": make.slot(*shape, optional=True, written=True)}

    yield (
        "losses.softmax_cross_entropy",
        Case(
            lambda a: (losses.softmax_cross_entropy(a["logits"], a["targets"], out=a["out"]), a["out"]),
            {"logits": logits, "targets": targets} | out(STEPS, BATCH, VOCABULARY),
        ),
    )
    prediction = make.slot(STEPS, BATCH, exact=True)
    target = Slot(prediction.plain[::-1].copy(), exact=True)
    for function in (losses.mean_squared_error, losses.mean_absolute_error):
        yield (
            f"losses.{function.__name__}",
            Case(
                lambda a, f=function: (f(a["prediction"], a["target"], out=a["out"]), a["out"]),
                {"prediction": prediction, "target": target} | out(STEPS, BATCH),
            ),
        )


def _steps(dtype: str, make: _Make) -> Cases:
    for name, cls in LAYERS.items():
        layer = cls(INPUTS, HIDDEN, 2, dtype=dtype, seed=0)
        function, cell = getattr(fastlstm, f"{name.lower()}_step"), layer.compiled()
        states = {part: make.slot(2, BATCH, HIDDEN, written=True) for part in (("h", "c") if name == "LSTM" else ("h",))}

        def call(a: Arrays, function: Any = function, cell: Any = cell) -> Any:
            return function(cell, *a.values()), *list(a.values())[1:]

        # The cell itself is no argument to be converted; tests/layers/test_compiled.py has what is refused of it.
        yield f"{name.lower()}_step", Case(call, {"x": make.slot(BATCH, INPUTS)} | states)


def _data(dtype: str, make: _Make) -> Cases:
    def values(batches: Any) -> Any:
        """Of batches, whose arrays keep the dtypes that were given."""
        return [np.array(one, np.float64) for batch in batches for one in batch]

    ids = Slot(np.random.default_rng(0).integers(0, VOCABULARY, 40).astype(np.int32))
    yield "TokenStream.__init__", Case(lambda a: values(fastlstm.TokenStream(a["ids"], 3, 4)), {"ids": ids})
    inputs, targets = make.slot(BATCH, STEPS, INPUTS, exact=True), make.slot(BATCH, OUTPUTS, exact=True)
    given = {"inputs": inputs, "targets": targets, "lengths": _lengths()}
    yield (
        "Batches.__init__",
        Case(lambda a: values(fastlstm.Batches(a["inputs"], a["targets"], 2, lengths=a["lengths"])), given),
    )
