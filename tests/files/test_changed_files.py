"""Files from outside: checkpoints and settings that were changed, with a checksum made anew, and stored ones of long ago."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastlstm
from fastlstm.command import train
from fastlstm.files import records, schema
from fastlstm.text import prepare
from fastlstm.training import checkpoint
from fastlstm.training.checkpoint import CheckpointError
from fastlstm.training.state import Job

STORED = Path(__file__).parents[1] / "stored"
TEXT = "the cat sat on the mat, and the dog ran. " * 12


def data(tokens):
    return prepare(TEXT, tokens, batch_size=2, seq_len=8)[1:]


# What was written before the tables were


@pytest.mark.parametrize(
    ("tokens", "start"), [("char", "cr. r,oad.aoomaccmostna.,a."), ("word", " and sat, <unk> sat, on the mat")]
)
def test_stored_language_models_load_and_go_on(tokens, start, tmp_path):
    file = STORED / f"{tokens}.safetensors"
    assert fastlstm.load(file).generate("the", 40, seed=1).startswith(start)
    (tmp_path / checkpoint.LAST).write_bytes(file.read_bytes())
    trainer = fastlstm.Trainer.resume(tmp_path, *data(tokens), progress=False)
    assert trainer.steps == 9
    assert trainer.fit()[-1]["epoch"] == 3


def test_a_stored_regressor_predicts_as_it_did():
    inputs = np.random.default_rng(0).standard_normal((12, 5, 2)).astype("f4")
    found = fastlstm.load(STORED / "series.safetensors").model.predict(inputs[0])
    np.testing.assert_allclose(found, [[-0.1796138435602188, 0.4229084253311157]], rtol=1e-5)


# Records


def _changed(record, path, value):
    *inner, last = path.split(".")
    for key in inner:
        record = record[key]
    if value is KeyError:
        del record[last]
    else:
        record[last] = value


def forged(tmp_path, changes, arrays=None, name="char"):
    """A folder with a stored checkpoint whose record and arrays were changed, its checksums made anew."""
    found, record = checkpoint.read_checkpoint(STORED / f"{name}.safetensors")
    for path, value in changes.items():
        _changed(record, path, value)
    checkpoint.write_checkpoint(tmp_path / checkpoint.LAST, found | (arrays or {}), record)
    return tmp_path


BOTH = [  # what neither `load` nor `resume` takes
    ("model", 7, "record.model is 7; expected an object"),
    ("model", KeyError, "record lacks model"),
    ("more", 7, "record has the unknown 'more'"),
    ("model.type", "Trainer", "model.type is 'Trainer'; expected one of 'LanguageModel'"),
    ("model.type", ["LanguageModel"], "model.type is"),
    ("model.hidden_size", 9000, r"array model.rnn.weight_ih_l0 is \[12, 2\] of float32; expected \[36000, 2\].*, by model"),
    ("model.hidden_size", 0, "model.hidden_size is 0; expected a whole number from 1"),
    ("model.hidden_size", 3.0, "model.hidden_size is 3.0; expected a whole number"),
    ("model.num_layers", 10**6, "model.num_layers is 1000000; expected at most 13"),
    ("model.num_layers", 1, "unknown .*_l1"),
    ("model.vocab_size", 10**30, "model.vocab_size is .*; expected a whole number"),
    ("model.vocab_size", True, "model.vocab_size is True; expected a whole number"),
    ("model.dtype", "float64", "of float32; expected .* of float64, by model"),
    ("model.dtype", "object", "model.dtype is 'object'"),
    ("model.device", "cuda:" + "9" * 99, "model.device is"),
    ("model.tie_weights", True, "unknown .*head.weight"),
    ("model.dropout", 1.5, "model.dropout is 1.5; expected a finite number from 0 to 1"),
    ("model.extra", 1, "model has the unknown 'extra'"),
    ("random_state", 7, "random_state is 7; expected an object"),
    ("random_state.seed", None, "random_state.seed is None"),
    ("random_state.dropout_calls", 10**30, "random_state.dropout_calls is"),
    ("tokenizer", 7, "record.tokenizer is 7; expected an object"),
    ("tokenizer.type", KeyError, "tokenizer: config.type is None"),
    ("tokenizer.symbols", "abcabc", "tokenizer: symbols: each character may occur once"),
    ("tokenizer.symbols", "abcdefghijklmnopqrstuvwxyz", "tokenizer has 26 tokens, the model 15"),
    ("history", {}, "record.history is {}; expected a list"),
    ("history", [7], r"record.history\[0\] is 7"),
    ("clip_norm", 0, "record.clip_norm is 0; expected a finite number above 0"),
    ("steps", -1, "record.steps is -1"),
    ("job.patience", 0.5, "record.job.patience is 0.5"),
    ("job.more", 0, "record.job has the unknown 'more'"),
    ("state_is_tuple", False, "state has 2 arrays and state_is_tuple False"),
]
RESUMED = [
    ("optimizer", 7, "optimizer is 7; expected an object"),
    ("optimizer.type", "eval", "optimizer.type is 'eval'; expected one of 'SGD'"),
    ("optimizer.type", "SGD", "optimizer lacks momentum"),
    ("optimizer.betas", 7, "optimizer.betas is 7; expected a list of 2"),
    ("optimizer.lr", "a", "optimizer.lr is 'a'; expected a finite number"),
    ("optimizer_steps", None, "record.optimizer_steps is None"),
    ("base_lr", "a", "record.base_lr is 'a'"),
    ("schedule", 7, "schedule is 7; expected an object"),
    ("schedule.type", "Other", "schedule.type is 'Other'"),
    ("schedule.factor", 2, "schedule.factor is 2"),
    ("schedule_state", 7, "schedule_state is 7"),
    ("schedule_state.scale", "a", "schedule_state.scale is 'a'"),
    ("schedule", None, "schedule_state is .*; expected null"),
    ("batch", 10**6, "record.batch is 1000000; expected a whole number from 0 to 27"),
]
ARRAYS = [
    ("model.head.bias", np.zeros((1, 15), np.float32), r"head.bias is \[1, 15\]"),
    ("model.head.bias", np.zeros(15, np.uint8), r"head.bias is \[15\] of uint8; expected \[15\] of float32"),
    ("model.head.more", np.zeros(15), "unknown .*head.more"),
    ("nobodys", np.zeros(15), "array 'nobodys' is unknown"),
    ("state.0", np.zeros((2, 2, 9), np.float32), "array state.0 is"),
    ("state.1", np.zeros((2, 5, 3), np.float32), r"array state.1 is \[2, 5, 3\] of float32; expected \[2, 2, 3\]"),
    ("state.0", np.zeros((2, 0, 2), np.float32), "array state.0 is"),
    ("state.2", np.zeros((2, 2, 3), np.float32), "state has 3 arrays"),
]


@pytest.mark.parametrize(("path", "value", "message"), BOTH)
def test_records_that_are_not_as_they_should_be(path, value, message, tmp_path):
    folder = forged(tmp_path, {path: value})
    for read in (fastlstm.load, lambda file: fastlstm.Trainer.resume(file, *data("char"))):
        with pytest.raises(CheckpointError, match=message) as told:
            read(folder)
        assert checkpoint.LAST in str(told.value)


@pytest.mark.parametrize(("path", "value", "message"), RESUMED)
def test_what_only_training_needs(path, value, message, tmp_path):
    folder = forged(tmp_path, {path: value})
    with pytest.raises(CheckpointError, match=message) as told:
        fastlstm.Trainer.resume(folder, *data("char"))
    assert checkpoint.LAST in str(told.value)


@pytest.mark.parametrize(("name", "array", "message"), ARRAYS)
def test_arrays_that_are_not_those_of_the_record(name, array, message, tmp_path):
    folder = forged(tmp_path, {}, {name: array})
    for read in (fastlstm.load, lambda file: fastlstm.Trainer.resume(file, *data("char"))):
        with pytest.raises(CheckpointError, match=message):
            read(folder)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("optimizer.m", np.zeros(7, np.float32), r"optimizer.m is \[7\] of float32; expected \[231\]"),
        ("optimizer.m.weight", np.zeros(231, np.float32), "array 'optimizer.m.weight' is unknown"),
        ("optimizer.square", np.zeros(231, np.float32), "optimizer: state array 'square' is not of"),
    ],
)
def test_moments_that_are_not_the_optimizers(name, array, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        fastlstm.Trainer.resume(forged(tmp_path, {}, {name: array}), *data("char"))


def test_a_state_of_models_that_carry_none(tmp_path):
    folder = forged(tmp_path, {}, {"state.0": np.zeros((2, 2, 3), np.float32)}, "series")
    with pytest.raises(CheckpointError, match="no state of a SequenceRegressor"):
        fastlstm.load(folder)


def test_types_that_numpy_lacks_are_told(tmp_path):
    header = {"__metadata__": {"fastlstm": "{}"}, "a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}
    text = json.dumps(header).encode()
    (tmp_path / checkpoint.LAST).write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(CheckpointError, match="type of array 'a' is 'BF16'; expected one of"):
        fastlstm.load(tmp_path)


@pytest.mark.parametrize("text", ["[" * 2000, '{"a":' * 2000, '{"format": 1, "record": ' + "[" * 900 + "]" * 900 + "}"])
def test_deep_json_is_told(text, tmp_path):
    checkpoint.write_tensors(tmp_path / "a", {"x": np.ones(1)}, {"fastlstm": text})
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(CheckpointError, match="deeper than 64 levels"):
        fastlstm.load(tmp_path / "a")
    with pytest.raises(CheckpointError, match="settings.json .* deeper than 64 levels"):
        checkpoint.read_json(tmp_path / "settings.json")


def test_json_that_would_take_far_more_memory_than_its_text():
    with pytest.raises(ValueError, match="bytes of memory"):
        schema.parse("[" + "[]," * 10**6 + "[]]")
    assert schema.parse('["a\\"]", {"b": [1, 2.5, null]}]') == ['a"]', {"b": [1, 2.5, None]}]
    for text in ("NaN", "[-Infinity]", '"', "[1,", '"\\'):
        with pytest.raises(ValueError, match="JSON|Expecting|Unterminated|string"):
            schema.parse(text)


def test_one_class_names_all_errors_of_files():
    assert issubclass(CheckpointError, fastlstm.FileError)
    assert issubclass(fastlstm.FileError, ValueError)


SMALL = """
import resource, sys
import fastlstm
fastlstm.load(sys.argv[1]).generate("the", 5)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    fastlstm.load(sys.argv[2])
except fastlstm.CheckpointError:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
@pytest.mark.parametrize("changes", [{"model.hidden_size": 9000}, {"model.num_layers": 10**6}, {"model.vocab_size": 10**8}])
def test_a_small_file_takes_little_memory(changes, tmp_path):
    folder = forged(tmp_path, changes)
    command = [sys.executable, "-c", SMALL, str(STORED / "char.safetensors"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert int(done.stdout) * 1024 < 64 * 2**20


# The tables are those of what is written


MODELS = [
    fastlstm.LanguageModel(5, cell, 4 if tied else 3, 4, layers, tie_weights=tied, reset_after=False, seed=0)
    for cell, layers, tied in (("lstm", 1, True), ("gru", 2, False), ("rnn", 3, True))
] + [
    fastlstm.LanguageModel(5, hidden_size=4, proj_size=2, num_layers=2, dtype="float64", seed=0),
    fastlstm.SequenceRegressor(2, 3, 4, "gru", 5, 2, bidirectional=True, seed=0),
    fastlstm.SequenceRegressor(2, 3, normalize=False, proj_size=3, hidden_size=6, dtype="bfloat16", seed=0),
    fastlstm.SequenceClassifier(3, 4, "rnn", 5, bidirectional=True, seed=0),
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: f"{type(model).__name__}-{model.shape.cell}-{model.dtype}")
def test_the_shapes_that_a_record_implies_are_the_models(model, tmp_path):
    schema.tagged(records.MODELS)("model", model.config)
    arrays = model.state_dict()
    assert records.network_shapes(model.config) == {name: array.shape for name, array in arrays.items()}
    records.check_network("model", model.config, arrays)
    path = fastlstm.Trainer(model, progress=False).save(tmp_path)
    assert fastlstm.load(path).model.config == model.config


def test_every_optimizer_and_schedule_has_a_table():
    own = [fastlstm.SGD(0.1, 0.5, nesterov=True), fastlstm.RMSprop(), fastlstm.Adam(), fastlstm.AdamW()]
    for optimizer in own:
        schema.tagged(records.OPTIMIZERS)("optimizer", checkpoint.plain(optimizer.config))
    assert {type(optimizer).__name__ for optimizer in own} == set(records.OPTIMIZERS)
    schedules = [fastlstm.Constant(), fastlstm.CosineWarmup(0, 5), fastlstm.StepDecay(5), fastlstm.Plateau()]
    for one in schedules:
        schema.tagged(records.SCHEDULES)("schedule", one.config)
    assert {type(one).__name__ for one in schedules} == set(records.SCHEDULES)
    assert records._JOB.keys() == Job.__dataclass_fields__.keys()


# Settings of a run on the command line


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "text").write_text(TEXT * 3)
    from fastlstm.command.cli import main

    out = folder / "out"
    assert (
        main(
            [
                "train",
                str(folder / "text"),
                "--out",
                str(out),
                "--epochs",
                "1",
                "--hidden-size",
                "3",
                "--num-layers",
                "1",
                "--batch-size",
                "2",
                "--seq-len",
                "8",
                "--quiet",
            ]
        )
        == 0
    )
    return json.loads((out / checkpoint.SETTINGS).read_text())


def test_settings_have_a_table(settings, tmp_path):
    (tmp_path / checkpoint.SETTINGS).write_text(json.dumps(settings))
    assert train._read_settings(tmp_path) == settings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": KeyError}, "settings lacks tokens"),
        ({"tokens": "bytes"}, "settings.tokens is 'bytes'; expected one of 'char', 'word', 'bpe'"),
        ({"text": 7}, "settings.text is 7; expected text"),
        ({"text": "a\0b"}, "settings.text is .*; expected text like"),
        ({"text_sha256": "x"}, "settings.text_sha256 is 'x'"),
        ({"batch_size": 2.5}, "settings.batch_size is 2.5"),
        ({"epochs": "1"}, "settings.epochs is '1'"),
        ({"minutes": -1}, "settings.minutes is -1"),
        ({"more": 1}, "settings has the unknown 'more'"),
    ],
)
def test_settings_that_are_not_as_they_should_be(settings, change, message, tmp_path):
    changed = {name: value for name, value in {**settings, **change}.items() if value is not KeyError}
    (tmp_path / checkpoint.SETTINGS).write_text(json.dumps(changed))
    with pytest.raises(CheckpointError, match=message) as told:
        train._read_settings(tmp_path)
    assert checkpoint.SETTINGS in str(told.value)


def test_settings_that_are_no_object(tmp_path):
    (tmp_path / checkpoint.SETTINGS).write_text("[]")
    with pytest.raises(CheckpointError, match=r"settings is \[\]; expected an object"):
        train._read_settings(tmp_path)
