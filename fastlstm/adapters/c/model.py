"""A model in terms of C: its constant tables, the members of its state and the lines of its step. Knows no file.

The functions that these lines call, and how numbers become text, stand in source.py.
"""

from __future__ import annotations

import numpy as np

from ...layers.recurrent import Layer
from ...models.language import LanguageModel
from ...models.series import SequenceRegressor
from ...models.series_base import PREFIX, Reader
from . import source

Model = Layer | LanguageModel | Reader


def quantized(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of float32 [N, K] as int8 [N, K] in -127..127 and what one unit of each row is worth, float32 [N]."""
    scales = (np.abs(weight).max(axis=1) / np.float32(127)).astype(np.float32)
    # A row of zeros, or of numbers so small that their unit vanishes, stays zero.
    units = np.divide(weight, scales[:, None], out=np.zeros(weight.shape), where=scales[:, None] > 0)
    return np.rint(units).clip(-127, 127).astype(np.int8), scales


class Translation:
    """One model as C.

    Attributes
    ----------
    tables : list of str
        Definitions of the constant arrays and matrices.
    members : list of (str, int)
        Arrays of float in the state, and their sizes.
    step : list of str
        Statements of one step on `state`, from `input` to `output`, or from `token` to `logits`.
    outputs : int
        Size of the output.
    state_bytes, weight_bytes, macs : int
        Size of the state and of the constant arrays, and products with weights in one step.
    """

    def __init__(self, model: Model, int8: bool) -> None:
        self.model, self.int8, self.shape = model, int8, model.shape
        self.params = {key.removeprefix("rnn."): value for key, value in model.state_dict().items()}
        self.tables: list[str] = []
        self.members: list[tuple[str, int]] = []
        self.step: list[str] = []
        self.weight_bytes = self.macs = 0
        x = self._input()
        for layer in range(self.shape.num_layers):
            x = self._layer(f"_l{layer}", x)
        self.outputs = self._output(x)
        self._member("scratch", (1 if self.shape.cell == "rnn" else 4) * self.shape.hidden_size)
        self.state_bytes = 4 * sum(size for _, size in self.members)

    def _input(self) -> str:
        """What layer 0 reads."""
        size = self.shape.input_size
        if isinstance(self.model, LanguageModel):
            table = "head" if self.model.tie_weights else "embedding"
            self._matrix(table, "embedding.weight")
            self._lines(
                f"if (token < 0 || token >= {self.model.vocab_size})",
                "    return -1;",
                f"look_up(&{table}, (int)token, state->input);",
            )
            return self._member("input", size)
        if not (isinstance(self.model, Reader) and self.model.normalize):
            return "input"
        mean, std = (self.params[f"{PREFIX}input_{what}"] for what in ("mean", "std"))
        # Two floats hold the mean: next to a large one, what remains of the input is as exact as in float64.
        self._vector("input_mean", mean)
        self._vector("input_mean_rest", mean - mean.astype(np.float32))
        self._vector("input_std", self._positive("input_std", std))
        self._lines(
            f"for (int k = 0; k < {size}; k++)",
            "    state->input[k] = ((input[k] - input_mean[k]) - input_mean_rest[k]) / input_std[k];",
        )
        return self._member("input", size)

    def _layer(self, suffix: str, x: str) -> str:
        """One layer that reads `x`; where its h is."""
        shape, cell, split = self.shape, self.shape.cell, 2 * self.shape.hidden_size
        matrices = [f"weight_ih{suffix}", f"weight_hh{suffix}"]
        self._matrix(matrices[0], matrices[0])
        if cell == "gru":
            matrices.append(f"weight_hn{suffix}")
            self._matrix(matrices[1], matrices[1], slice(0, split))
            self._matrix(matrices[2], matrices[1], slice(split, None))
        else:
            self._matrix(matrices[1], matrices[1])
        bias = self._bias(suffix)
        h = self._member(f"h{suffix}", shape.width)
        arguments = [*(f"&{matrix}" for matrix in matrices), bias, x, h]
        if cell == "lstm":
            arguments.append(self._member(f"c{suffix}", shape.hidden_size))
        arguments.append("state->scratch")
        if cell == "lstm":
            arguments.append("state->scratch" if shape.proj_size else h)
        self._lines(f"{cell}({', '.join(arguments)});")
        if shape.proj_size:
            self._matrix(f"weight_hr{suffix}", f"weight_hr{suffix}")
            self._lines(f"start({h}, 0, {shape.width});", f"multiply(&weight_hr{suffix}, state->scratch, {h});")
        return h

    def _bias(self, suffix: str) -> str:
        """Both biases of a layer as one; those of a GRU's n stay apart where r stands between them."""
        if not self.shape.bias:
            return "0"
        b_ih, b_hh = (self.params[f"bias_{side}{suffix}"].astype(np.float64) for side in ("ih", "hh"))
        if self.shape.cell == "gru" and self.shape.reset_after:
            split = 2 * self.shape.hidden_size
            bias = np.concatenate([b_ih[:split] + b_hh[:split], b_ih[split:], b_hh[split:]])
        else:
            bias = b_ih + b_hh
        self._vector(f"bias{suffix}", bias)
        return f"bias{suffix}"

    def _output(self, h: str) -> int:
        """What is written to `output`, and its size."""
        model, out = self.model, "logits" if isinstance(self.model, LanguageModel) else "output"
        if isinstance(model, Layer):
            self._lines(f"if ({out})", f"    memcpy({out}, {h}, sizeof {h});")
            return self.shape.width
        if not (isinstance(model, LanguageModel) and model.tie_weights):
            self._matrix("head", "head.weight")
        self._vector("head_bias", self.params["head.bias"])
        size = model.head.outputs
        self._lines(f"if ({out}) {{", f"    start({out}, head_bias, {size});", f"    multiply(&head, {h}, {out});")
        if isinstance(model, SequenceRegressor) and model.normalize:
            self._vector("target_mean", self.params[PREFIX + "target_mean"])
            self._vector("target_std", self.params[PREFIX + "target_std"])
            k = f"k % {model.output_size}" if model.horizon > 1 else "k"
            self._lines(
                f"    for (int k = 0; k < {size}; k++)", f"        output[k] = output[k] * target_std[{k}] + target_mean[{k}];"
            )
        self._lines("}", *(["return 0;"] if isinstance(model, LanguageModel) else []))
        return size

    def _lines(self, *lines: str) -> None:
        self.step += lines

    def _member(self, name: str, size: int) -> str:
        """An array of floats in the state."""
        self.members.append((name, size))
        return f"state->{name}"

    def _vector(self, name: str, values: np.ndarray) -> None:
        """A constant array."""
        self._table(name, self._float32(name, values))

    def _matrix(self, name: str, parameter: str, rows: slice = slice(None)) -> None:
        """Some rows of a weight as a constant matrix."""
        values = self._float32(parameter, self.params[parameter])[rows]
        scales = ""
        if self.int8:
            values, row_scales = quantized(values)
            self._table(f"{name}_scales", row_scales)
            scales = f", {name}_scales"
        self._table(f"{name}_values", values.T)
        self.tables.append(f"static const matrix {name} = {{{values.shape[0]}, {values.shape[1]}, {name}_values{scales}}};\n")
        # A row of an embedding is looked up, not multiplied.
        self.macs += 0 if name == "embedding" else values.size

    def _table(self, name: str, values: np.ndarray) -> None:
        self.tables.append(source.array(name, values))
        self.weight_bytes += values.nbytes

    def _float32(self, name: str, values: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            narrow = values.astype(np.float32)
        if not np.isfinite(narrow).all():
            raise ValueError(f"{name} has values that are not finite in float32; expected a model that works")
        return narrow

    def _positive(self, name: str, values: np.ndarray) -> np.ndarray:
        if not (values.astype(np.float32) > 0).all():
            raise ValueError(f"{name} has values down to {values.min()}; expected what float32 holds as positive")
        return values
