"""What the tests of exported C share: layers to export, programs around the C, the compilers that build them."""

import shutil
import subprocess

import numpy as np
import pytest

import fastlstm
from fastlstm.adapters import c

STRICT = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-Wconversion", "-Wshadow", "-Wdouble-promotion"]
needs_cc = pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc here: what is exported is not compiled")

# Reads inputs, writes outputs; a state full of rubbish shows whether a reset resets. STEPS: the length of a sequence.
HARNESS = """
#include "NAME.h"
#include <stdio.h>
#include <string.h>
static NAME_state state;
static float output[PREFIX_OUTPUT_SIZE];
int main(void)
{
    INPUT;
    memset(&state, 0xFF, sizeof state);
    for (long n = 0; fread(&input, sizeof input, 1, stdin) == 1; n++) {
        if (n % STEPS == 0)
            NAME_reset(&state);
        NAME_step(&state, input, output);
        fwrite(output, sizeof output, 1, stdout);
    }
    return 0;
}
"""


def build(folder, name, main, flags=(), cc="gcc", others=()):
    """Compile NAME.c, other exports and the text of a program into the program."""
    (folder / "main.c").write_text(main)
    files = [folder / "main.c", *(folder / f"{each}.c" for each in (name, *others))]
    program = folder / f"program_{cc}"
    command([cc, *STRICT, *flags, *files, "-o", program, "-lm"])
    return program


def command(words, **options):
    done = subprocess.run(list(map(str, words)), capture_output=True, check=False, **options)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def run(model, inputs, folder, weights="float32", flags=("-O2",), cc="gcc", name="model"):
    """Export, compile and run: outputs [B, T, outputs] for inputs [B, T, ...]."""
    c.export(model, folder, weights, name)
    declare = f"float input[{name.upper()}_INPUT_SIZE]" if inputs.ndim == 3 else "int32_t input"
    main = HARNESS.replace("INPUT;", f"{declare};").replace("NAME", name).replace("PREFIX", name.upper())
    program = build(folder, name, main, [*flags, f"-DSTEPS={inputs.shape[1]}"], cc)
    sent = inputs.astype(np.float32 if inputs.ndim == 3 else np.int32).tobytes()
    return np.frombuffer(command([program], input=sent), np.float32).reshape(*inputs.shape[:2], -1)


def strengthened(model, factor=1.5):
    """Weights larger than a fresh model's, as training makes them."""
    with model.edit() as params:
        for values in params.values():
            values *= factor
    return model


def assert_close(found, expected):
    """Within 1e-5, relative where numbers are above 1."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(1.0, float(np.abs(expected).max())))


LAYERS = {
    "rnn-tanh": (fastlstm.RNN, {}),
    "rnn-relu": (fastlstm.RNN, {"nonlinearity": "relu"}),
    "lstm": (fastlstm.LSTM, {}),
    "gru": (fastlstm.GRU, {}),
    "gru-original": (fastlstm.GRU, {"reset_after": False}),
}


def make(kind, inputs, hidden, options=None):
    """A layer with weights larger than a fresh one's, as training makes them."""
    layer, own = LAYERS[kind]
    return strengthened(layer(inputs, hidden, seed=hidden, **own, **(options or {})))


def sequences(model, batch=3, steps=300, seed=0):
    return np.random.default_rng(seed).standard_normal((batch, steps, model.shape.input_size), dtype=np.float32)


def layer_outputs(layer, x):
    """Python's outputs [B, T, R] for x [B, T, I]."""
    return layer(x)[0] if layer.batch_first else layer(x.swapaxes(0, 1))[0].swapaxes(0, 1)


def int8_rows(weight):
    """An own account of int8 weights: every row in steps of its largest value's 127th part."""
    scale = np.abs(weight).max(axis=1, keepdims=True) / np.float32(127)
    return np.rint(weight / np.where(scale > 0, scale, 1)).astype(np.float32) * scale


def dequantize(model):
    """Set every weight of a model to what int8 holds of it."""
    with model.edit() as params:
        for values in params.values():
            if values.ndim == 2:
                values[...] = int8_rows(values)
    return model
