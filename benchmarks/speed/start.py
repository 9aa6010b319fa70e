"""Measures start-up and memory, each in a process of its own: imports, the first training step, peak memory.

The first training step is measured twice: with nothing compiled yet, and in a second process. Run:
``python -m benchmarks.speed.start [--record NAME]``, which writes into benchmarks/results/NAME.json.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile

from benchmarks.measure.record import PEERS, Record
from benchmarks.peers.layers import CELLS

IMPORT = "import time; t = time.perf_counter(); import {0}; print(time.perf_counter() - t)"
STEP = """
import time, numpy as np, fastlstm
model = fastlstm.LanguageModel(65, {cell!r}, seed=0)
trainer = fastlstm.Trainer(model, progress=False)
ids = np.zeros((100, 64), np.int32)
t = time.perf_counter(); trainer.step(ids, ids); print(time.perf_counter() - t)
"""
OURS = """
import resource, numpy as np, fastlstm
from fastlstm.text import load_corpus, prepare
prepared = prepare(load_corpus({corpus}), "char", "tail", 64, 100)
model = fastlstm.LanguageModel(prepared.tokenizer.vocab_size, {cell!r}, seed=0)
trainer = fastlstm.Trainer(model, progress=False)
for _, (inputs, targets) in zip(range({steps}), prepared.train):
    trainer.step(inputs, targets)
trainer.evaluate(prepared.valid)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
TORCH = """
import resource, torch
from fastlstm.text import load_corpus, prepare
prepared = prepare(load_corpus({corpus}), "char", "tail", 64, 100)
size = prepared.tokenizer.vocab_size
embedding, head = torch.nn.Embedding(size, 256), torch.nn.Linear(256, size)
layers = getattr(torch.nn, {kind!r})(256, 256, 2)
params = [*embedding.parameters(), *layers.parameters(), *head.parameters()]
optimizer = torch.optim.Adam(params, lr=1e-3)
state = None
detach = lambda s: tuple(p.detach() for p in s) if isinstance(s, tuple) else s.detach()
def run(inputs, targets, state):
    out, state = layers(embedding(torch.tensor(inputs).long()), state)
    logits = head(out).view(-1, size)
    return torch.nn.functional.cross_entropy(logits, torch.tensor(targets).long().view(-1)), detach(state)
for _, (inputs, targets) in zip(range({steps}), prepared.train):
    optimizer.zero_grad()
    loss, state = run(inputs, targets, state)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(params, 1.0)
    optimizer.step()
state = None
with torch.no_grad():
    for inputs, targets in prepared.valid:
        loss, state = run(inputs, targets, state)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def output(code: str, **environment: str) -> float:
    """Return the number that a new Python process prints for `code`."""
    env = os.environ | environment
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def best(code: str, times: int = 5) -> float:
    """Return the smallest number of several runs."""
    return min(output(code) for _ in range(times))


def main() -> None:
    """Measure, print, and write the record if one was named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", metavar="NAME")
    parser.add_argument("--steps", type=int, default=30, help="training steps of the memory comparison")
    parser.add_argument("--corpus", help="text of the memory comparison; default: the one that every Python carries")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS), metavar="CELL", help="default: all")
    options = parser.parse_args()
    results = {
        "import numba, s": best(IMPORT.format("numba")),
        "import fastlstm, s": best(IMPORT.format("fastlstm")),
        "import numba, then fastlstm, s": best(IMPORT.format("numba, fastlstm")),
    }
    for cell in options.cells:
        with tempfile.TemporaryDirectory() as folder:
            first = output(STEP.format(cell=cell), FASTLSTM_CACHE=folder)
            second = output(STEP.format(cell=cell), FASTLSTM_CACHE=folder)
        results |= {f"first training step, nothing compiled yet, {cell}, s": first}
        results |= {f"first training step, second process, {cell}, s": second}
    for cell in options.cells:
        settings = {"cell": cell, "kind": CELLS[cell], "steps": options.steps, "corpus": repr(options.corpus)}
        ours, peer = output(OURS.format(**settings)), output(TORCH.format(**settings))
        results |= {f"peak memory of training, {cell}, MiB": ours, f"peak memory of training, {cell}, torch, MiB": peer}
    for name, value in results.items():
        print(f"{name:60} {value:9.3f}")
    if options.record:
        record = Record(options.record, more=PEERS)
        record.content["results"] |= results
        record.save()


if __name__ == "__main__":
    main()
