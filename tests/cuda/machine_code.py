"""What a warp does on its way round a persistent kernel's loop, read from Hopper's machine code, without a GPU.

    found = read(code)                  # a cubin's only kernel, as compile.compiled gives it
    loop = found.step_loop()            # the loop over steps, and its first send to other blocks
    loop.path((4,)), loop.body          # instructions up to the send, product loops taken 4 times; all of the loop

Every instruction says for how many cycles the next one waits, and for which of six scoreboards it waits itself; `cycles` adds
that up. What takes a varying time is given a fixed one: from shared memory and the special functions what they take when
nothing is in the way, from global memory none, since it is on its way while other blocks are waited for. So the sum is no time
but a floor, by which versions are compared. Needs the wheel nvidia-cuda-nvdisasm.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.cuda.compile import _wheels

# Cycles until a result is there, of instructions that do not say it themselves.
LATENCY = {
    "LDS": 30,
    "LDSM": 33,
    "MUFU": 22,
    "S2R": 30,
    "SHFL": 25,
    "I2F": 22,
    "F2I": 22,
    "SYNCS": 25,
    "ATOMG": 600,
    "ATOM": 600,
    "LDGSTS": 40,
    "STAS": 20,
    "STS": 20,
    "STG": 20,
    "BAR": 20,
    "S2UR": 30,
    "R2UR": 12,
    "LDC": 40,
    "ULDC": 20,
    "LD": 30,
    "F2F": 22,
    "I2I": 22,
    "LDL": 100,
}
READ = 15  # cycles until an instruction has read its operands, at most
SPILL = re.compile(r"(LDL|STL)\b")
DOUBLE = re.compile(r"D(ADD|FMA|MUL|SETP|MMA)\b|\S*\.F64|MUFU\.\w+64H")
WHOLE_GPU = re.compile(r"MEMBAR\.\S*(GPU|SYS)|CCTL\.IVALL")  # a fence, or a first-level cache that forgets all it has
_SEND = (re.compile(r"STAS\b"), re.compile(r"(ATOMG|REDG?)\b"))  # to another block of the cluster; or to the counter of a grid
_PRODUCT = re.compile(r"HMMA|FFMA")
_BRANCH = re.compile(r"BRA\b(?!\.DIV).*`\((\.L_x_\d+)\)")  # BRA.DIV: where lanes have parted, which they have not
_LINE = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?);?\s*/\* (0x[0-9a-f]{16}) \*/")
_SECOND = re.compile(r"\s+/\* (0x[0-9a-f]{16}) \*/")
_MOST = 100_000  # instructions of a path


@cache
def disassembler() -> Path | None:
    """Where nvdisasm is, or None."""
    return next(iter(_wheels("*/bin/nvdisasm*")), None)


@dataclass(frozen=True)
class Instruction:
    """One of them; `control` holds stall, scoreboards set, and scoreboards waited for."""

    text: str  # with its predicate
    control: int

    @property
    def bare(self) -> str:
        """Without its predicate."""
        return re.sub(r"^@!?U?P\w+\s+", "", self.text)

    @property
    def conditional(self) -> bool:
        """Whether a predicate stands before it."""
        return self.text.startswith("@")


@dataclass(frozen=True)
class Kernel:
    """A kernel's instructions, and to which of them each branch leads."""

    code: tuple[Instruction, ...]
    targets: dict[int, int]

    def has(self, what: re.Pattern[str]) -> list[str]:
        """The instructions of a kind."""
        return [one.text for one in self.code if what.match(one.bare)]

    def step_loop(self) -> Loop:
        """The outermost loop around the first send to other blocks.

        Raises
        ------
        ValueError
            Where there is none.
        """
        for kind in _SEND:
            for at, one in enumerate(self.code):
                around = [(to, source) for source, to in self.targets.items() if to < at < source]
                if around and kind.match(one.bare):
                    return Loop(self, min(around)[0], at, max(end for start, end in around if start == min(around)[0]))
        raise ValueError("no loop sends to other blocks")


@dataclass(frozen=True)
class Loop:
    """From the instruction number `start` to the branch back, `end`; `send`: the first that sends."""

    kernel: Kernel
    start: int
    send: int
    end: int

    @property
    def body(self) -> Kernel:
        """All its instructions."""
        return Kernel(self.kernel.code[self.start : self.end + 1], {})

    def path(self, turns: Sequence[int]) -> list[Instruction]:
        """Up to the first send, past branches that lead around calls and through what other branches skip.

        turns: how often loops of products are taken, the innermost first; all other loops are taken once.
        """
        code, targets = self.kernel.code, self.kernel.targets
        loops = sorted(
            (source - to, source)
            for source, to in targets.items()
            if self.start < to <= source < self.send and any(_PRODUCT.match(one.bare) for one in code[to:source])
        )
        wanted = {source: count for (_, source), count in zip(loops, turns, strict=False)}
        path, at, taken = [], self.start, dict.fromkeys(wanted, 1)
        while at != self.send:
            one, target = code[at], targets.get(at)
            path.append(one)
            if len(path) > _MOST:
                raise ValueError(f"the path from instruction {self.start} never comes to {self.send}")
            at += 1
            if target is None:
                continue
            back, calls = at - 1, (other.bare.startswith("CALL") for other in code[at : at + 7])
            if not one.conditional or (target >= at and any(calls)):
                at = target
            elif taken.get(back, 0) < wanted.get(back, 0):
                inner = list(wanted)[: list(wanted).index(back)]
                taken |= {back: taken[back] + 1} | dict.fromkeys(inner, 1)
                at = target
        return path


def cycles(path: Sequence[Instruction]) -> int:
    """That one warp needs from the first to the issue of the one after the last."""
    now, ready = 0, [0] * 6
    for one in path:
        stall, write, read, wait = one.control & 15, one.control >> 5 & 7, one.control >> 8 & 7, one.control >> 11 & 63
        now = max([now, *(time for board, time in enumerate(ready) if wait >> board & 1)])
        latency = LATENCY.get(one.bare.split()[0].split(".")[0], 0)
        for board, after in ((write, latency), (read, min(latency, READ))):
            if board < len(ready):
                ready[board] = max(ready[board], now + after)
        now += max(stall, 1)
    return now


def read(code: bytes) -> Kernel:
    """The only kernel of a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        command = [str(disassembler()), "-hex", "-c", file.name]
        return parse(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def parse(listing: str) -> Kernel:
    """From what `nvdisasm -hex -c` writes."""
    texts: list[str] = []
    controls: list[int] = []
    labels: dict[str, int] = {}
    for line in listing.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line.strip()):
            labels[label[1]] = len(texts)
        elif found := _LINE.match(line):
            texts.append(found[1].strip().rstrip("; "))
        elif (found := _SECOND.match(line)) and len(controls) < len(texts):
            controls.append(int(found[1], 16) >> 41)
    code = tuple(map(Instruction, texts, controls))
    branches = ((at, _BRANCH.match(one.bare)) for at, one in enumerate(code))
    return Kernel(code, {at: labels[found[1]] for at, found in branches if found})
