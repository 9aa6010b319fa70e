"""The C that exported models are made of: functions, and arrays of numbers as text. Knows no model.

A weight W [rows, columns] is kept transposed, [columns][rows]: sums of many rows advance side by side, which compilers
turn into vector instructions without being allowed to reorder a sum, and four columns at a time halve the traffic of a
processor without vectors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from string import Template

import numpy as np

_MATRIX = Template("""\
typedef struct {
    int rows, columns;
    const $type *values; /* [columns][rows] */$scales
} matrix;
""")

_SCALES = """
    const float *scales; /* [rows]: what one unit of a row's values is worth */"""

_START = """\
/* out [size] = bias, or zeros where there is none. */
static void start(float *out, const float *bias, int size)
{
    if (bias)
        memcpy(out, bias, (size_t)size * sizeof *out);
    else
        memset(out, 0, (size_t)size * sizeof *out);
}
"""

_MULTIPLY = Template("""\
/* out [rows] += W x, four columns at a time and then what is left. */
static void multiply(const matrix *m, const float *restrict x, float *restrict out)
{
    const int rows = m->rows, columns = m->columns, fours = columns - columns % 4;
    const $type *w = m->values;

    for (int k = 0; k < fours; k += 4, w += 4 * rows)
        for (int row = 0; row < rows; row++)
            out[row] += $scale(
                (float)w[row] * x[k] + (float)w[row + rows] * x[k + 1]
                + (float)w[row + 2 * rows] * x[k + 2] + (float)w[row + 3 * rows] * x[k + 3]);
    for (int k = fours; k < columns; k++, w += rows)
        for (int row = 0; row < rows; row++)
            out[row] += $scale((float)w[row] * x[k]);
}
""")

_LOOK_UP = Template("""\
/* out [columns] = one row of W. */
static void look_up(const matrix *m, int row, float *out)
{
    for (int k = 0; k < m->columns; k++)
        out[k] = $scale(float)m->values[k * m->rows + row];
}
""")

_SIGMOID = """\
static float sigmoid(float a)
{
    return 1.0F / (1.0F + expf(-a));
}
"""

_RNN = Template("""\
/* One step of a layer: x [inputs], h [hidden] overwritten, preact [hidden] scratch. */
static void rnn(const matrix *w_ih, const matrix *w_hh, const float *bias, const float *x, float *h, float *preact)
{
    const int hidden = w_hh->rows;

    start(preact, bias, hidden);
    multiply(w_ih, x, preact);
    multiply(w_hh, h, preact);
    for (int j = 0; j < hidden; j++)
        h[j] = $activation;
}
""")

_LSTM = """\
/* One step of a layer: x [inputs], h [width], c [hidden] overwritten, gates [4 * hidden] scratch.
   m [hidden] is what a projection makes h of, and may be gates; without a projection it is h. */
static void lstm(const matrix *w_ih, const matrix *w_hh, const float *bias, const float *x, const float *h, float *c,
                 float *gates, float *m)
{
    const int hidden = w_hh->rows / 4;
    const float *i = gates, *f = i + hidden, *g = f + hidden, *o = g + hidden;

    start(gates, bias, 4 * hidden);
    multiply(w_ih, x, gates);
    multiply(w_hh, h, gates);
    for (int j = 0; j < hidden; j++) {
        c[j] = sigmoid(f[j]) * c[j] + sigmoid(i[j]) * tanhf(g[j]);
        m[j] = sigmoid(o[j]) * tanhf(c[j]);
    }
}
"""

_GRU = """\
/* One step of a layer: x [inputs], h [hidden] overwritten, gates [4 * hidden] scratch; w_hh has the rows of r and z. */
static void gru(const matrix *w_ih, const matrix *w_hh, const matrix *w_hn, const float *bias, const float *x, float *h,
                float *gates)
{
    const int hidden = w_hn->rows;
    float *r = gates, *z = r + hidden, *n = z + hidden, *q = n + hidden;

    start(gates, bias, 4 * hidden);
    multiply(w_ih, x, gates);
    multiply(w_hh, h, gates);
    multiply(w_hn, h, q);
    for (int j = 0; j < hidden; j++) {
        const float keep = sigmoid(z[j]);
        h[j] = (1.0F - keep) * tanhf(n[j] + sigmoid(r[j]) * q[j]) + keep * h[j];
    }
}
"""

_GRU_ORIGINAL = """\
/* One step of a layer: x [inputs], h [hidden] overwritten, gates [4 * hidden] scratch; w_hh has the rows of r and z. */
static void gru(const matrix *w_ih, const matrix *w_hh, const matrix *w_hn, const float *bias, const float *x, float *h,
                float *gates)
{
    const int hidden = w_hn->rows;
    float *r = gates, *z = r + hidden, *n = z + hidden, *q = n + hidden;

    start(gates, bias, 3 * hidden);
    multiply(w_ih, x, gates);
    multiply(w_hh, h, gates);
    for (int j = 0; j < hidden; j++)
        q[j] = sigmoid(r[j]) * h[j];
    multiply(w_hn, q, n);
    for (int j = 0; j < hidden; j++) {
        const float keep = sigmoid(z[j]);
        h[j] = (1.0F - keep) * tanhf(n[j]) + keep * h[j];
    }
}
"""

HEADER = Template("""\
/* $title

   The caller owns the state, and may have several. There is no allocation and no other variable. */
#ifndef ${prefix}_H
#define ${prefix}_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

$sizes

typedef struct {
$members
} ${name}_state;

/* Before the first step, and wherever a new sequence begins: the state becomes zeros. */
void ${name}_reset(${name}_state *state);

$explanation
$prototype;

#ifdef __cplusplus
}
#endif

#endif
""")

SOURCE = Template("""\
/* $title */
#include "$name.h"

#include <math.h>
#include <string.h>

typedef char size_of_the_state_is_as_stated[sizeof(${name}_state) == ${prefix}_STATE_BYTES ? 1 : -1];

$functions
$tables
void ${name}_reset(${name}_state *state)
{
    memset(state, 0, sizeof *state);
}

$prototype
{
$step
}
""")


def functions(cell: str, relu: bool, reset_after: bool, embeds: bool, int8: bool) -> str:
    """The C functions that a model of this cell needs, and none that it does not: compilers warn of those."""
    kind = {"type": "float", "scale": "", "scales": ""}
    if int8:
        kind = {"type": "int8_t", "scale": "m->scales[row] * ", "scales": _SCALES}
    parts = [_MATRIX.substitute(kind), _START, _MULTIPLY.substitute(kind)]
    if embeds:
        parts.append(_LOOK_UP.substitute(kind))
    if cell == "rnn":
        parts.append(_RNN.substitute(activation="preact[j] < 0.0F ? 0.0F : preact[j]" if relu else "tanhf(preact[j])"))
    else:
        parts += [_SIGMOID, _LSTM if cell == "lstm" else _GRU if reset_after else _GRU_ORIGINAL]
    return "\n".join(parts)


def array(name: str, values: np.ndarray) -> str:
    """``static const`` array of float32 or int8 values; floats in hexadecimal, which loses no bit in any compiler."""
    if values.dtype == np.int8:
        return _array("int8_t", name, map(str, values.ravel().tolist()), values.size, 24)
    return _array("float", name, map(_hexadecimal, values.ravel().tolist()), values.size, 8)


def _array(kind: str, name: str, numbers: Iterable[str], size: int, per_line: int) -> str:
    found = list(numbers)
    lines = [", ".join(found[k : k + per_line]) for k in range(0, size, per_line)]
    return f"static const {kind} {name}[{size}] = {{\n    " + ",\n    ".join(lines) + "\n};\n"


def _hexadecimal(value: float) -> str:
    return re.sub(r"\.?0*p", "p", value.hex()) + "F"
