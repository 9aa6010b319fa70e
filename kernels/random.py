"""Dropout drawn from counters, so that every engine, every thread and a resumed run drop the same elements.

Source: Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), Philox4x32-10. Element
(i, k) of a logical array [rows, width] has the index n = i * width + k and the 32-bit word n % 4 of the block with

    counter = (n // 4 mod 2**32, n // 4 div 2**32, stream mod 2**32, stream div 2**32)
    key     = (seed mod 2**32, seed div 2**32)

Word 0 is the first of the block's four. The element is kept iff its word >= p * 2**32 and p < 1.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .gemm import share
from .operations import Dropout
from .vector.lanes import masked_load, masked_store
from .vector.simd import I32, I64, Simd, get_f64

BLOCK = 32  # elements drawn at once: eight counters side by side, whatever the vector width
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_STEPS = 0x9E3779B9, 0xBB67AE85  # of the key, from round to round
_ROUNDS = 10


def _spread(builder: Any, value: Any, lanes: int) -> Any:
    kind = ir.VectorType(value.type, lanes)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(I32, 0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))


def _splat(value: int) -> ir.Constant:
    return ir.Constant(ir.VectorType(I64, 8), [value] * 8)


def _emit_words(b: Any, block: Any, seed: Any, stream: Any) -> Any:
    """LLVM vector of the block's 32 words, in the order of the elements.

    Every 32-bit number stands in a lane of 64 bits: processors have that multiplication, of the lower halves, as one
    instruction. Upper halves that it ignores are left dirty until they would matter.
    """
    low, half = _splat(0xFFFFFFFF), _splat(32)
    first = b.mul(block, ir.Constant(I64, 8))
    counter = b.add(_spread(b, first, 8), ir.Constant(ir.VectorType(I64, 8), list(range(8))))
    words = [counter, b.lshr(counter, half), _spread(b, stream, 8), b.lshr(_spread(b, stream, 8), half)]
    keys = [seed, b.lshr(seed, ir.Constant(I64, 32))]
    for _ in range(_ROUNDS):
        products = [b.mul(b.and_(words[2 * n], low), _splat(_MULTIPLIERS[n])) for n in (0, 1)]
        keyed = [b.xor(words[2 * n + 1], _spread(b, keys[n], 8)) for n in (0, 1)]
        upper = [b.lshr(product, half) for product in products]
        words = [b.xor(upper[1], keyed[0]), products[1], b.xor(upper[0], keyed[1]), products[0]]
        keys = [b.add(key, ir.Constant(I64, step)) for key, step in zip(keys, _STEPS, strict=True)]
    pairs = [b.or_(b.and_(words[n], low), b.shl(words[n + 1], half)) for n in (0, 2)]
    order = ir.Constant(ir.VectorType(I32, 16), [n // 2 + n % 2 * 8 for n in range(16)])
    return b.bitcast(b.shuffle_vector(*pairs, order), ir.VectorType(I32, BLOCK))


@intrinsic
def draw(typing: Any, block: Any, seed: Any, stream: Any, threshold: Any) -> Any:
    """draw(block, seed, stream, threshold) -> int64 whose bit n is set iff the word of element n is >= threshold."""

    def emit(context: Any, b: Any, sig: Any, a: Any) -> Any:
        kept = b.icmp_unsigned(">=", _emit_words(b, *a[:3]), _spread(b, b.trunc(a[3], I32), BLOCK))
        return b.zext(b.bitcast(kept, I32), I64)

    return types.int64(*[types.int64] * 4), emit


def _make_drop(simd: Simd) -> Any:
    """drop(address, first, last, kept, factor): elements first..last of a block whose element 0 stands at `address`."""
    block = Simd(simd.dtype, BLOCK * simd.itemsize)

    def mask_of(b: Any, bits: Any) -> Any:
        return b.bitcast(b.trunc(bits, I32), ir.VectorType(ir.IntType(1), BLOCK))

    def dropped(b: Any, x: Any, bits: Any, factor: Any) -> Any:
        return b.select(mask_of(b, bits), b.fmul(x, block.broadcast(b, factor)), block.constant(0.0))

    @intrinsic
    def whole(typing: Any, address: Any, kept: Any, factor: Any) -> Any:
        def emit(context: Any, b: Any, sig: Any, a: Any) -> Any:
            pointer = block.vector_at(b, a[0], ir.Constant(I64, 0))
            x = b.load(pointer, align=block.itemsize)
            b.store(dropped(b, x, a[1], a[2]), pointer, align=block.itemsize)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, block.scalar), emit

    @intrinsic
    def part(typing: Any, address: Any, inside: Any, kept: Any, factor: Any) -> Any:
        def emit(context: Any, b: Any, sig: Any, a: Any) -> Any:
            mask, zero = mask_of(b, a[1]), ir.Constant(I64, 0)
            at = block.vector_at(b, a[0], zero)
            x = masked_load(b, at, mask, block.itemsize)
            masked_store(b, at, mask, block.itemsize, dropped(b, x, a[2], a[3]))
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64, block.scalar), emit

    return whole, part


def dropout(simd: Simd) -> Any:
    """data[i, k] = data[i, k] / (1 - p) where kept, else 0, in place; the same call on a gradient is its backward.

    data: rows of `row` elements, of which the first `width` count; p: one float64 in [0, 1], by address; seed and stream:
    64 bits each, as int64. Threads split the elements.
    """
    whole, part = _make_drop(simd)
    size, scalar = simd.itemsize, simd.scalar

    def kernel(thread, threads, a: Dropout):
        wanted = get_f64(a.p, 0) * 4294967296.0
        threshold = types.int64(wanted)
        threshold = min(threshold + 1 if threshold < wanted else threshold, 4294967295)
        # Of p = 1 one word would be kept, as no threshold of 32 bits lies above it; and infinity times zero is not zero.
        some = types.int64(-1 if get_f64(a.p, 0) < 1.0 else 0)
        factor = scalar(1.0 / (1.0 - get_f64(a.p, 0)) if get_f64(a.p, 0) < 1.0 else 0.0)
        total = a.rows * a.width
        begin, end = share((total + BLOCK - 1) // BLOCK, thread, threads, 1)
        i = begin * BLOCK // a.width
        for block in range(begin, end):
            kept = draw(block, a.seed, a.stream, threshold) & some
            first, stop = block * BLOCK, min(total, (block + 1) * BLOCK)
            while first < stop:
                last = min(stop, (i + 1) * a.width)
                at = a.data + (i * (a.row - a.width) + block * BLOCK) * size
                if last - first == BLOCK:
                    whole(at, kept, factor)
                else:
                    inside = (1 << (last - block * BLOCK)) - (1 << (first - block * BLOCK))
                    part(at, inside, kept, factor)
                if last == (i + 1) * a.width:
                    i += 1
                first = last

    return kernel
