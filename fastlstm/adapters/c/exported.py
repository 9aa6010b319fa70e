"""A trained model as plain C: one C99 header and source, for a microcontroller or any program without Python.

Needs no framework, and a C compiler only where its result is compiled. What the C is made of stands in source.py.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ...files.writing import replacing
from ...layers.recurrent import Layer
from ...models.language import LanguageModel
from ...models.series import SequenceRegressor
from ...models.series_base import Reader
from ...runtime import check
from ...version import __version__
from . import source as _c_source
from .model import Model, Translation

# A header of the standard library's: in a folder of the user's own it would be found in place of the real one.
_TAKEN = {
    "assert",
    "complex",
    "ctype",
    "errno",
    "fenv",
    "float",
    "inttypes",
    "iso646",
    "limits",
    "locale",
    "math",
    "setjmp",
    "signal",
    "stdalign",
    "stdarg",
    "stdatomic",
    "stdbool",
    "stddef",
    "stdint",
    "stdio",
    "stdlib",
    "stdnoreturn",
    "string",
    "tgmath",
    "threads",
    "time",
    "uchar",
    "wchar",
    "wctype",
}


@dataclass(frozen=True)
class Exported:
    """The files of an exported model and its sizes, which the header has as macros.

    Attributes
    ----------
    header, source : Path
    state_bytes : int
        Size of the state that the caller owns, scratch included: all the RAM there is, beside a little stack.
    weight_bytes : int
        Size of all constant arrays, which lie in flash.
    macs_per_step : int
        Multiplications with weights (and additions) in one step.
    """

    header: Path
    source: Path
    state_bytes: int
    weight_bytes: int
    macs_per_step: int


def export(model: Model, folder: str | os.PathLike[str], weights: str = "float32", name: str = "model") -> Exported:
    """Write ``NAME.h`` and ``NAME.c``, with ``NAME_step`` and ``NAME_reset`` on a ``NAME_state`` that the caller owns.

    Parameters
    ----------
    model : RNN, LSTM, GRU, LanguageModel, SequenceRegressor or SequenceClassifier
        One direction. Parameters of other dtypes are rounded to float32.
    folder : path
        Where the files go; made if it is missing.
    weights : {"float32", "int8"}
        How weight matrices are kept; "int8": each row has a scale, the sums are float32. Biases are float32.
    name : str
        Prefix of every public name: letters, digits and underscores, a letter first.

    Returns
    -------
    Exported
        The paths and the sizes.

    Raises
    ------
    TypeError
        If the model is none of these.
    ValueError
        If it has two directions, or a parameter that float32 cannot hold; for a bad name or `weights`.
    OSError
        If a file cannot be written.

    Examples
    --------
    >>> import fastlstm
    >>> from fastlstm.adapters import c
    >>> done = c.export(fastlstm.LSTM(2, 24, seed=0), "pump", weights="int8", name="pump")
    >>> done.header.name, done.source.name, done.state_bytes, done.weight_bytes, done.macs_per_step
    ('pump.h', 'pump.c', 576, 3648, 2496)
    """
    if not isinstance(model, Layer | LanguageModel | Reader):
        raise TypeError(
            f"model is {type(model).__name__}; expected an RNN, LSTM or GRU layer, a LanguageModel, a SequenceRegressor or "
            "a SequenceClassifier"
        )
    if model.shape.bidirectional:
        raise ValueError("model is bidirectional: its reverse direction starts at the end, so it cannot run step by step")
    check.choice("weights", weights, ("float32", "int8"))
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name, re.ASCII) or name.lower() in _TAKEN:
        raise ValueError(
            f"name is {name!r}; expected letters, digits and underscores, a letter first, and no standard header's name"
        )
    int8, token, prefix = weights == "int8", isinstance(model, LanguageModel), name.upper()
    shape, found = model.shape, Translation(model, int8)
    values = {
        "name": name,
        "prefix": prefix,
        "prototype": _prototype(model, name),
        "title": f"{name}: {_title(model)}, {weights} weights; written by fastlstm {__version__}.",
        "explanation": _explanation(model).replace("NAME", prefix),
        "sizes": "\n".join(f"#define {prefix}_{key} {value}" for key, value in _sizes(model, found).items()),
        "members": "\n".join(f"    float {member}[{size}];" for member, size in found.members),
        "functions": _c_source.functions(shape.cell, shape.relu, shape.reset_after, token, int8),
        "tables": "\n".join(found.tables),
        "step": "\n".join(f"    {line}" for line in found.step),
    }
    header, source = Path(folder) / f"{name}.h", Path(folder) / f"{name}.c"
    for path, text in ((header, _c_source.HEADER), (source, _c_source.SOURCE)):
        with replacing(path) as temporary:
            temporary.write_text(text.substitute(values), encoding="ascii", newline="\n")
    return Exported(header, source, found.state_bytes, found.weight_bytes, found.macs)


def _title(model: Model) -> str:
    """What the model is, in a line."""
    s = model.shape
    cell = {"rnn": "RNN (relu)" if s.relu else "RNN (tanh)", "lstm": "LSTM", "gru": "GRU" if s.reset_after else "original GRU"}
    projected = f" projected to {s.proj_size}" if s.proj_size else ""
    layers = f" in {s.num_layers} layers" if s.num_layers > 1 else ""
    kind = "" if isinstance(model, Layer) else f"{type(model).__name__}, "
    return f"{kind}{cell[s.cell]} {s.input_size} -> {s.hidden_size}{projected}{layers}"


def _sizes(model: Model, found: Translation) -> dict[str, int]:
    """The header's macros."""
    if isinstance(model, LanguageModel):
        inputs = {"VOCAB_SIZE": model.vocab_size}
    else:
        inputs = {"INPUT_SIZE": model.shape.input_size}
    horizon = {"HORIZON": model.horizon} if isinstance(model, SequenceRegressor) else {}
    own = {"STATE_BYTES": found.state_bytes, "WEIGHT_BYTES": found.weight_bytes, "MACS_PER_STEP": found.macs}
    return inputs | {"OUTPUT_SIZE": found.outputs} | horizon | own


def _prototype(model: Model, name: str) -> str:
    if isinstance(model, LanguageModel):
        return f"int {name}_step({name}_state *state, int32_t token, float *logits)"
    return f"void {name}_step({name}_state *state, const float *input, float *output)"


def _explanation(model: Model) -> str:
    """What a step takes and gives, as the header says it."""
    if isinstance(model, LanguageModel):
        return (
            "/* One step: a token from 0 to NAME_VOCAB_SIZE - 1 in, logits [NAME_OUTPUT_SIZE] of the next token out.\n"
            "   A null pointer for logits spares their products. Returns 0; for any other token -1, with nothing done. */"
        )
    if isinstance(model, Layer):
        what = "   output [NAME_OUTPUT_SIZE] is h of the top layer, or a null pointer. */"
    elif isinstance(model, SequenceRegressor):
        what = (
            f"   output [NAME_HORIZON][{model.output_size}] is the forecast from all steps since the reset, "
            "in the same units.\n   A null pointer for output spares its products. */"
        )
    else:
        what = (
            "   output [NAME_OUTPUT_SIZE] are the classes' logits for all steps since the reset.\n"
            "   A null pointer for output spares its products. */"
        )
    units = "" if isinstance(model, Layer) else " in the units of the training data"
    return f"/* One step: reads input [NAME_INPUT_SIZE]{units};\n{what}"
