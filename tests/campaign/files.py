"""Damaged files: each loads as what it says it is, or is refused by the documented error, in little memory and time.

What a checksum guards must come back the same or not at all. What has a checksum made anew may load if it is valid, and is then
used: text generated, training resumed, series predicted.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import json
import os
import random
import re
import resource
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import fastlstm
from fastlstm import text
from fastlstm.command import train as firstrun
from fastlstm.training import checkpoint
from tests.campaign.damage import (
    checkpoint_bytes,
    damaged_arrays,
    damaged_bytes,
    damaged_json,
    damaged_message,
    deep_json,
    safetensors,
)

NAME = "files"
TRIALS = 1_000_000
FILES = 100  # of one trial

_TEXT = "the cat sat on the mat, and the dog ran. " * 20
_METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
_TIMES, _MEMORY = 10, 64 << 20  # a load takes at most so many times the file, and so much beside
_ROOM = 2 << 30  # of addresses: a demand beyond it is an error, before the machine has to suffer
_WAVES = np.sin(np.arange(200) / 5).reshape(4, 50)
_SERIES = np.random.default_rng(0).standard_normal((30, 7, 2)).astype("f4")
_NEEDS = {"onnx": ("onnx",), "keras": ("keras", "torch", "h5py"), "estimators": ("sklearn",), "bpe": ("tokenizers",)}


@functools.cache
def there(kind: str) -> bool:
    """Whether the packages are installed that a kind of file needs."""
    return all(importlib.util.find_spec(name) for name in _NEEDS.get(kind, ()))


# Whole files, made once


def prepare(folder: Path) -> None:
    """Make a small file of every kind; kinds whose packages are missing are named and left out."""
    missing = [kind for kind in _NEEDS if not there(kind)]
    if missing:
        print(f"files: without {', '.join(missing)}, whose packages are not installed")
    for kind, cell, optimizer in (
        ("char", "lstm", fastlstm.Adam(1e-2)),
        ("word", "gru", fastlstm.RMSprop(momentum=0.5)),
        ("bpe", "rnn", fastlstm.SGD(0.1)),
    ):
        if there(kind):
            tokenizer, *data = _data(kind)
            model = fastlstm.LanguageModel(tokenizer.vocab_size, cell, hidden_size=6, num_layers=1, dropout=0.1, seed=0)
            schedule = fastlstm.Plateau() if kind == "char" else fastlstm.StepDecay(5)
            trainer = fastlstm.Trainer(model, optimizer, schedule=schedule, progress=False, tokenizer=tokenizer)
            trainer.fit(*data, epochs=1)
            trainer.save(folder / f"{kind}.safetensors")
    model = fastlstm.SequenceRegressor(2, 2, cell="gru", hidden_size=5, bidirectional=True, seed=0)
    trainer = fastlstm.Trainer(model, progress=False)
    trainer.fit(*_data("series")[1:], epochs=1)
    trainer.save(folder / "series.safetensors")
    settings = {
        **firstrun.DEFAULTS,
        "version": fastlstm.__version__,
        "preset": None,
        "text": str(folder / "corpus"),
        "text_sha256": "",
        "embedding_size": 6,
        "hidden_size": 6,
        "epochs": 1,
        "batch_size": 2,
        "seq_len": 8,
    }
    (folder / "corpus").write_text(_TEXT)
    settings["text_sha256"] = firstrun._sha256(_TEXT)
    (folder / "settings").write_text(json.dumps(settings))
    if there("estimators"):
        _prepare_estimators(folder)
    if there("onnx"):
        _prepare_onnx(folder, trainer.model)
    if there("keras"):
        _prepare_keras(folder)


def _data(kind: str) -> tuple[Any, Any, Any]:
    """Tokenizer, training and validation data of a checkpoint."""
    if kind == "series":
        return None, fastlstm.Batches(_SERIES, _SERIES[:, 0]), None
    return text.prepare(_TEXT, kind, batch_size=4, seq_len=5, vocab_size=300)


def _prepare_estimators(folder: Path) -> None:
    from fastlstm.adapters import sklearn

    few = {"hidden_size": 4, "epochs": 1, "random_state": 0}
    sklearn.SeriesForecaster(quantiles=(0.1,), horizon=2, **few).fit(_WAVES).save(folder / "SeriesForecaster.safetensors")
    sklearn.SeriesClassifier(**few).fit(_WAVES, ["a", "b", "a", "b"]).save(folder / "SeriesClassifier.safetensors")
    sklearn.SeriesAnomalyDetector(**few).fit(_WAVES).save(folder / "SeriesAnomalyDetector.safetensors")


def _prepare_onnx(folder: Path, regressor: Any) -> None:
    from fastlstm.adapters import onnx

    onnx.export(fastlstm.LSTM(2, 3, seed=0), folder / "lstm.onnx")
    onnx.export(fastlstm.GRU(2, 3, 2, bidirectional=True, seed=0), folder / "gru.onnx", lengths=True)
    onnx.export(regressor, folder / "regressor.onnx")
    onnx.export(fastlstm.LanguageModel(7, hidden_size=4, num_layers=1, seed=0), folder / "language.onnx")


def _prepare_keras(folder: Path) -> None:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    from fastlstm.adapters import keras

    lstm, gru = fastlstm.LSTM(2, 3, batch_first=True, seed=0), fastlstm.GRU(3, 4, batch_first=True, seed=0)
    chain = keras.Chain([lstm, gru, keras.Last(), fastlstm.Linear(4, 2, seed=0), keras.Activation("softmax")])
    keras.to_keras(chain).save(folder / "chain.keras")
    keras.to_keras(fastlstm.LanguageModel(9, "rnn", 4, 3, 1, seed=0)).save(folder / "language.keras")
    keras.to_keras(chain).save_weights(folder / "chain.weights.h5")


@functools.cache
def whole(folder: Path, name: str) -> bytes:
    """A file that `prepare` made."""
    return (folder / name).read_bytes()


@functools.cache
def parsed(folder: Path, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and record of a checkpoint that `prepare` made."""
    return checkpoint.read_checkpoint(folder / name)


@functools.cache
def data_of(kind: str) -> tuple[Any, Any, Any]:
    """As `_data`, made once."""
    return _data(kind)


# One damaged file, and how it is used


class Damaged(NamedTuple):
    """A damaged file."""

    name: str  # its ending decides how it is read
    data: bytes
    use: Callable[[Path], Any]
    errors: tuple[type[BaseException], ...] = (fastlstm.FileError,)
    then: Callable[[Any], None] | None = None  # what is done with what `use` gave; its memory is no matter of the file


def _guarded(folder: Path, name: str, path: Path) -> None:
    """Read what has checksums: it is the same if it is read at all."""
    arrays, record = checkpoint.read_checkpoint(path)
    before, known = parsed(folder, name)
    assert record == known, "a record was changed and read"
    assert arrays.keys() == before.keys(), "arrays were changed and read"
    assert all(arrays[key].tobytes() == before[key].tobytes() for key in arrays), "arrays were changed and read"


def _raw_checkpoint(rng: random.Random, folder: Path, names: list[str]) -> Damaged:
    name = rng.choice(names)
    return Damaged("c.safetensors", damaged_bytes(rng, whole(folder, name)), lambda path: _guarded(folder, name, path))


def _made_checkpoint(rng: random.Random, folder: Path, names: list[str]) -> tuple[str, bytes]:
    """Record, arrays or header changed, with checksums made anew."""
    name = rng.choice(names)
    arrays, record = parsed(folder, name)
    kind = rng.random()
    if kind < 0.7:
        return name, checkpoint_bytes(arrays, damaged_json(rng, record))
    if kind < 0.9:
        return name, checkpoint_bytes(damaged_arrays(rng, arrays), record)
    if kind < 0.95:
        header = json.loads(
            json.loads(whole(folder, name)[8:].split(b"\0")[0].decode(errors="ignore").rpartition("}")[0] + "}")[
                "__metadata__"
            ]["fastlstm"]
        )
        return name, safetensors(arrays, json.dumps(damaged_json(rng, header)))
    return name, safetensors(arrays, f'{{"format": 1, "version": "0", "crc32": 0, "record": {deep_json(rng)}}}')


def raw_checkpoint(rng: random.Random, folder: Path) -> Damaged:
    """Bytes of a training's checkpoint."""
    return _raw_checkpoint(rng, folder, [f"{kind}.safetensors" for kind in ("char", "word", "bpe", "series") if there(kind)])


def made_checkpoint(rng: random.Random, folder: Path) -> Damaged:
    """A training's checkpoint: loaded, text generated, training resumed."""
    kinds = [kind for kind in ("char", "word", "bpe", "series") if there(kind)]
    name, data = _made_checkpoint(rng, folder, [f"{kind}.safetensors" for kind in kinds])
    kind, resumes = name.partition(".")[0], rng.random() < 0.3

    def use(path: Path) -> None:
        if resumes:
            _resume(path, kind)
            return
        run = fastlstm.load(path)
        if run.tokenizer is not None:
            with contextlib.suppress(ValueError, FloatingPointError):  # a token that the tokenizer lacks, weights of NaN
                run.generate("", 3, seed=1)

    return Damaged("c.safetensors", data, use)


def _resume(path: Path, kind: str) -> None:
    _, train, valid = data_of(kind)
    try:
        trainer = fastlstm.Trainer.resume(path, train, valid, progress=False)
    except fastlstm.FileError:
        raise
    except ValueError as error:  # it is of other data, or of somebody's own making
        if not str(error).startswith(("train: ", "valid: ", "optimizer: ", "schedule: ")):
            raise
        return
    with contextlib.suppress(fastlstm.DivergedError, ValueError):
        trainer.step(*next(iter(train))[:2])


def raw_estimator(rng: random.Random, folder: Path) -> Damaged:
    """Bytes of a series estimator's file."""
    return _raw_checkpoint(rng, folder, _estimators())


def _estimators() -> list[str]:
    return [f"Series{kind}.safetensors" for kind in ("Forecaster", "Classifier", "AnomalyDetector")]


def made_estimator(rng: random.Random, folder: Path) -> Damaged:
    """A series estimator's file: loaded, and series predicted."""
    from fastlstm.adapters import sklearn

    _, data = _made_checkpoint(rng, folder, _estimators())

    def then(estimator: Any) -> None:
        with contextlib.suppress(ValueError, MemoryError):  # these are not series of its kind, or the horizon is long
            estimator.predict(_WAVES)

    return Damaged("e.safetensors", data, sklearn.load, then=then)


def onnx_model(rng: random.Random, folder: Path) -> Damaged:
    """An ONNX model: loaded, and run."""
    import onnx

    data = whole(folder, rng.choice(["lstm.onnx", "gru.onnx", "regressor.onnx", "language.onnx"]))
    if rng.random() < 0.4:
        data = damaged_bytes(rng, data)
    else:
        proto = onnx.load_from_string(data)
        if rng.random() < 0.3:
            _add_node(rng, proto)
        else:
            damaged_message(rng, proto)
        data = proto.SerializeToString()
    from fastlstm.adapters import onnx as adapter

    return Damaged("m.onnx", data, adapter.load, (ValueError,), _run_onnx)


def _add_node(rng: random.Random, proto: Any) -> None:
    """A node that makes something of sizes."""
    from onnx import TensorProto, helper

    kinds = [
        "ConstantOfShape",
        "Tile",
        "Expand",
        "Range",
        "Reshape",
        "Gather",
        "Slice",
        "Split",
        "Concat",
        "TopK",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Cast",
        "MatMul",
        "Pow",
        "Where",
        "Shape",
        "Clip",
    ]
    sizes = [rng.choice([0, 1, 2, 3, -1, 50, 1000, 30000, 2**31, 2**62]) for _ in range(rng.randrange(4))]
    proto.graph.initializer.append(helper.make_tensor("sizes", TensorProto.INT64, [len(sizes)], sizes))
    inputs = rng.choice([["sizes"], ["sizes", "sizes"], [proto.graph.input[0].name, "sizes"], ["sizes", "sizes", "sizes"]])
    proto.graph.node.append(helper.make_node(rng.choice(kinds), inputs, ["made"]))
    proto.graph.output.append(helper.make_tensor_value_info("made", rng.choice([1, 7]), None))


def _run_onnx(model: Any) -> None:
    given = {}
    for name, told in model.inputs.items():
        dtype, _, shape = told.partition("[")
        sizes = [int(size) if size.lstrip("-").isdigit() else 2 for size in shape.rstrip("]").split(", ") if size]
        if any(size > 100 or size < 0 for size in sizes):
            return
        given[name] = np.ones(sizes, dtype)
    with contextlib.suppress(ValueError, TypeError):
        model(given)


def keras_file(rng: random.Random, folder: Path) -> Damaged:
    """A .keras file: read, and the model run."""
    name = rng.choice(["chain.keras", "language.keras"])
    data = whole(folder, name)
    way = rng.random()
    if way < 0.2:
        data = damaged_bytes(rng, data)
    elif way < 0.23:
        data = _lying(rng, _bomb(rng.choice(_METHODS[1:3])))
    else:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {member: archive.read(member) for member in archive.namelist()}
        kind = rng.random()
        if kind < 0.7:
            changed = damaged_json(rng, json.loads(members["config.json"]))
            members["config.json"] = json.dumps(changed).encode()
        elif kind < 0.95:
            members["model.weights.h5"] = damaged_bytes(rng, members["model.weights.h5"])
        else:
            members[rng.choice(["config.json", "metadata.json"])] = deep_json(rng).encode()
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", rng.choices(_METHODS, (3, 3, 1, 1))[0]) as archive:
            for member, content in members.items():
                archive.writestr(member, content)
        data = out.getvalue() if rng.random() < 0.7 else _lying(rng, out.getvalue())

    def use(path: Path) -> None:
        from fastlstm.adapters import keras

        model = keras.from_keras(path)
        with contextlib.suppress(ValueError, TypeError):  # what it has become may read something else
            model(np.ones((2, 3, 2), "f4") if name == "chain.keras" else np.ones((2, 3), "i4"))

    return Damaged("m.keras", data, use)


@functools.cache
def _bomb(method: int) -> bytes:
    """A small .keras file that unpacks to more than a load may take."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr("config.json", b" " * (2 * _MEMORY))
        archive.writestr("model.weights.h5", b"")
    return out.getvalue()


def _lying(rng: random.Random, data: bytes) -> bytes:
    """A zip whose directory says something else of a member's method or sizes."""
    changed, places = bytearray(data), [found.start() for found in re.finditer(rb"PK\x01\x02", data)]
    offset, size = rng.choice([(10, 2), (20, 4), (24, 4)])  # method, packed size, size
    place = rng.choice(places) + offset
    value = rng.choice([0, 8, 12, 14]) if size == 2 else rng.choice([0, 100, 1 << 22, 1 << 30, (1 << 32) - 1])
    changed[place : place + size] = value.to_bytes(size, "little")
    return bytes(changed)


def keras_weights(rng: random.Random, folder: Path) -> Damaged:
    """A .weights.h5 file, read into layers or recognised."""
    data, into = damaged_bytes(rng, whole(folder, "chain.weights.h5")), rng.random() < 0.7

    def use(path: Path) -> None:
        from fastlstm.adapters import keras

        layers = [fastlstm.LSTM(2, 3, batch_first=True, seed=0), fastlstm.GRU(3, 4, batch_first=True, seed=0)]
        keras.from_keras(path, into=keras.Chain([*layers, keras.Last(), fastlstm.Linear(4, 2, seed=0)]) if into else None)

    return Damaged("m.weights.h5", data, use)


def tokenizer(rng: random.Random, folder: Path) -> Damaged:
    """A tokenizer's record: made, and text encoded and decoded."""
    kind = rng.choice([kind for kind in ("char", "word", "bpe") if there(kind)])
    config = parsed(folder, f"{kind}.safetensors")[1]["tokenizer"]
    if kind == "bpe" and rng.random() < 0.8:
        if rng.random() < 0.4:
            changed = damaged_bytes(rng, config["json"].encode()).decode("latin1")
        else:
            changed = json.dumps(damaged_json(rng, json.loads(config["json"])))
        config = {**config, "json": changed}
    else:
        config = damaged_json(rng, config)

    def use(path: Path) -> None:
        found = text.tokenizer_from_config(config)
        with contextlib.suppress(ValueError):  # it may not know this text
            ids = found.encode("the cat sat")
            assert ids.dtype == np.int32
            assert not ids.size or 0 <= ids.min() <= ids.max() < found.vocab_size
            found.decode(ids)
            decoder = found.decode_stream()
            assert "".join([*map(decoder.push, ids.tolist()), decoder.flush()]) == found.decode(ids)
        assert text.tokenizer_from_config(found.config).vocab_size == found.vocab_size

    return Damaged("t.json", json.dumps(config).encode(), use, (ValueError,))


def settings(rng: random.Random, folder: Path) -> Damaged:
    """The settings of a run on the command line: read, and its text prepared."""
    data = whole(folder, "settings")
    kind = rng.random()
    if kind < 0.3:
        data = damaged_bytes(rng, data)
    elif kind < 0.95:
        data = json.dumps(damaged_json(rng, json.loads(data))).encode()
    else:
        data = deep_json(rng).encode()

    def use(path: Path) -> None:
        found = firstrun._read_settings(path.parent)
        with contextlib.suppress(firstrun.UsageError, ValueError, OSError, ImportError):  # of the text that they name
            firstrun._prepare_again(path.parent, found, str(folder / "corpus"))

    return Damaged(checkpoint.SETTINGS, data, use)


def corpus(rng: random.Random, folder: Path) -> Damaged:
    """A text: loaded, and prepared for training."""
    base = "the cat sat on the mat, été naïve — and the dog ran. \n\r\n".encode() * 30
    bases = [base, base[:200], b"a", b"\xff\xfea\0b\0", rng.randbytes(300), b"\xf4\x8f\xbf\xbf" * 50]
    data = damaged_bytes(rng, rng.choice(bases))
    kind, split = rng.choice(["char", "char", "word"]), rng.choice(text.SPLITS)
    rows, steps = rng.randint(1, 9), rng.randint(1, 30)

    def use(path: Path) -> None:
        found = text.load_corpus(path)
        prepared = text.prepare(found, kind, split, rows, steps)
        for inputs, targets in prepared.train.batches(0):
            assert inputs.shape == targets.shape
        if kind == "char":
            assert prepared.tokenizer.decode(prepared.tokenizer.encode(found)) == found

    return Damaged("c.txt", data, use, (ValueError,))


def named_corpus(rng: random.Random, folder: Path) -> Damaged:
    """A copy of a text that is known by its checksum: never taken."""
    data = damaged_bytes(rng, b"First Citizen:\nBefore we proceed any further, hear me speak.\n" * rng.randint(1, 20))

    def use(path: Path) -> None:
        before = os.environ.get("FASTLSTM_DATA")
        os.environ["FASTLSTM_DATA"] = str(path.parent)
        try:
            text.load_corpus("shakespeare")
        finally:
            os.environ.pop("FASTLSTM_DATA")
            if before is not None:
                os.environ["FASTLSTM_DATA"] = before
        raise AssertionError("another text was taken for one that is known")

    return Damaged("tinyshakespeare.txt", data, use, (text.ChecksumError,))


KINDS: dict[Callable[[random.Random, Path], Damaged], tuple[str, int]] = {  # what each needs, and files of a hundred
    raw_checkpoint: ("", 30),
    made_checkpoint: ("", 13),
    raw_estimator: ("estimators", 12),
    made_estimator: ("estimators", 6),
    onnx_model: ("onnx", 5),
    keras_file: ("keras", 4),
    keras_weights: ("keras", 3),
    tokenizer: ("", 12),
    settings: ("", 6),
    corpus: ("", 6),
    named_corpus: ("", 3),
}


# Trials


def trial(rng: random.Random, folder: Path) -> int:
    """Some damaged files of every kind."""
    (folder / "case").mkdir(exist_ok=True)
    kinds = [kind for kind, (needs, _) in KINDS.items() if there(needs)]
    weights = [KINDS[kind][1] for kind in kinds]
    with warnings.catch_warnings(), np.errstate(all="ignore"), _bounded_addresses():
        warnings.simplefilter("ignore")
        for kind in rng.choices(kinds, weights, k=FILES):
            _try(kind(rng, folder), folder / "case", kind.__name__)
    return FILES


def _try(case: Damaged, folder: Path, kind: str) -> None:
    path = folder / case.name
    path.unlink(missing_ok=True)  # a file that is cut to nothing and written again waits for the disk
    path.write_bytes(case.data)
    before = _reset_peak()
    try:
        read = case.use(path)
    except case.errors as error:
        if case.errors == (fastlstm.FileError,) and path.name not in str(error):
            raise AssertionError(f"{kind}: the error does not name the file") from error
        read = None
    taken = _peak() - before
    most = _TIMES * len(case.data) + _MEMORY
    assert taken <= most, f"{kind}: a file of {len(case.data)} bytes took {taken} bytes of memory; expected at most {most}"
    if read is not None and case.then is not None:
        case.then(read)


@contextlib.contextmanager
def _bounded_addresses() -> Iterator[None]:
    """No more than some room beyond what the process has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@functools.cache
def _open(name: str, flags: int) -> int:
    """A file of this process's facts, which stays open."""
    return os.open(f"/proc/self/{name}", flags)


def _status(name: bytes) -> int:
    text = os.pread(_open("status", os.O_RDONLY), 4096, 0)
    return int(text[text.index(name) + len(name) :].split(maxsplit=1)[0]) * 1024


def _reset_peak() -> int:
    """Forget the most memory held so far; returns what is held."""
    os.pwrite(_open("clear_refs", os.O_WRONLY), b"5", 0)
    return _status(b"VmRSS:")


def _peak() -> int:
    return _status(b"VmHWM:")
