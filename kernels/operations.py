"""Every operation that the kernels do, as a record with a field for each argument, and the table of them.

A caller says ``engine.run(FillZeros(size=8, out=array))``. The engine finds the kernel for its device and dtype by the
record's type. A kernel for the CPU is a Python function ``kernel(thread, threads, a)``, which Numba compiles: it reads
``a.size``. A CUDA kernel takes the record as a struct. Nobody needs to know at which position an argument stands.

Types of fields, all of them 64-bit integers for a kernel:

    Size      a number of elements, rows, steps; the distance from one row to the next, in elements or words
    Flag      0 or 1
    Reals     the address of elements of the engine's storage type: float32 or float64
    Words     the address of what products read: elements of the storage type, or in bfloat16 pairs of them in 32 bits
              (vector/narrow.py)
    Doubles, Floats, Int64s, Int32s, Bytes      the address of float64, float32, int64, int32, uint8
    Team      the address of what threads or blocks meet at

Python callers may give an array where an address is wanted, None for 0, and in a recorded program a `Later`. A field whose
comment ends in "or 0" may be 0: there is none. All other addresses must be valid. Nothing is checked.

Each address's comment says how the kernel uses it: "read", "written" (the old content does not matter), "added to", or
"changed". All memory is the caller's; `scratch` is memory of unknown content before and after.

Letters: T steps of the chunk, B rows of the batch, H hidden units, R width of h (H, or a projection's), G the gates of all
units (4 H for the LSTM, 3 H for the GRU), V rows of a table. On the CPU, rows are padded to whole vectors. A chunk is a few
steps of a sequence. Arrays of states have one slot more than there are steps: step t reads slot t and writes slot t + 1, in
reverse it reads t + 1 and writes t. sequence.py says what ragged batches are, and how threads share the steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

Size: TypeAlias = int
Flag: TypeAlias = int
Reals: TypeAlias = Any
Words: TypeAlias = Any
Doubles: TypeAlias = Any
Floats: TypeAlias = Any
Int64s: TypeAlias = Any
Int32s: TypeAlias = Any
Bytes: TypeAlias = Any
Team: TypeAlias = Any

PACK_SCRATCH = 1024  # elements of scratch for each thread that packs
OUTER_DEPTH = 128  # steps of the depth that `OuterProduct` takes at a time: a packed panel then stays in the first-level cache
OUTER_ROWS = 64  # rows of its C to which a packed block of A belongs


# Products.


class Product(NamedTuple):
    """C[T, B, columns] = C_in + A[T, B, depth] @ weight; on the CPU threads share the rows, or with `units` the columns."""

    steps: Size
    batch: Size
    depth: Size  # words of a row of A that count
    columns: Size  # whole vectors
    units: Flag
    a: Words  # [T, B, a_row] read
    a_row: Size
    weight: Words  # packed by `PackColumns` or `PackRows`, read
    c_in: Reals  # [T, B, c_in_row] read; may be C
    c_in_row: Size  # 0: one row for all
    c: Reals  # [T, B, c_row] written
    c_row: Size


class ProductByThree(Product):
    """`Product` with a weight in panels of three vectors: the GRU's three gates."""


class OuterProduct(NamedTuple):
    """C[rows, columns] += A[depth, rows].T @ B[depth, columns], and sums[columns] += the column sums of B: weight gradients."""

    depth: Size  # rows of A and B
    rows: Size
    columns: Size  # whole vectors
    start: Flag  # C and sums are written, not added to
    a: Words  # [depth, a_row] read
    a_row: Size
    b: Words  # [depth, b_row] read
    b_row: Size
    c: Reals  # [rows, c_row] added to
    c_row: Size
    sums: Reals  # [columns] added to
    scratch: Reals  # [threads, space]
    space: Size  # at least outer_space(rows, columns)


def outer_space(rows: int, columns: int) -> int:
    """Elements of scratch that `OuterProduct` needs for each thread."""
    return (OUTER_DEPTH + 1) * ((-(-rows // OUTER_ROWS) + 1) * OUTER_ROWS + columns)


# Weights into the order in which products read them, and gradients back out of it (pack.py).


class PackColumns(NamedTuple):
    """packed[k, column] = w[source_row(column), k]: the weight of a product x @ w.T."""

    hidden: Size
    gates: Size  # that are interleaved; 1 for plain order
    unit: Size  # hidden units of a block of the interleaved order: the lanes of a vector
    width: Size
    depth: Size  # rows of the packed weight
    columns: Size  # gates * hidden, padded to whole vectors
    vectors: Size  # of a panel
    w: Reals  # [gates * hidden, w_row] read, columns :width
    w_row: Size
    packed: Words  # [columns * depth] written
    scratch: Reals  # [threads, PACK_SCRATCH]


class PackRows(NamedTuple):
    """packed[k, column] = w[source_row(k), column]: the weight of a product dy @ w."""

    hidden: Size
    gates: Size
    unit: Size
    width: Size
    depth: Size
    columns: Size  # width, padded to whole vectors
    w: Reals  # [gates * hidden, w_row] read, columns :width
    w_row: Size
    packed: Words  # [columns * depth] written
    scratch: Reals  # [threads, PACK_SCRATCH]


class PackBias(NamedTuple):
    """packed[column] = first[source_row(column)] + second[source_row(column)]: the sum of two biases."""

    hidden: Size
    gates: Size
    unit: Size
    columns: Size  # gates * hidden, padded to whole vectors
    split: Size  # for gates from this one on, only the first bias counts
    first: Reals  # [gates * hidden] read, or 0
    second: Reals  # [gates * hidden] read, or 0
    packed: Reals  # [columns] written


class AddRows(NamedTuple):
    """gradient[source_row(column), :width] += c[column, :width]."""

    hidden: Size
    gates: Size
    unit: Size
    columns: Size
    width: Size
    c: Reals  # [columns, c_row] read
    c_row: Size
    gradient: Reals  # [gates * hidden, gradient_row] added to
    gradient_row: Size


class AddColumns(NamedTuple):
    """gradient[source_row(column), :width] += c[:width, column], bias[source_row(column)] += sums[column]."""

    hidden: Size
    gates: Size
    unit: Size
    columns: Size  # whole vectors
    width: Size
    c: Reals  # [width, c_row] read, with rows up to whole vectors
    c_row: Size
    gradient: Reals  # [gates * hidden, gradient_row] added to
    gradient_row: Size
    sums: Reals  # [columns] read
    bias: Reals  # [gates * hidden] added to, or 0
    scratch: Reals  # [threads, PACK_SCRATCH]


# Rows (sequence.py).


class EmitRows(NamedTuple):
    """out[t, b, :width] = h[t, b, :width], zeros from row b's length on."""

    steps: Size
    batch: Size
    width: Size
    h: Reals  # [T, B, h_row] read
    h_row: Size
    out: Reals  # [T, B, out_row] written in columns :width
    out_row: Size
    lengths: Int64s  # [B] read, or 0


class AbsorbRows(NamedTuple):
    """out[t, b] = source[t, b, :width], then zeros up to the row's end."""

    steps: Size
    batch: Size
    width: Size
    source: Reals  # [T, B, source_row] read, or 0: zeros
    source_row: Size
    out: Reals  # [T, B, out_row] written
    out_row: Size


class OperandRows(NamedTuple):
    """out[t, b] = source[t, b, :width] in words, then zeros up to the row's end."""

    steps: Size
    batch: Size
    width: Size
    source: Reals  # [T, B, source_row] read, or 0: zeros
    source_row: Size
    out: Words  # [T, B, out_row] written
    out_row: Size
    scratch: Reals  # [threads, lanes]


class FillZeros(NamedTuple):
    """out[:size] = 0."""

    size: Size
    out: Reals  # written


class ClearRows(NamedTuple):
    """out[t, b] = source[t, b], or zeros where clear[t, b] is set; `source` may be `out`."""

    steps: Size
    batch: Size
    row: Size  # whole vectors
    clear: Bytes  # [T, B] read
    source: Reals  # [T, B, row] read; may hold words
    out: Reals  # [T, B, row] written


# Recurrences: the steps of one direction of one layer, whose input product is done (kernels/cells).


class LstmForward(NamedTuple):
    """All steps of a chunk of an LSTM, with a projection of h where `projection` is not 0."""

    steps: Size
    batch: Size
    hidden: Size
    width: Size  # of h, padded
    depth: Size  # words of a row of h that count
    op_row: Size
    reverse: Flag
    time: Size  # index of the chunk's first step in the sequence, from which `lengths` count
    units: Flag  # threads share the units and meet after each step; otherwise they share the rows
    barrier: Team
    gates: Reals  # [T, B, G] read: the input product with the bias, then scratch; in float32 and float64 in rows of kept_row
    kept: Words  # [T, B, kept_row] written: activations for backward, interleaved as the gates; or 0
    kept_row: Size
    h: Reals  # [T+1, B, R] changed: the first state read, the others written
    op: Words  # [T+1, B, op_row] changed: h as products read it; in float32 and float64 it is h itself
    c: Reals  # [c_slots, B, H] changed alike
    c_slots: Size  # 2 slots, taken in turn, or as many as the sequence has states
    m: Words  # [T, B, m_row] written: what the projection reads; or 0
    m_row: Size
    m_depth: Size  # words of a row of m that count
    weight: Words  # W_hh packed by columns, 4 gates, read
    projection: Words  # W_hr packed by columns, read; or 0
    zeros: Reals  # [R] read
    ids: Int32s  # [T, B] read, or 0: gates[t, b] = table[ids[t, b]] first
    table: Reals  # [V, G] read, where there are ids
    lengths: Int64s  # [B] read, or 0: states stay as they are from row b's length on
    clear: Bytes  # [T, B] read, or 0: the state counts as zero before the marked steps
    starts: Int64s  # [T+3] read, or 0: where the steps of a ragged batch begin
    spare: Reals  # scratch of recurrence_space(...) elements


class LstmBackward(NamedTuple):
    """All steps of a chunk of an LSTM, last to first."""

    steps: Size
    batch: Size
    hidden: Size
    width: Size
    depth: Size  # words of a row of gates that count
    reverse: Flag
    time: Size
    start: Flag  # no step comes after the chunk
    units: Flag
    barrier: Team
    kept: Words  # [T, B, kept_row] changed: activations in, their gradients out; the chunk after holds gradients
    kept_row: Size
    c: Reals  # [T+1, B, H] read
    dout: Reals  # [T, B, dout_row] read: gradient of h of each step
    dout_row: Size
    dh: Reals  # [B, R] changed: gradient of h after the chunk in, before it out, but for the first step's part by way of W_hh
    dc: Reals  # [B, H] changed: gradient of c after the chunk in, before it out
    weight: Words  # W_hh packed by rows, read
    projection: Words  # W_hr packed by rows, read; or 0
    zeros: Reals  # [max(R, H)] read
    dp: Words  # [T, B, dp_row] written: gradient of h as the projection's product reads it; or 0
    dp_row: Size
    dp_depth: Size  # words of a row of it that count
    lengths: Int64s  # [B] read, or 0
    clear: Bytes  # [T, B] read, or 0
    starts: Int64s  # [T+3] read, or 0
    spare: Reals  # [B, H] scratch


class GruForward(NamedTuple):
    """All steps of a chunk of a GRU whose reset gate acts after the product (`reset_after`)."""

    steps: Size
    batch: Size
    hidden: Size
    depth: Size
    op_row: Size
    reverse: Flag
    time: Size
    units: Flag
    barrier: Team
    gates: Reals  # [T, B, G] read: the input product with the bias but for b_hn, then scratch; rows as of the LSTM's
    kept: Words  # [T, B, kept_row] written: r, z, n for backward; or 0
    kept_row: Size
    side: Words  # [T, B, side_row] written where `kept` is: h_prev W_hn' + b_hn
    side_row: Size
    h: Reals  # [T+1, B, H] changed
    op: Words  # [T+1, B, op_row] changed
    weight: Words  # W_hh packed by columns, 3 gates, read
    bias: Reals  # [H] read: b_hn
    ids: Int32s  # [T, B] read, or 0
    table: Reals  # [V, G] read, where there are ids
    lengths: Int64s  # [B] read, or 0
    clear: Bytes  # [T, B] read, or 0
    starts: Int64s  # [T+3] read, or 0
    spare: Reals  # scratch of recurrence_space(...) elements


class GruBackward(NamedTuple):
    """All steps of a chunk of such a GRU, last to first."""

    steps: Size
    batch: Size
    hidden: Size
    depth: Size
    reverse: Flag
    time: Size
    start: Flag
    units: Flag
    barrier: Team
    kept: Words  # [T, B, kept_row] changed: r, z, n in, the gradients on the input's side out
    inner: Words  # [T, B, kept_row] written: the gradients on h's side, which differ in n by the factor r
    kept_row: Size
    side: Words  # [T, B, side_row] read
    side_row: Size
    h: Reals  # [T+1, B, H] read
    dout: Reals  # [T, B, dout_row] read
    dout_row: Size
    dh: Reals  # [B, H] changed, as of the LSTM
    weight: Words  # W_hh packed by rows, read
    lengths: Int64s  # [B] read, or 0
    clear: Bytes  # [T, B] read, or 0
    starts: Int64s  # [T+3] read, or 0


class GruOriginalForward(NamedTuple):
    """All steps of a chunk of the original GRU, whose reset gate acts on h before the product."""

    steps: Size
    batch: Size
    hidden: Size
    depth: Size
    op_row: Size
    reverse: Flag
    time: Size
    units: Flag
    barrier: Team
    gates: Reals  # [T, B, G] read: the input product with both biases, then scratch; rows as of the LSTM's
    kept: Words  # [T, B, kept_row] written: r, z, n for backward; or 0
    kept_row: Size
    side: Words  # [T, B, side_row] written: r * h_prev, which the product reads
    side_row: Size
    h: Reals  # [T+1, B, H] changed
    op: Words  # [T+1, B, op_row] changed
    weight: Words  # rows r and z of W_hh packed by columns, 2 gates, read
    weight_n: Words  # rows n of W_hh packed by columns, 1 gate, read
    ids: Int32s  # [T, B] read, or 0
    table: Reals  # [V, G] read, where there are ids
    lengths: Int64s  # [B] read, or 0
    clear: Bytes  # [T, B] read, or 0
    starts: Int64s  # [T+3] read, or 0
    spare: Reals  # scratch of recurrence_space(...) elements


class GruOriginalBackward(NamedTuple):
    """All steps of a chunk of the original GRU, last to first."""

    steps: Size
    batch: Size
    hidden: Size
    depth: Size  # words of a row of `inner` that count
    side_depth: Size  # words of a row of `inner_n` that count
    reverse: Flag
    time: Size
    start: Flag
    units: Flag
    barrier: Team
    kept: Words  # [T, B, kept_row] changed: r, z, n in, their gradients out
    kept_row: Size
    inner: Words  # [T, B, inner_row] written: the gradients of r and z once more
    inner_row: Size
    inner_n: Words  # [T, B, side_row] written: the gradient of n once more
    side_row: Size
    h: Reals  # [T+1, B, H] read
    dout: Reals  # [T, B, dout_row] read
    dout_row: Size
    dh: Reals  # [B, H] changed, as of the LSTM
    weight: Words  # rows r and z of W_hh packed by rows, read
    weight_n: Words  # rows n of W_hh packed by rows, read
    zeros: Reals  # [H] read
    lengths: Int64s  # [B] read, or 0
    clear: Bytes  # [T, B] read, or 0
    starts: Int64s  # [T+3] read, or 0
    spare: Reals  # [B, H] scratch


class RnnForward(NamedTuple):
    """All steps of a chunk of a simple recurrent layer."""

    steps: Size
    batch: Size
    hidden: Size
    depth: Size
    op_row: Size
    reverse: Flag
    time: Size
    units: Flag
    barrier: Team
    relu: Flag  # instead of tanh
    gates: Reals  # [T, B, H] read: the input product with both biases
    h: Reals  # [T+1, B, H] changed
    op: Words  # [T+1, B, op_row] changed
    weight: Words  # W_hh packed by columns, 1 gate, read
    ids: Int32s  # [T, B] read, or 0
    table: Reals  # [V, H] read, where there are ids
    lengths: Int64s  # [B] read, or 0
    clear: Bytes  # [T, B] read, or 0
    starts: Int64s  # [T+3] read, or 0
    spare: Reals  # scratch of recurrence_space(...) elements


class RnnBackward(NamedTuple):
    """All steps of a chunk of a simple recurrent layer, last to first."""

    steps: Size
    batch: Size
    hidden: Size
    depth: Size
    reverse: Flag
    time: Size
    start: Flag
    units: Flag
    barrier: Team
    relu: Flag
    kept: Words  # [T, B, kept_row] written: the gradients of the gates
    kept_row: Size
    h: Reals  # [T+1, B, H] read
    dout: Reals  # [T, B, dout_row] read
    dout_row: Size
    dh: Reals  # [B, H] changed, as of the LSTM
    weight: Words  # W_hh packed by rows, read
    lengths: Int64s  # [B] read, or 0
    clear: Bytes  # [T, B] read, or 0
    starts: Int64s  # [T+3] read, or 0


class Wave(NamedTuple):
    """The steps of two layers at once, on a GPU: the second layer takes in each step what the first has just made."""

    first: Any  # the record of the layer that goes ahead
    second: Any  # the record of the other layer, of the same type; its gates are one row of biases
    between: Words  # W_ih of the upper layer, packed as the direction needs it, read


def recurrence_space(
    threads: int, lanes: int, columns: int, *, batch: int, rows_each: int, units: bool, whole: bool, op_row: int
) -> int:
    """Elements of scratch for the steps of a recurrence.

    Parameters
    ----------
    threads, lanes : int
        Threads that may take part, elements of a vector.
    columns : int
        Width of the gates, padded.
    batch : int
        Rows of a step.
    rows_each : int
        Elements of the states of one row that a step may need a second time.
    units : bool
        Whether threads share the units, so that each needs its own copy of the states.
    whole : bool
        Whether one product serves all units of a step, as on a GPU.
    op_row : int
        Words of a row of h.
    """
    if whole:
        return batch * (op_row + columns)
    tile = max(128 * lanes, columns)  # a tile of the widest kind, or a row
    return threads * tile + (threads if units else 1) * batch * rows_each


# Heads, series, dropout.


class GatherRows(NamedTuple):
    """out[i] = source[ids[i], :columns], then zeros up to the row's end: embedding."""

    rows: Size
    columns: Size
    ids: Int32s  # [rows] read
    source: Reals  # [V, source_row] read
    source_row: Size
    out: Reals  # [rows, out_row] written
    out_row: Size


class ScatterRows(NamedTuple):
    """out[ids[i], :columns] += source[i, :columns], i ascending: the gradient of `GatherRows`."""

    rows: Size
    columns: Size
    ids: Int32s  # [rows] read
    source: Reals  # [rows, source_row] read
    source_row: Size
    out: Reals  # [V, out_row] added to
    out_row: Size


class ScatterOperands(NamedTuple):
    """`ScatterRows` for a source of words."""

    rows: Size
    columns: Size  # whole vectors
    ids: Int32s  # [rows] read
    source: Words  # [rows, source_row] read
    source_row: Size
    out: Reals  # [V, out_row] added to
    out_row: Size


class SoftmaxCrossEntropy(NamedTuple):
    """losses[i] = log(sum(exp(logits[i]))) - logits[i, targets[i]]; with `gradient` the logits become their gradient."""

    rows: Size
    classes: Size
    logits: Reals  # [rows, row] read, or with `gradient` changed
    row: Size
    targets: Int32s  # [rows] read; a negative target has neither loss nor gradient
    scale: Reals  # [1] read: the factor on the gradient
    losses: Doubles  # [rows] written, in nats
    gradient: Flag
    correct: Bytes  # [rows] written: whether the first of the largest logits is the target's; or 0


class Normalise(NamedTuple):
    """out[t, b] = (x[t, b] - mean) / std, zeros from row b's length on; x is `wide`, or `slim` where that is 0."""

    steps: Size
    batch: Size
    width: Size
    wide: Doubles  # [T, B, width] read, or 0
    slim: Floats  # [T, B, width] read, or 0
    mean: Doubles  # [width] read, or 0: x as it is
    std: Doubles  # [width] read, or 0
    lengths: Int64s  # [B] read, or 0
    out: Reals  # [T, B, width] written


class SquaredError(NamedTuple):
    """losses[i] = the sum over k of (out[i, k] - z[i, k])**2 with z = (targets - mean) / std."""

    rows: Size
    width: Size
    period: Size  # columns after which mean and std repeat
    out: Reals  # [rows, row] read; with `gradient` it becomes the gradient of the mean over rows and columns
    row: Size
    targets: Doubles  # [rows, width] read
    mean: Doubles  # [period] read, or 0: targets as they are
    std: Doubles  # [period] read, or 0
    losses: Doubles  # [rows] written
    absolute: Doubles  # [rows] written: the sum of the absolute differences, in the targets' unit
    gradient: Flag


class Dropout(NamedTuple):
    """data[i, k] = data[i, k] / (1 - p) where element (i, k) is kept, otherwise 0 (random.py)."""

    rows: Size
    width: Size
    data: Reals  # [rows, row] changed in columns :width
    row: Size
    seed: Size  # the seed and the number of the draw: 64 bits each; on a GPU, addresses of one int64 each
    stream: Size
    p: Doubles  # [1] read


# Optimizers and sums over flat buffers (update.py).


class Sgd(NamedTuple):
    """Stochastic gradient descent with momentum."""

    size: Size
    params: Reals  # [size] changed
    grads: Reals  # [size] read
    buffer: Reals  # [size] changed, or 0: no momentum
    hyper: Reals  # read: scale, decay, momentum, -lr
    nesterov: Flag


class Rmsprop(NamedTuple):
    """RMSprop."""

    size: Size
    params: Reals  # [size] changed
    grads: Reals  # [size] read
    square: Reals  # [size] changed
    buffer: Reals  # [size] changed, or 0: no momentum
    hyper: Reals  # read: scale, decay, momentum, -lr, alpha, 1 - alpha, eps


class Adam(NamedTuple):
    """Adam and AdamW."""

    size: Size
    params: Reals  # [size] changed
    grads: Reals  # [size] read
    m: Reals  # [size] changed
    v: Reals  # [size] changed
    hyper: Reals  # read: scale, decay, keep, beta1, 1 - beta1, beta2, 1 - beta2, -rate, unbias, eps


class Scale(NamedTuple):
    """values *= hyper[0]."""

    size: Size
    values: Reals  # [size] changed
    hyper: Reals  # [1] read


class ClipValue(NamedTuple):
    """Each value into -hyper[0]..hyper[0]."""

    size: Size
    values: Reals  # [size] changed
    hyper: Reals  # [1] read


class SquareSums(NamedTuple):
    """sums[j] = the sum of the squares of the j-th `chunk` values."""

    size: Size
    chunk: Size
    values: Reals  # [size] read
    sums: Doubles  # [size / chunk, rounded up] written


class AbsoluteSums(NamedTuple):
    """sums[j] = the sum of the magnitudes of the j-th `chunk` values."""

    size: Size
    chunk: Size
    values: Reals  # [size] read
    sums: Doubles  # [size / chunk, rounded up] written


class Judge(NamedTuple):
    """Whether an optimizer may take its step, and the factor on the gradient (update.py)."""

    rows: Size
    losses: Doubles  # [rows] read: parts of the loss
    chunks: Size
    squares: Doubles  # [chunks] read: parts of the gradient's squared norm
    limits: Doubles  # [2] read: the norm down to which gradients are scaled, and the number of targets
    journal: Doubles  # [5] changed: sum of losses, last loss, last norm, steps taken, whether something was not finite
    hyper: Reals  # [1] written: the scale


@dataclass(frozen=True)
class Operation:
    """Where the kernels of an operation are.

    Attributes
    ----------
    kernel : str or None
        Path of the CPU kernel's factory below this folder; also its name in the store of compiled kernels. None: there is none.
    device : str
        The method that launches it on a GPU, of device/launches.py or of its base class in device/layout.py.
    """

    kernel: str | None
    device: str


OPERATIONS: dict[type, Operation] = {
    Product: Operation("gemm.product", "product"),
    ProductByThree: Operation("gemm.product_by_three", "product"),
    OuterProduct: Operation("outer.product", "outer_product"),
    PackColumns: Operation("pack.pack_columns", "pack_columns"),
    PackRows: Operation("pack.pack_rows", "pack_rows"),
    PackBias: Operation("pack.pack_bias", "pack_bias"),
    AddRows: Operation("pack.add_rows", "add_rows"),
    AddColumns: Operation("pack.add_columns", "add_columns"),
    EmitRows: Operation("sequence.emit_rows", "emit_rows"),
    AbsorbRows: Operation("sequence.absorb_rows", "absorb_rows"),
    OperandRows: Operation("sequence.operand_rows", "operand_rows"),
    FillZeros: Operation("sequence.fill_zeros", "fill_zeros"),
    ClearRows: Operation("sequence.clear_rows", "clear_rows"),
    LstmForward: Operation("cells.lstm.forward", "lstm_forward"),
    LstmBackward: Operation("cells.lstm.backward", "lstm_backward"),
    GruForward: Operation("cells.gru.forward", "gru_forward"),
    GruBackward: Operation("cells.gru.backward", "gru_backward"),
    GruOriginalForward: Operation("cells.gru.original_forward", "gru_original_forward"),
    GruOriginalBackward: Operation("cells.gru.original_backward", "gru_original_backward"),
    RnnForward: Operation("cells.rnn.forward", "rnn_forward"),
    RnnBackward: Operation("cells.rnn.backward", "rnn_backward"),
    Wave: Operation(None, "wave"),
    GatherRows: Operation("head.gather_rows", "gather_rows"),
    ScatterRows: Operation("head.scatter_rows", "scatter_rows"),
    ScatterOperands: Operation("head.scatter_operands", "scatter_operands"),
    SoftmaxCrossEntropy: Operation("head.softmax_cross_entropy", "softmax_cross_entropy"),
    Normalise: Operation("series.normalise", "normalise"),
    SquaredError: Operation("series.squared_error", "squared_error"),
    Dropout: Operation("random.dropout", "dropout"),
    Sgd: Operation("update.sgd", "sgd"),
    Rmsprop: Operation("update.rmsprop", "rmsprop"),
    Adam: Operation("update.adam", "adam"),
    Scale: Operation("update.scale", "scale"),
    ClipValue: Operation("update.clip_value", "clip_value"),
    SquareSums: Operation("update.square_sums", "square_sums"),
    AbsoluteSums: Operation("update.absolute_sums", "absolute_sums"),
    Judge: Operation("update.judge", "judge"),
}
