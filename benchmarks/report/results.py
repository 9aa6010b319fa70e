"""What the stored results hold that the report asks for: times of training steps, learning runs, and why something is absent.

article-speed.json, and article-speed-NAME.json of other machines, are records of the suite that `pytest --benchmark-only` runs;
the times in one are of one machine, and so are the ratios between them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from benchmarks.report import tables

NAMES = tables.NAMES | {"transformer": "Transformer"}
LARGER = {"transformer-large": "Transformer, large", "lstm-512": "LSTM, 512 units", "lstm-3-layers": "LSTM, 3 layers"}
TRANSFORMERS = {"same size": "Transformer of the same size", "large": "Transformer, large"}
EPOCHS, STEPS = 50, 156  # steps of 64 x 100 characters in the nine tenths of the text that are trained on
STEP = {"CPU": "training step", "GPU": "training step on the GPU"}
WRITTEN_BY = {
    "article-speed": "python -m pytest --benchmark-only benchmarks --record article-speed",
    "article-learning": "python -m benchmarks.learning.learn collect FOLDER article-learning RUN ...",
    "memory-span": "python -m benchmarks.learning.memory_span FOLDER",
    "generation": "python -m benchmarks.learning.generation FOLDER",
    "repeat": "python -m benchmarks.speed.repeat FIRST SECOND --record repeat",
    "attention-memory": "python -m benchmarks.speed.attention_memory --record attention-memory",
    "grid": "python -m benchmarks.speed.grid --record grid",
    "bfloat16-speed": "python -m benchmarks.speed.grid --section bfloat16 --record bfloat16-speed",
    "latency": "python -m benchmarks.speed.latency --record latency",
    "roofline": "python -m benchmarks.speed.roofline --record roofline",
    "gpu": "make gpu",
    "torch-layers": "python -m benchmarks.speed.torch_layers --record torch-layers",
    "gate-activity": "python -m benchmarks.learning.gates",
}


def absent(name: str) -> str:
    """Why a result is not there."""
    by = f"; `{WRITTEN_BY[name]}` writes it" if name in WRITTEN_BY else ""
    missing = f"there is no benchmarks/results/{name}.json{by}"
    return f"no machine with a GPU was at hand: {missing} on one" if name == "gpu" else missing


def content(name: str) -> dict[str, Any] | None:
    """A result file, if it is there."""
    return tables.read(name) if tables.exists(f"{name}.json") else None


class Time(NamedTuple):
    """Seconds of a training step, on what, and in which file."""

    seconds: float
    where: str
    file: str


def machine(found: dict[str, Any], side: str = "CPU") -> str:
    """Processor and threads, or the GPU where its name is stored."""
    m = found["machine"]
    return f"{m['processor']}, {m['threads']} threads" if side == "CPU" else m.get("gpu", f"the GPU beside {m['processor']}")


def suites() -> dict[str, dict[str, Any]]:
    """Records of the suite, article-speed.json first."""
    names = sorted((path.stem for path in tables.RESULTS.glob("article-speed*.json")), key=lambda name: (len(name), name))
    return {name: tables.read(name) for name in names}


def step(side: str, case: str, by: str) -> Time | None:
    """The article's training step: of a cell, or of one of `TRANSFORMERS` by "transformer"."""
    for name, found in suites().items():
        if one := found["results"].get(f"{STEP[side]} {case}", {}).get(by):
            return Time(one["seconds"], machine(found, side), name)
    gpu = content("gpu") if side == "GPU" else None
    milliseconds = (gpu or {"results": {}})["results"].get("step", {}).get(f"{case} float32", {}).get(by)
    return (
        None
        if gpu is None or milliseconds is None
        else Time(milliseconds / 1e3, gpu["results"]["machine"]["device"]["device"], "gpu")
    )


def stored_ratio(claim: str, by: str) -> tuple[float, str] | None:
    """A ratio that the suite computed from contests of one session, and on what."""
    for found in suites().values():
        one = found.get("ratios", {}).get(claim, {}).get(by, {})
        if "value" in one:
            sides = ["CPU"] * ("CPU" in claim) + ["GPU"] * ("GPU" in claim)
            return one["value"], ", ".join(machine(found, side) for side in sides)
    return None


def no_step(side: str, case: str, by: str) -> str:
    """Why there is no such time."""
    found = suites()
    for one in found.values():
        if why := one.get("not measured", {}).get(f"{STEP[side]} {case}", {}).get(by):
            return str(why)
    if side == "GPU" and content("gpu") is None:
        return absent("gpu")
    return f"no {STEP[side]} of the {NAMES.get(case, case)} by {by} is stored" if found else absent("article-speed")


def runs() -> list[tuple[str, dict[str, Any]]]:
    """All learning runs: a name of what sets each apart, and the run with its machine."""
    found = []
    for path in sorted(tables.RESULTS.glob("*-learning.json")):
        file = tables.read(path.stem)
        for cell, run in file["results"].items():
            s = run["settings"]
            kind = [] if s["dtype"] == "float32" else [s["dtype"]]
            name = ", ".join([tables.label(cell, s).removesuffix(", same size"), *kind])
            about = {"cell": s["cell"], "tokens": s["tokens"], "file": path.stem, "clock": tables.clock(file, run)}
            found.append((name, {"machine": file["machine"]} | run | about))
    return found


def best_runs() -> dict[str, dict[str, dict[str, Any]]]:
    """By kind of tokens and cell, the run of the article's sizes: in float32 if there is one, and of several the best."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, run in runs():
        plain = name.removesuffix(f", {run['settings']['dtype']}")
        if plain in NAMES.values():
            own = found.setdefault(run["tokens"], {})
            if run["cell"] not in own or _rank(run) < _rank(own[run["cell"]]):
                own[run["cell"]] = run
    return found


def _rank(run: dict[str, Any]) -> tuple[bool, float]:
    """What is preferred comes first."""
    return run["settings"]["dtype"] != "float32", run["best_loss"]


def larger_runs(cell: str) -> dict[str, dict[str, dict[str, Any]]]:
    """By kind of tokens and name, the runs of one cell that are larger than the article's."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, run in runs():
        if run["cell"] == cell and any(size in name for size in ("large", "units", "layers")):
            found.setdefault(run["tokens"], {})[name] = run
    return found
