"""Measures 1,000 samples of trained character models: `python -m benchmarks.learning.generation FOLDER` writes generation.json.

Each sample continues the article's prompt, at the temperature of the report's samples. A word is real if it consists of letters
and apostrophes and occurs in the training text, in upper or lower case. Measured are the share of real words by position, the
number of words before the first that is not real, and the longest piece that occurs literally in the training text. The
held-out text, cut into as many pieces, is measured by the same rules: a model cannot be expected to do better than it.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.article import PROMPT
from benchmarks.learning import trained
from benchmarks.measure.record import Record
from fastlstm import text
from fastlstm.training import checkpoint

TEMPERATURE = 0.8
SAMPLES, LENGTH, SEED = 1000, 400, 0
POSITIONS = 60  # words
WORD = re.compile(r"[A-Za-z']+")
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that every character counts in a hash
HELD_OUT = "held-out text"


def words(sample: str) -> list[str]:
    """Return the words in lower case without the last, which may be cut."""
    return [word.lower() for word in WORD.findall(sample)][:-1]


def real_words(samples: list[list[str]], known: set[str], positions: int = POSITIONS) -> tuple[list[float], float, bool]:
    """Return the share of known words by position, and the median of the words before the first unknown one.

    The third value says whether that median is only a lower bound, because more than half of the samples have no unknown word.
    """
    found = [[word in known for word in sample[:positions]] for sample in samples]
    shares = [np.mean([one[k] for one in found if len(one) > k]) for k in range(max(map(len, found)))]
    first = [one.index(False) if False in one else len(one) for one in found]
    whole = sum(False not in one for one in found)
    return [float(share) for share in shares], float(np.median(first)), whole * 2 > len(found)


def codes(sample: str) -> np.ndarray:
    """Return the characters as numbers."""
    return np.frombuffer(sample.encode("utf-32-le"), np.uint32).astype(np.uint64)


def longest_matches(samples: list[str], source: str) -> np.ndarray:
    """Return for each sample the length of its longest piece that occurs in `source`. It compares hashes of growing pieces."""
    parts = [codes(sample) for sample in samples]
    sample = np.concatenate([np.full(len(part), k) for k, part in enumerate(parts)])
    left = np.concatenate([len(part) - np.arange(len(part)) for part in parts])  # characters to the sample's end
    ours, theirs = np.concatenate(parts), codes(source)
    hashes, known = np.zeros_like(ours), np.zeros_like(theirs)
    longest = np.zeros(len(samples), int)
    begins = np.arange(len(ours))  # of pieces that matched so far
    for length in range(1, len(source) + 1):
        begins = begins[left[begins] >= length]
        known = known[: len(theirs) - length + 1] * FACTOR + theirs[length - 1 :]
        hashes = hashes[: len(begins)] if length == 1 else hashes
        values = np.array([], np.uint64) if not len(begins) else hashes[begins] * FACTOR + ours[begins + length - 1]
        kept = np.isin(values, known)
        begins, values = begins[kept], values[kept]
        if not len(begins):
            return longest
        hashes = np.zeros_like(ours)
        hashes[begins] = values
        longest[sample[begins]] = length
    return longest


def measure(samples: list[str], source: str, prompt: str = "") -> dict[str, Any]:
    """Return all measurements of samples that continue a prompt."""
    known = set(words(source + " ."))
    after = len(WORD.findall(prompt))
    shares, span, bound = real_words([words(prompt + sample)[after:] for sample in samples], known)
    matches = longest_matches(samples, source)
    return {
        "position": list(range(1, len(shares) + 1)),
        "real words": shares,
        "span": span,
        "criterion": f"median over {len(samples)} samples of the words before the first that the training text does not have"
        + (f"; most samples end before one, after {len(shares)} words" if bound else ""),
        "longest match": int(matches.max()),
        "median match": float(np.median(matches)),
    }


def corpus(folder: Path) -> tuple[str, str]:
    """Return the training part and the held-out part of a run's text."""
    whole = text.load_corpus(checkpoint.read_json(folder / checkpoint.SETTINGS)["text"])
    places, _ = text.split_ids(np.arange(len(whole)), "tail")
    return whole[: len(places)], whole[len(places) :]


def pieces(source: str, count: int = SAMPLES, length: int = LENGTH) -> list[str]:
    """Return evenly spaced pieces of a text; each begins with a word."""
    begins = [match.start() for match in WORD.finditer(source) if match.start() < len(source) - length]
    return [source[begins[k] : begins[k] + length] for k in np.linspace(0, len(begins) - 1, count).astype(int)]


def main() -> None:
    """Measure the runs that are not in the file yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--record", default="generation", metavar="NAME")
    options = parser.parse_args()
    record = Record(options.record, timed=False)
    results = record.content["results"]
    for run in sorted(options.folder.glob("char-*")):
        name = run.name.removeprefix("char-")
        if name in results or not any(run.glob("best.*")):
            continue
        model = trained.load(run)
        source, unseen = corpus(run)
        drawn = model.draw(model.tokenizer.encode(PROMPT), LENGTH, SAMPLES, SEED, TEMPERATURE)
        results[name] = record.signed(measure([model.tokenizer.decode(one) for one in drawn.T], source, PROMPT))
        if HELD_OUT not in results:
            results[HELD_OUT] = record.signed(measure(pieces(unseen), source))
        record.save()
        print(f"{name}: {results[name]['span']} words, longest match {results[name]['longest match']}", flush=True)


if __name__ == "__main__":
    main()
