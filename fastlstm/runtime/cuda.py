"""The engine for CUDA devices: operations on device memory, and recorded sequences of them as graphs.

Upper layers run the same code on both; what differs is where arrays lie and how a program runs. Knows no cells.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from ..kernels.device import cuda, forms
from ..kernels.device.launches import Launches
from ..kernels.device.layout import DTYPES
from ..kernels.device.persistent import CELLS, COUNTERS, GROUPS
from ..kernels.operations import Dropout
from . import check
from .arrays import as_numpy
from .program import Calls, Later, Result, recording

# Fields that operations read from memory, so that whole numbers may differ between runs of a graph.
NUMBERS: dict[type, tuple[str, ...]] = {Dropout: ("seed", "stream")}
KEPT = 8  # graphs of one program


engines: dict[tuple[int, str], Cuda] = {}


def engine(device: str, dtype: str) -> Cuda:
    """The engine for "cuda", which is the first device, or "cuda:1" and so on.

    Raises
    ------
    ValueError
        For a device or dtype that there cannot be.
    kernels.cuda.Unavailable
        Where there is no such device.
    """
    name, _, index = device.partition(":")
    if name != "cuda" or not (index.isdecimal() if ":" in device else True):
        raise ValueError(f"device is {device!r}; expected 'cpu', 'cuda' or 'cuda:N'")
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; expected one of {', '.join(map(repr, DTYPES))}")
    key = int(index or 0), dtype
    if key not in engines:
        try:
            engines[key] = Cuda(cuda.device(key[0]), dtype)
        except cuda.Unavailable as error:
            raise cuda.Unavailable(f"device is {device!r}: {error}") from None
    return engines[key]


def describe() -> dict[str, Any] | str:
    """The machine's devices, each with the form that would serve an LSTM of 256 units, 64 rows; or why there are none."""
    try:
        places = [f"cuda:{index}" for index in range(cuda.count())]
        names = [engine(place, "float32").device.name for place in places]
        return {
            place: {
                "name": name,
                "LSTM, H=256, B=64": explain("lstm", 256, 64, device=place)[0],
                "two such layers": explain("lstm", 256, 64, device=place, layers=2)[0],
            }
            for place, name in zip(places, names, strict=True)
        }
    except cuda.Unavailable as error:
        return str(error)


def explain(
    cell: str,
    hidden_size: int,
    batch: int,
    steps: int = 100,
    dtype: str = "float32",
    device: str = "cuda",
    *,
    backward: bool = False,
    layers: int = 1,
) -> list[str]:
    """What each form of a recurrence would need for a shape, by the model of costs; the form that serves it comes first.

    Of two layers: what they need at once and one by one.

    Parameters
    ----------
    cell : {"lstm", "gru", "rnn"}
    hidden_size, batch, steps : int
    dtype, device : str
        As of a layer.
    backward : bool
        The way back, which has a choice of its own.
    layers : {1, 2}
        Layers on top of each other.

    Raises
    ------
    ValueError
        As of `engine`, and for a cell that there is not.

    Source: kernels/device/forms.py; all figures are estimates.
    """
    check.choice("cell", cell, tuple(CELLS))
    if layers not in (1, 2):
        raise ValueError(f"layers is {layers!r}; expected 1 or 2")
    place = engine(device, dtype).device
    shape = (cell, backward, dtype, hidden_size, batch)
    plan = forms.choose(*shape, steps, place)
    if layers == 2:
        at_once = forms.wave(*shape, place.chip) if place.chip else None
        apart = forms.one_by_one(*shape, steps, place.chip) * 1e6 / steps if place.chip else 0.0
        lines = [f"one by one: about {apart:.2f} us a step of both layers", *([str(at_once)] if at_once else [])]
        return lines if forms.overlap(*shape, steps, place) is None else lines[::-1]
    listed = forms.estimates(*shape, place.chip) if place.chip else ()
    return [str(one) for one in sorted(listed, key=lambda one: (one.plan != plan, one.seconds(steps)))]


class Cuda:
    """Runs operations of one dtype on one device, as `engine.Engine` says.

    Parameters
    ----------
    device : kernels.cuda.Device
    dtype : str
        "float32", "float64", and with other products "tf32", "bfloat16" and "float16".
    """

    lanes = 1
    whole = True  # sequences are not cut into chunks, nor shared by threads

    def __init__(self, device: Any, dtype: str) -> None:
        self.device, self.dtype = device, dtype
        self.narrow = DTYPES[dtype][2] > 1
        self.storage = "float64" if dtype == "float64" else "float32"
        self.itemsize = np.dtype(self.storage).itemsize
        self.kind = f"cuda:{device.index}"
        self._launches = Launches(device, dtype)

    def __reduce__(self) -> Any:
        return engine, (self.kind, self.dtype)  # copies of layers share it

    def padded(self, size: int) -> int:
        """Nothing is padded."""
        return size

    def depth(self, size: int) -> int:
        """Elements of storage that a product over `size` elements reads of a row: whole 16 bytes where words are narrow."""
        return -(-size // 8) * 4 if self.narrow else size

    row = depth

    def stride(self, size: int) -> int:
        """Rows follow each other."""
        return size

    def empty(self, *shape: int) -> Any:
        """Uninitialised array on the device."""
        return self.device.empty(shape, self.storage)

    def zeros(self, *shape: int) -> Any:
        """Array of zeros on the device."""
        return self.device.zeros(shape, self.storage)

    def buffer(self, size: int, dtype: str) -> Any:
        """One-dimensional array of zeros for parameters."""
        return self.device.zeros((size,), dtype)

    def meeting(self, ws: Any) -> Any:
        """Counters at which blocks of a launch meet, zero between launches; one launch at a time uses a workspace's."""
        return ws.cleared("counters", COUNTERS * GROUPS)

    def overlaps(self, cell: str, backward: bool, hidden: int, batch: int, steps: int) -> bool:
        """Whether two layers' steps are better done at once, by the model of costs."""
        return forms.overlap(cell, backward, self.dtype, hidden, batch, steps, self.device) is not None

    def prepare(self, *records: type) -> None:
        """Do nothing: CuPy compiles without a lock of ours."""

    def queue(self) -> Any:
        """The current stream."""
        return self.device.queue()

    def mark(self) -> Any:
        """The current stream and its work so far, which others can wait for."""
        return self.device.mark()

    def new(self, shape: tuple[int, ...]) -> Any:
        """Return an uninitialised array of a shape for a caller."""
        return self.empty(*shape)

    def located(self, array: np.ndarray) -> Any:
        """A copy of an array of NumPy's on the device."""
        return self.device.upload(array)

    def take(self, value: Any) -> Any:
        """An argument as an array: what lies on a device stays there, by DLPack or __cuda_array_interface__.

        Raises
        ------
        BufferError
            For a tensor of torch's while torch captures a graph: its work would wait for what has not run.
        """
        if self.device.owns(value):
            return value
        if hasattr(type(value), "detach"):
            torch = sys.modules.get("torch")
            if torch and isinstance(value, torch.Tensor) and value.is_cuda and torch.cuda.is_current_stream_capturing():
                raise BufferError("torch's current stream is being captured; expected calls outside of torch.cuda.graph")
            value = value.detach()  # torch tells neither interface of a tensor that requires gradients
        if str(getattr(value, "device", "")).startswith("cuda") or hasattr(value, "__cuda_array_interface__"):
            return self.device.view(value)
        return as_numpy(value)

    def program(self, *alive: Any) -> Graph:
        """A program to record into."""
        return Graph(self.device, *alive)

    def number(self, argument: Any) -> Any:
        """An argument as the operations take it: arrays of the device by address, None as 0; a tuple is for the host."""
        if argument is None:
            return 0
        if isinstance(argument, tuple):
            return argument
        return int(self.device.address(argument) if self.device.owns(argument) else argument)

    def run(self, record: Any, *, work: int = 0, shared_by: Any = None, meets: bool = False) -> None:
        """Launch an operation on the current stream, or record it. Arrays in host memory are read, not written."""
        if recording.program is not None:
            recording.program.add(self, record)
            return
        self._launches.run(resolved(self._held(record), self.number))

    def _held(self, record: Any) -> Any:
        """Return a record with what lies in host memory brought to the device."""
        numbers = NUMBERS.get(type(record), ())
        held = {}
        for name, value in zip(record._fields, record, strict=True):
            if hasattr(value, "_fields"):  # the record of a layer of a `Wave`
                held[name] = self._held(value)
            elif isinstance(value, np.ndarray):
                held[name] = self.device.upload(value)
            elif name in numbers and not isinstance(value, Later):
                held[name] = self.device.upload(np.array([value], np.int64))
        return record._replace(**held)


def resolved(record: Any, number: Callable[[Any], Any]) -> Any:
    """Return a record whose fields are numbers: `number` of each, also of the records in it."""
    return type(record)(*(resolved(value, number) if hasattr(value, "_fields") else number(value) for value in record))


def _laters(record: Any) -> Iterator[Later]:
    for value in record:
        if hasattr(value, "_fields"):
            yield from _laters(value)
        elif isinstance(value, Later):
            yield value


class Graph(Calls):
    """Operations in order, launched as one graph from the second run on: `program.Program` for a device.

    Arrays given for a `Later` are copied to places of the program's own, and from there for a `Result`: a graph holds
    addresses. Whole numbers stand in one array on the device. A graph is made for each choice of what is given and what is
    None, and of the memory that products of a stream have.
    """

    def __init__(self, device: Any, *alive: Any) -> None:
        super().__init__()
        self.device = device
        self._alive: list[Any] = [*alive]
        self._calls: list[tuple[Cuda, Any]] = []  # engines and records
        self._laters: dict[str, bool] = {}  # whether the place is written to
        self._places: dict[str, Any] = {}
        self._numbers: Any = None
        self._graphs: dict[tuple[Any, ...], Callable[[], None] | None] = {}
        self._marks: set[Any] = set()  # of the packed weights, as they were when `_stamps` was
        self._marked: Any = None

    def add(self, engine: Cuda, record: Any) -> None:
        """Append an operation."""
        for later in _laters(record):
            self._laters[later.name] = self._laters.get(later.name, False) or isinstance(later, Result)
        self._calls.append((engine, engine._held(record)))

    def _empty(self) -> Graph:
        return Graph(self.device)

    def run(self, **values: Any) -> None:
        """Launch all, with a value for each name that was recorded as `Later`; others are ignored."""
        queue = self.device.queue()
        reserved = self.device.reserve()  # before anything is launched, since memory may run out
        self._renew()
        self._await(queue)
        given, whole, before, after = list[str](), dict[str, int](), list[tuple[Any, Any]](), list[tuple[Any, Any]]()
        for name, written in self._laters.items():
            value = values[name]
            if value is None:
                continue
            given.append(name)
            if isinstance(value, int):
                whole[name] = value
            elif written:
                after.append((value, self._place(name, value)))
            else:
                before.append((self._place(name, value), value))
        if whole:
            if self._numbers is None:
                self._numbers = self.device.zeros((len(self._laters),), np.int64)
                self._graphs.clear()
            before.append((self._numbers, np.array([whole.get(name, 0) for name in self._laters], np.int64)))
        if before:
            self.device.copy(*before)
        self._launch(reserved, given, whole)
        if after:
            self.device.copy(*after)

    def _await(self, queue: Any) -> None:
        """Behind the making of the packed weights, which another stream may have been given."""
        if self._packs_itself:
            return
        if self._marked is not self._stamps:
            self._marks, self._marked = {packs.mark(kind) for packs, kind in self.needs}, self._stamps
        for mark in self._marks:
            if mark[0] != queue:
                self.device.wait(mark)

    def _place(self, name: str, value: Any) -> Any:
        place = self._places.get(name)
        if place is None or place.shape != value.shape or place.dtype != value.dtype:
            place = self._places[name] = self.device.empty(value.shape, value.dtype)
            self._graphs.clear()
        return place

    def _launch(self, reserved: int, given: list[str], whole: dict[str, int]) -> None:
        """By a graph; the first time one by one, which compiles kernels and lets libraries make what they need."""
        key = (*given, reserved)
        graph = self._graphs.get(key)
        if graph is None:
            addresses = {name: self._address(name, name in whole) for name in given}
            if key in self._graphs:
                graph = self._graphs[key] = self.device.graph(lambda: self._make(addresses))
                for old in list(self._graphs)[:-KEPT]:
                    del self._graphs[old]
            else:
                self._make(addresses)
                self._graphs[key] = None  # only now: what a first run makes must not be made while a graph is captured
        if graph is not None:
            graph()

    def _address(self, name: str, whole: bool) -> int:
        if whole:
            return int(self.device.address(self._numbers)) + 8 * list(self._laters).index(name)
        return int(self.device.address(self._places[name]))

    def _make(self, addresses: dict[str, int]) -> None:
        """Launch all, one by one."""
        for engine, record in self._calls:
            engine._launches.run(resolved(record, partial(self._number, engine, addresses)))

    def _number(self, engine: Cuda, addresses: dict[str, int], argument: Any) -> Any:
        if not isinstance(argument, Later):
            return engine.number(argument)
        base = addresses.get(argument.name, 0)
        return base and base + argument.offset

    def runner(self) -> Callable[[], None]:
        """`run` for a program without a `Later`."""
        return self.run
