"""From a kernel's Python function to object code, by Numba. Imported only where nothing compiled is stored yet."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from ..vector.amx import release
from ..vector.parts import ARM, OPTIONS, X86, device
from ..vector.simd import Simd, element
from . import jit

_FLUSH = 0x8040 if X86 else 1 << 24  # FTZ and DAZ in MXCSR; FZ in FPCR


def _swap_float_mode(builder: Any, change: Callable[[Any], Any]) -> Any:
    """Replace the thread's floating-point control word w by change(w); the old word as an int64."""
    module, i32, i64 = builder.module, ir.IntType(32), ir.IntType(64)

    def call(name: str, kind: ir.FunctionType, *values: Any) -> Any:
        return builder.call(cgutils.get_or_insert_function(module, kind, name), values)

    if X86:
        slot = cgutils.alloca_once(builder, i32)
        pointer = builder.bitcast(slot, ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [pointer.type])
        call("llvm.x86.sse.stmxcsr", kind, pointer)
        old = builder.zext(builder.load(slot), i64)
        builder.store(builder.trunc(change(old), i32), slot)
        call("llvm.x86.sse.ldmxcsr", kind, pointer)
        return old
    if ARM:
        old = call("llvm.aarch64.get.fpcr", ir.FunctionType(i64, []))
        call("llvm.aarch64.set.fpcr", ir.FunctionType(ir.VoidType(), [i64]), change(old))
        return old
    return ir.Constant(i64, 0)


@intrinsic
def flush_denormals(typing: Any) -> Any:
    """Treat denormals as zero from here on: microcode assists would cost a hundred times. Returns the mode before."""
    flush = ir.Constant(ir.IntType(64), _FLUSH)
    return types.int64(), lambda context, b, sig, a: _swap_float_mode(b, lambda old: b.or_(old, flush))


@intrinsic
def restore_float_mode(typing: Any, mode: Any) -> Any:
    """Give the caller its own floating-point mode back."""
    return types.int64(types.int64), lambda context, b, sig, a: _swap_float_mode(b, lambda old: a[0])


def _record(record: type) -> Any:
    """Numba's type of a record of int64."""
    return types.NamedUniTuple(types.int64, len(record._fields), record)  # type: ignore[attr-defined]


def _unpack(record: type) -> Any:
    """A function from the address of a record's fields, int64 one after another, to the record."""
    kind = _record(record)

    @intrinsic
    def unpack(typing: Any, address: Any) -> Any:
        def emit_ir(context: Any, b: Any, sig: Any, a: Any) -> Any:
            i64 = ir.IntType(64)
            values = [b.load(element(b, a[0], ir.Constant(i64, k), i64)) for k in range(kind.count)]
            return context.make_tuple(b, kind, values)

        return kind(types.int64), emit_ir

    return unpack


def _record_of(function: Callable[..., Any]) -> type | None:
    """The record that a kernel's last parameter is annotated with, if any."""
    *_, last = inspect.signature(function, eval_str=True).parameters.values()
    return last.annotation if hasattr(last.annotation, "_fields") else None


MULTIPLYING = ("gemm", "outer", "cells")  # modules whose jobs may leave tile registers in use


def external(simd: Simd, name: str) -> Any:
    """A function of one record that calls a `jit.plain` function by its name, which is compiled once for all its callers."""
    symbol = jit.symbol_of(name, simd.key, jit.isa_of(simd.width))
    jit.compiled(name, simd.key)  # the symbol must be there when Numba links the caller

    @intrinsic
    def part(typing: Any, record: Any) -> Any:
        def emit_ir(context: Any, b: Any, sig: Any, a: Any) -> Any:
            i64 = ir.IntType(64)
            fields = cgutils.unpack_tuple(b, a[0])
            kind = ir.FunctionType(ir.VoidType(), [i64] * len(fields))
            b.call(cgutils.get_or_insert_function(b.module, kind, symbol), fields)
            return context.get_dummy_value()

        return types.void(record), emit_ir

    return part


def _factory(name: str) -> Any:
    module, _, factory = name.rpartition(".")
    return getattr(importlib.import_module(f"..{module}", __package__), factory)


def _plain(function: Callable[..., Any], result: str) -> tuple[Any, Any]:
    """A C function of int64: those that a function takes, or the fields of the record that it takes."""
    record = _record_of(function)
    count = len(record._fields) if record else len(inspect.signature(function).parameters)  # type: ignore[attr-defined]
    signature = getattr(types, result)(*[types.int64] * count)
    if record is not None:
        names = ", ".join(f"a{k}" for k in range(count))
        scope: dict[str, Any] = {"function": njit(inline="always", **OPTIONS)(function), "record": record}
        exec(f"def whole({names}): function(record({names}))", scope)  # a C function's arguments have to be written one by one
        function = scope["whole"]
    return cfunc(signature, **OPTIONS)(function), signature


def _job(name: str, simd: Simd) -> tuple[Any, Any]:
    """A kernel as a compiled function, and its signature."""
    factory = _factory(name)
    function = factory(simd)
    if hasattr(factory, "plain"):
        return _plain(function, factory.plain)
    record = _record_of(function)
    if record is None:
        raise TypeError(f"kernel {name} takes no record; expected (thread, threads, a: Record)")
    kernel, unpack = device(function), _unpack(record)

    if simd.narrow == "amx" and name.split(".")[0] in MULTIPLYING:

        def run(arguments, thread, threads):
            mode = flush_denormals()
            kernel(thread, threads, unpack(arguments))
            release()
            restore_float_mode(mode)

    else:

        def run(arguments, thread, threads):
            mode = flush_denormals()
            kernel(thread, threads, unpack(arguments))
            restore_float_mode(mode)

    signature = types.void(types.int64, types.int64, types.int64)
    return cfunc(signature, **OPTIONS)(run), signature


def _export(symbol: str, native: str, signature: Any) -> str:
    """LLVM text of a C function around Numba's native one, which returns a status and takes two more pointers."""
    arguments = ", ".join(f"i64 %a{k}" for k in range(len(signature.args)))
    void = signature.return_type == types.void
    kind, slot = ("void", "ptr") if void else ("i64", "i64")
    back = "ret void" if void else "%r = load i64, ptr %result\n  ret i64 %r"
    return f"""
define {kind} @"{symbol}"({arguments}) {{
  %result = alloca {slot}
  %error = alloca ptr
  %status = call i32 @"{native}"(ptr %result, ptr %error, {arguments})
  {back}
}}
"""


def emit(name: str, key: str, isa: str) -> tuple[bytes, list[str]]:
    """Object code whose one exported function is `jit.symbol_of` it, and the names of the kernels that it calls."""
    symbol = jit.symbol_of(name, key, isa)
    dtype, _, narrow = key.partition("-")
    job, signature = _job(name, Simd("float32" if narrow else dtype, jit.WIDTHS[isa], narrow))
    # Numba's own C wrapper would print errors by way of Python; a kernel cannot raise, so a bare one does.
    module = llvm.parse_assembly(job.inspect_llvm() + _export(symbol, job.native_name.removeprefix("cfunc."), signature))
    # One name leaves the file, all others are its own: files compiled apart can be loaded together.
    for value in [*module.functions, *module.global_variables]:
        if value.name != symbol and not value.is_declaration:
            value.linkage = "internal"
    machine = jit.target_machine()
    passes = llvm.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    passes.add_strip_dead_prototype_pass()
    passes.run(module, llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options()))
    needs = []
    for value in module.functions:
        if value.is_declaration and value.name.startswith("fastlstm."):
            needs.append(jit.name_in(value.name))
        elif value.is_declaration and not value.name.startswith(("llvm.", "mem")):
            raise RuntimeError(f"kernel {symbol} calls {value.name}: kernels may not call the Python runtime")
    return machine.emit_object(module), needs
