"""Reads from the stored results what the report needs: times of training steps, learning runs, and reasons for what is missing.

`pytest --benchmark-only` writes article-speed.json, and article-speed-NAME.json on other machines. All times in one such file
are of one machine, and so are the ratios between them. `make gpu` writes gpu-MACHINE-DATE.json, and the newest such file is
read.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from benchmarks import article
from benchmarks.measure.record import gpu_files
from benchmarks.report import tables

NAMES = tables.NAMES | {"transformer": "Transformer"}
LARGER = {"transformer-large": "Transformer, large", "lstm-512": "LSTM, 512 units", "lstm-3-layers": "LSTM, 3 layers"}
TRANSFORMERS = {"same size": "Transformer of the same size", "large": "Transformer, large"}
STEP = {"CPU": "training step", "GPU": "training step on the GPU"}  # names of contests in article-speed.json
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
    """Return why a result is missing, and which command writes it."""
    by = f"; `{WRITTEN_BY[name]}` writes it" if name in WRITTEN_BY else ""
    if name == "gpu":
        return f"no machine with a GPU was at hand: there is no benchmarks/results/gpu-MACHINE-DATE.json{by} on one"
    return f"there is no benchmarks/results/{name}.json{by}"


def content(name: str) -> dict[str, Any] | None:
    """Return a result file's content, or None if there is no such file. "gpu" is the newest file of a GPU."""
    if name == "gpu":
        names = [path.stem for path in gpu_files(tables.RESULTS)]
        return tables.read(names[0]) if names else None
    return tables.read(name) if tables.exists(f"{name}.json") else None


class Time(NamedTuple):
    """The time of a training step in seconds, the machine, and the file that has it."""

    seconds: float
    where: str
    file: str


def machine(found: dict[str, Any], side: str = "CPU") -> str:
    """Return the processor and its threads, or the GPU if its name is stored."""
    m = found["machine"]
    return f"{m['processor']}, {m['threads']} threads" if side == "CPU" else m.get("gpu", f"the GPU beside {m['processor']}")


def gpu_name(found: dict[str, Any]) -> str:
    """Return the name of the GPU that a file of `make gpu` is of."""
    return str(found["results"]["machine"]["device"]["device"])


def suites() -> dict[str, dict[str, Any]]:
    """Return the files that the benchmark suite wrote, by name, article-speed first."""
    names = sorted((path.stem for path in tables.RESULTS.glob("article-speed*.json")), key=lambda name: (len(name), name))
    return {name: tables.read(name) for name in names}


def step(side: str, case: str, by: str) -> Time | None:
    """Return the time of the article's training step.

    Parameters
    ----------
    side : str
        "CPU" or "GPU".
    case : str
        A cell, or a name of `TRANSFORMERS` if `by` is "transformer".
    by : str
        "fastlstm", "torch" or "transformer".
    """
    for name, found in suites().items():
        if one := found["results"].get(f"{STEP[side]} {case}", {}).get(by):
            return Time(one["seconds"], machine(found, side), name)
    if side == "GPU" and (gpu := content("gpu")):
        milliseconds = gpu["results"].get("step", {}).get(f"{case} float32", {}).get(by)
        if milliseconds is not None:
            return Time(milliseconds / 1e3, gpu_name(gpu), "gpu")
    return None


def stored_ratio(claim: str, by: str) -> tuple[float, str] | None:
    """Return a ratio that the suite computed from one session, with the machine; None if there is none."""
    for found in suites().values():
        one = found.get("ratios", {}).get(claim, {}).get(by, {})
        if "value" in one:
            sides = ["CPU"] * ("CPU" in claim) + ["GPU"] * ("GPU" in claim)
            return one["value"], ", ".join(machine(found, side) for side in sides)
    return None


def gpu_ratio(claim: article.Ratio) -> tuple[float, str] | None:
    """Return fastlstm's CPU time over its GPU time of one system, as `make gpu` measured both on one machine."""
    (above, system), under = claim.over, claim.under
    gpu = content("gpu") if (above, under) == ("CPU", ("GPU", system)) else None
    found = gpu["results"].get("ratios", {}).get(system, {}) if gpu else {}
    return (found["ratio"], gpu_name(gpu)) if gpu and "ratio" in found else None


def no_step(side: str, case: str, by: str) -> str:
    """Return why there is no such time."""
    found = suites()
    for one in found.values():
        if why := one.get("not measured", {}).get(f"{STEP[side]} {case}", {}).get(by):
            return str(why)
    if side == "GPU" and content("gpu") is None:
        return absent("gpu")
    return f"no {STEP[side]} of the {NAMES.get(case, case)} by {by} is stored" if found else absent("article-speed")


def runs() -> list[tuple[str, dict[str, Any]]]:
    """Return all learning runs: a name that tells each from the article's, and the run with its machine."""
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
    """Return, by kind of tokens and cell, the best run of the article's sizes; in float32 if there is such a run."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, run in runs():
        plain = name.removesuffix(f", {run['settings']['dtype']}")
        if plain in NAMES.values():
            own = found.setdefault(run["tokens"], {})
            if run["cell"] not in own or _rank(run) < _rank(own[run["cell"]]):
                own[run["cell"]] = run
    return found


def _rank(run: dict[str, Any]) -> tuple[bool, float]:
    """Return a sort key: float32 comes before other dtypes, then a lower loss before a higher."""
    return run["settings"]["dtype"] != "float32", run["best_loss"]


def larger_runs(cell: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Return, by kind of tokens and name, the runs of one cell whose models are larger than the article's."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, run in runs():
        if run["cell"] == cell and any(size in name for size in ("large", "units", "layers")):
            found.setdefault(run["tokens"], {})[name] = run
    return found
