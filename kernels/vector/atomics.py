"""Atomic memory operations, calls through an address, a polite spin and a barrier, for the thread team and its jobs."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .parts import ARM, X86, device
from .simd import I64, element


@intrinsic
def load(typing: Any, address: Any, index: Any) -> Any:
    """The int64 at address[index]; what was written before it was stored is seen."""
    sig = types.int64(types.int64, types.int64)
    return sig, lambda context, b, sig, a: b.load_atomic(element(b, a[0], a[1], I64), "seq_cst", 8)


@intrinsic
def store(typing: Any, address: Any, index: Any, value: Any) -> Any:
    """Set address[index]; a full barrier."""

    def emit(context: Any, b: Any, sig: Any, a: Any) -> Any:
        b.store_atomic(a[2], element(b, a[0], a[1], I64), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), emit


def _read_modify_write(operation: str) -> Any:
    @intrinsic
    def modify(typing: Any, address: Any, index: Any, value: Any) -> Any:
        sig = types.int64(types.int64, types.int64, types.int64)
        return sig, lambda context, b, sig, a: b.atomic_rmw(operation, element(b, a[0], a[1], I64), a[2], "seq_cst")

    return modify


add, set_bits, keep_bits = (_read_modify_write(operation) for operation in ("add", "or", "and"))


@intrinsic
def exchange(typing: Any, address: Any, index: Any, old: Any, new: Any) -> Any:
    """Set address[index] to `new` if it is `old`; whether it was."""

    def emit(context: Any, b: Any, sig: Any, a: Any) -> Any:
        both = b.cmpxchg(element(b, a[0], a[1], I64), a[2], a[3], "seq_cst")
        return b.extract_value(both, 1)

    return types.boolean(*[types.int64] * 4), emit


@intrinsic
def call(typing: Any, function: Any, argument: Any, thread: Any, threads: Any) -> Any:
    """function(argument, thread, threads) by its address."""

    def emit(context: Any, b: Any, sig: Any, a: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [I64] * 3)
        b.call(b.inttoptr(a[0], kind.as_pointer()), a[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), emit


@intrinsic
def pause(typing: Any) -> Any:
    """Tell the processor that this is a spin."""

    def emit(context: Any, b: Any, sig: Any, a: Any) -> Any:
        i32 = ir.IntType(32)
        if X86:
            kind = ir.FunctionType(ir.VoidType(), [])
            b.call(cgutils.get_or_insert_function(b.module, kind, "llvm.x86.sse2.pause"), [])
        elif ARM:
            kind = ir.FunctionType(ir.VoidType(), [i32])
            b.call(cgutils.get_or_insert_function(b.module, kind, "llvm.aarch64.hint"), [ir.Constant(i32, 1)])
        return context.get_dummy_value()

    return types.void(), emit


ARRIVED, PHASE, YIELD = range(3)  # a barrier: three int64, the last the address of a function that lets other threads run
PATIENCE = 2_000  # pauses before a waiting thread offers its processor to others


@device
def wait(barrier, spins):
    """A turn of a loop that waits for other threads; returns how many there have been."""
    pause()
    if spins >= PATIENCE and load(barrier, YIELD) != 0:
        call(load(barrier, YIELD), 0, 0, 0)
    return spins + 1


@device
def sync(barrier, threads):
    """Wait until all `threads` have come here; what they wrote before is then seen by all."""
    if threads > 1:
        phase = load(barrier, PHASE)
        if add(barrier, ARRIVED, 1) == threads - 1:
            store(barrier, ARRIVED, 0)
            add(barrier, PHASE, 1)
        else:
            spins = 0
            while load(barrier, PHASE) == phase:
                spins = wait(barrier, spins)
