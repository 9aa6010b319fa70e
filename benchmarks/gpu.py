"""All that a machine with a GPU can say, in one run: `python -m benchmarks.gpu --record gpu` (`make gpu`), some minutes.

Sections, each going on where one before failed:

check
    Every form of a recurrence, each in a process of its own, then layers of every cell and precision, against the float64
    reference on the tests' random cases; the errors found. Between them one layer on several streams at once. A form that
    fails is broken: nothing chooses it any more in this run, and every later point says under "conditions" what it went
    without.
same
    Two runs of a training step from the same state: the same bits.
train
    A few steps of a language model on the device beside the CPU's.
sanitize
    compute-sanitizer, memcheck and racecheck, over small cases; needs its program.
forms
    The steps of a recurrence alone in every form that can serve a shape (benchmarks/forms.py): their errors, microseconds of a
    step beside what the model of costs promises, what a step must move and compute, and what a wrong choice of form costs.
waves
    Two layers at once beside one by one, where they have room: whether the choice between them was right.
layers
    Forward+backward and inference of one layer beside torch.nn (cuDNN) in the same precision, by CUDA events: milliseconds,
    the median of repeats with several inputs in turn.
step
    The article's training step beside the same by torch.nn, layers, head, clipping and Adam.

What fails is written down with its error and the run ends with 1.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

import fastlstm
from benchmarks import forms
from benchmarks.gpu_checks import BOUNDS, check, check_all, check_form, check_form_apart, check_streams
from benchmarks.record import Record
from fastlstm.arrays import as_numpy
from fastlstm.descent import Descent
from fastlstm.kernels import cuda
from fastlstm.kernels.forms import FORMS
from tests import cases

CELLS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}
SMALL = 14  # cases of each kind


def conditions() -> dict[str, str]:
    """What keeps forms from being chosen as they are elsewhere; nothing where nothing does."""
    asked = os.environ.get(forms.VARIABLE)
    kept = [f"without the broken form {form}" for form in sorted(forms.broken)]
    kept += [f"{forms.VARIABLE}={asked}"] if asked else []
    return {"conditions": ", ".join(kept)} if kept else {}


def language_model(cell: str, dtype: str, device: str, dropout: float = 0.0) -> tuple[Any, Any]:
    """The article's model and a trainer for it."""
    model = fastlstm.LanguageModel(65, cell, hidden_size=256, num_layers=2, dropout=dropout, seed=0, dtype=dtype, device=device)
    return model, fastlstm.Trainer(model, progress=False)


def batch() -> tuple[np.ndarray, np.ndarray]:
    """ids and targets of the article's shape."""
    ids, targets = np.random.default_rng(0).integers(0, 65, (2, 100, 64))
    return ids, targets


def on_streams(form: str) -> dict[str, Any]:
    """`check_streams` on three that do not wait for each other."""
    streams = [cuda.cupy().cuda.Stream(non_blocking=True) for _ in range(3)]
    return check_streams(form, [stream.ptr for stream in streams])


def same(cell: str, dtype: str) -> dict[str, Any]:
    """Whether two trainings from the same state have the same bits."""
    ends = []
    for _ in range(2):
        model, trainer = language_model(cell, dtype, "cuda", dropout=0.1)
        losses = [trainer.step(*batch()) for _ in range(4)]
        ends.append((losses, as_numpy(model.params.flat).tobytes()))
    if ends[0] != ends[1]:
        raise AssertionError(f"{cell} in {dtype}: two runs differ, losses {ends[0][0]} and {ends[1][0]}")
    return {"losses": ends[0][0]}


def train(cell: str, dtype: str) -> dict[str, Any]:
    """Losses of a few steps on the device beside the CPU's in float32."""
    losses = {}
    for device in ("cuda", "cpu"):
        _, trainer = language_model(cell, dtype if device == "cuda" else "float32", device)
        losses[device] = [trainer.step(*batch()) for _ in range(5)]
    off = max(abs(a - b) for a, b in zip(losses["cuda"], losses["cpu"], strict=True))
    if not off < (1e-3 if dtype == "float32" else 0.02):
        raise AssertionError(f"{cell} in {dtype}: losses {losses}")
    return losses


def sanitize(tool: str) -> dict[str, Any]:
    """Small cases of every kind under compute-sanitizer."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        return {"left out": "compute-sanitizer is not installed"}
    command = [program, f"--tool={tool}", "--error-exitcode=9", sys.executable, "-m", "benchmarks.gpu", "--only-cases", "2",
               "--broken", *sorted(forms.broken)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    text = done.stdout + done.stderr
    if "not supported" in text:
        return {"left out": text[-300:]}
    if done.returncode:
        raise AssertionError(text[-3000:])
    missed = [one for one in text.splitlines() if one.startswith("left out")]
    return {"summary": text.strip().splitlines()[-1]} | ({"missed": missed} if missed else {})


def milliseconds(function: Callable[[int], Any], budget: float = 0.6) -> float:
    """Median time of a call by CUDA events, after warm-up; the function is given a number that goes round its inputs."""
    cupy = cuda.cupy()
    stream = cupy.cuda.get_current_stream()
    for k in range(6):
        function(k)
    stream.synchronize()
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < 10 or (time.perf_counter() - begin < budget and len(times) < 200):
        start, stop = cupy.cuda.Event(), cupy.cuda.Event()
        start.record(stream)
        function(len(times))
        stop.record(stream)
        stop.synchronize()
        times.append(cupy.cuda.get_elapsed_time(start, stop))
    return statistics.median(times)


def set_torch(dtype: str) -> Any:
    """torch with its precision set; and the dtype of tensors."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = dtype == "tf32"
    return torch, {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(dtype, torch.float32)


def layers(cell: str, hidden: int, rows: int, steps: int, dtype: str) -> dict[str, Any]:
    """One layer beside torch's."""
    cupy = cuda.cupy()
    torch, kind = set_torch(dtype)
    layer = getattr(fastlstm, CELLS[cell])(hidden, hidden, dtype=dtype, device="cuda", seed=0)
    xs = [cupy.random.standard_normal((steps, rows, hidden), dtype=np.float32) for _ in range(3)]
    dout = cupy.ones((steps, rows, hidden), np.float32)
    peer = getattr(torch.nn, CELLS[cell])(hidden, hidden).cuda().to(kind)
    ts = [torch.from_dlpack(x).to(kind) for x in xs]
    dt = torch.ones_like(ts[0])

    def ours(k: int) -> None:
        _, _, backprop = layer.forward_train(xs[k % 3])
        backprop(dout)

    def theirs(k: int) -> None:
        x = ts[k % 3].detach().requires_grad_()
        peer(x)[0].backward(dt)

    def inferred(k: int) -> None:
        with torch.inference_mode():
            peer(ts[k % 3])

    stream = torch.cuda.ExternalStream(cupy.cuda.get_current_stream().ptr) if cupy.cuda.get_current_stream().ptr else None
    with torch.cuda.stream(stream):
        found = {
            "forward+backward": {"fastlstm": milliseconds(ours), "torch": milliseconds(theirs)},
            "inference": {"fastlstm": milliseconds(lambda k: layer(xs[k % 3])), "torch": milliseconds(inferred)},
        }
    for times in found.values():
        times["speedup"] = times["torch"] / times["fastlstm"]
    return found


def step(cell: str, dtype: str) -> dict[str, Any]:
    """The article's training step beside torch's: with each loss fetched, and "unread", as a fit takes them."""
    torch, kind = set_torch(dtype)
    model, trainer = language_model(cell, dtype, "cuda")
    steps = Descent(model, fastlstm.Adam(1e-3), 1.0)
    ids, targets = batch()
    embedding, rnn = torch.nn.Embedding(65, 256).cuda(), getattr(torch.nn, CELLS[cell])(256, 256, 2).cuda()
    head = torch.nn.Linear(256, 65).cuda()
    params = [*embedding.parameters(), *rnn.parameters(), *head.parameters()]
    adam = torch.optim.Adam(params, 1e-3, fused=True)
    t_ids, t_targets = (torch.tensor(value, device="cuda") for value in (ids, targets))

    def theirs(read: bool) -> None:
        adam.zero_grad()
        with torch.autocast("cuda", kind, enabled=kind != torch.float32):
            logits = head(rnn(embedding(t_ids))[0])
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), t_targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        adam.step()
        if read:
            loss.item()

    many = 10  # unread steps between two events: the host runs ahead of the device, as in a fit

    def unread(k: int) -> None:
        for _ in range(many):
            steps.step(ids, targets, steps.state, None)

    def unread_theirs(k: int) -> None:
        for _ in range(many):
            theirs(False)

    times = {"fastlstm": milliseconds(lambda k: trainer.step(ids, targets)), "torch": milliseconds(lambda k: theirs(True)),
             "fastlstm unread": milliseconds(unread) / many, "torch unread": milliseconds(unread_theirs) / many}  # fmt: skip
    unread_speedup = times["torch unread"] / times["fastlstm unread"]
    return times | {"speedup": times["torch"] / times["fastlstm"], "speedup unread": unread_speedup}


def points(sections: list[str]) -> list[tuple[str, str, Callable[[], dict[str, Any]]]]:
    """(section, name, what measures it)."""
    found: list[tuple[str, str, Callable[[], dict[str, Any]]]] = []
    for form in FORMS:
        for dtype in forms.PRECISIONS:
            found.append(("check", f"{form} form {dtype}", lambda f=form, d=dtype: check_form_apart(f, d)))
    for form in ("general", "grid"):
        found.append(("check", f"{form} form on three streams", lambda f=form: on_streams(f)))
    for kind in cases.KINDS:
        for dtype in BOUNDS:
            found.append(("check", f"{kind} {dtype}", lambda k=kind, d=dtype: check(k, d, cases.CASES[k][:SMALL])))
    for cell in CELLS:
        for dtype in ("float32", "bfloat16"):
            found.append(("same", f"{cell} {dtype}", lambda c=cell, d=dtype: same(c, d)))
            found.append(("train", f"{cell} {dtype}", lambda c=cell, d=dtype: train(c, d)))
    for cell in CELLS:
        for dtype in forms.PRECISIONS:
            found.append(("step", f"{cell} {dtype}", lambda c=cell, d=dtype: step(c, d)))
    for name, (*shape, dtype) in forms.points().items():
        found.append(("forms", name, lambda s=shape, d=dtype: forms.measure(*s, d, lambda run: milliseconds(run, 0.1))))
        found.append(("waves", name, lambda s=shape, d=dtype: forms.waves(*s, d, lambda run: milliseconds(run, 0.2))))
        found.append(("layers", name, lambda s=shape, d=dtype: layers(*s, d)))
    for tool in ("memcheck", "racecheck"):
        found.append(("sanitize", tool, lambda t=tool: sanitize(t)))
    return [point for point in found if point[0] in sections]


def means(results: dict[str, dict[str, Any]]) -> list[str]:
    """Of the grid of shapes, in each precision: the geometric mean of forward+backward's speed-ups, and the least."""
    lines = []
    for dtype in ("float32", "bfloat16"):
        names = [forms.name(*shape, dtype) for shape in forms.GRID]
        ways = [results.get(name, {}).get("forward+backward") for name in names]
        found = [way["speedup"] for way in ways if way]
        if found:
            mean = f"geometric mean {statistics.geometric_mean(found):.2f}x, least {min(found):.2f}x of torch.nn"
            lines.append(f"{dtype}: {len(found)} of {len(forms.GRID)} shapes, {mean}")
    return lines


def device() -> dict[str, Any]:
    """What the numbers belong to."""
    cupy = cuda.cupy()
    runtime = cupy.cuda.runtime
    found = {"device": cuda.device(0).name, "cupy": cupy.__version__, "driver": runtime.driverGetVersion(),
             "runtime": runtime.runtimeGetVersion(), "capability": cupy.cuda.Device(0).compute_capability}  # fmt: skip
    try:
        import torch

        found |= {"torch": torch.__version__, "cudnn": torch.backends.cudnn.version()}
    except ImportError:
        pass
    return found


def line(section: str, name: str, result: dict[str, Any]) -> str:
    """A point in one line."""
    if "failed" in result:
        return f"{section:9} {name:36} FAILED: {result['failed'].strip().splitlines()[-1][:160]}"
    if section == "layers":
        parts = [f"{way} {t['fastlstm']:8.3f} ms {t['speedup']:5.2f}x" for way, t in result.items() if way != "conditions"]
        return f"{section:9} {name:36} " + "   ".join(parts)
    if section == "forms" and "forms" in result:
        pairs = {form: (way["forward"]["us per step"], way["backward"]["us per step"]) for form, way in result["forms"].items()}
        parts = [f"{form} {forward:.2f}+{backward:.2f} us" for form, (forward, backward) in pairs.items()]
        lost = max((way.get("lost", 1.0) for way in result["choices"].values()), default=1.0)
        return f"{section:9} {name:36} " + "  ".join(parts) + (f"  WRONG CHOICE {lost:.2f}x" if lost > 1.1 else "")
    if section == "waves" and "at once" in result:
        pairs = [(kind, result["one by one"][kind] / result["at once"][kind]) for kind in ("inference", "forward+backward")]
        parts = [f"{kind} at once {result['at once'][kind]:8.3f} ms {gain:5.2f}x" for kind, gain in pairs]
        wrong = (pairs[0][1] > 1) != result["chosen at once"]["forward"] and not 0.9 < pairs[0][1] < 1.1
        return f"{section:9} {name:36} " + "   ".join(parts) + ("  WRONG CHOICE" if wrong else "")
    if section == "step":
        unread = f"unread {result['fastlstm unread']:8.3f} ms {result['speedup unread']:5.2f}x"
        return f"{section:9} {name:36} {result['fastlstm']:8.3f} ms {result['speedup']:5.2f}x   {unread}"
    return f"{section:9} {name:36} {str(result)[:110]}"


def main() -> int:
    """Measure the sections, print them; record if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sections = ("check", "same", "train", "step", "forms", "waves", "layers", "sanitize")
    parser.add_argument("--section", nargs="+", choices=sections, default=list(sections))
    parser.add_argument("--record", metavar="NAME", help="write benchmarks/results/NAME.json")
    parser.add_argument("--only-cases", type=int, metavar="N", help="N small cases of each kind and nothing else")
    parser.add_argument("--broken", nargs="*", choices=FORMS, default=[], help="forms not to be used")
    parser.add_argument("--only-form", nargs=2, metavar=("FORM", "DTYPE"), help="the check of one form and nothing else")
    o = parser.parse_args()
    forms.broken.update(o.broken)
    if o.only_cases:
        with forms.without_broken(cuda.device(0)):
            print(*check_all(o.only_cases), sep="\n")
        return 0
    if o.only_form:
        print(json.dumps(check_form(*o.only_form)))
        return 0
    try:
        about = device()
    except cuda.Unavailable as error:
        print(f"No GPU to measure: {error}.", file=sys.stderr)
        return 1
    record, lines, failed, timed = Record(o.record, False), [], 0, {}
    record.put("machine", "device", about)
    for section, name, measure in points(o.section):
        about_forms = conditions()
        try:
            with forms.without_broken(cuda.device(0)):
                result = measure()
        except Exception:
            result, failed = {"failed": traceback.format_exc()[-2000:]}, failed + 1
        result |= about_forms
        record.put(section, name, result)
        if section == "layers":
            timed[name] = result
        lines.append(line(section, name, result))
        print(lines[-1], flush=True)
    print(f"\n{len(lines)} points, {failed} failed; {', '.join([about['device'], *conditions().values()])}")
    print(*[one for one in lines if one.startswith(("step", "layers")) or "FAILED" in one or "WRONG" in one], sep="\n")
    print(*means(timed), sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
