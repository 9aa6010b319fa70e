"""Keras's files: those of chains and models, and those that are not what they say."""

import ctypes
import io
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest

import fastlstm

pytest.importorskip("keras")
pytest.importorskip("h5py")

from fastlstm.adapters.keras import Chain, from_keras, to_keras
from tests.adapters.keras.models import (
    QUIET,
    L,
    built,
    close,
    h5py,
    ids,
    inputs,
    keras,
    numpy,
    same_parameters,
    same_weights,
    sequential,
    settle,
    stored,
)

pytestmark = QUIET


def test_files_of_a_chain(tmp_path):
    theirs = sequential(
        L.Bidirectional(L.LSTM(4, return_sequences=True)),
        L.Dropout(0.1),
        L.GRU(3, return_sequences=True, name="mine"),
        L.GRU(2, reset_after=False),
        L.Dense(2, name="lstm"),
    )
    whole, weights = stored(tmp_path, theirs)
    ours = from_keras(str(whole))
    close(ours(inputs()), theirs(inputs()))
    empty = from_keras(settle(keras.models.clone_model(theirs), seed=9))
    assert from_keras(weights, into=empty) is empty
    close(empty(inputs()), theirs(inputs()))


def test_files_of_many_layers_keep_their_order(tmp_path):
    theirs = sequential(*[L.GRU(5, return_sequences=True) for _ in range(12)])
    for source in stored(tmp_path, theirs):
        ours = from_keras(source)
        assert ours.num_layers == 12
        close(ours(inputs()), theirs(inputs())) if isinstance(ours, Chain) else close(ours(inputs())[0], theirs(inputs()))
        same_weights(to_keras(ours), theirs)


def test_files_of_models(tmp_path):
    theirs = sequential(L.Embedding(7, 4), L.LSTM(6, return_sequences=True), L.Dense(7), entry=(None,))
    whole, weights = stored(tmp_path, theirs)
    ours = from_keras(whole)
    other = fastlstm.LanguageModel(7, embedding_size=4, hidden_size=6, num_layers=1)
    from_keras(weights, into=other)
    same_parameters(ours, other)
    close(other(ids().T)[0].swapaxes(0, 1), theirs(ids()))


@pytest.mark.parametrize(
    "make",
    [
        lambda: L.LSTM(4, return_sequences=True),
        lambda: L.GRU(4, return_sequences=True),
        lambda: L.GRU(4, return_sequences=True, reset_after=False),
        lambda: L.Bidirectional(L.LSTM(4, return_sequences=True)),
    ],
)
def test_weights_alone_say_what_they_are(make, tmp_path):
    theirs = sequential(make(), make())
    _, weights = stored(tmp_path, theirs)
    ours = from_keras(weights)
    assert ours.num_layers == 2
    close(ours(inputs())[0], theirs(inputs()))


def test_weights_that_do_not_say_enough(tmp_path):
    def weights(*layers):
        return stored(tmp_path, sequential(*layers))[1]

    with pytest.raises(ValueError, match="activation simple_rnn has; pass into="):
        from_keras(weights(L.SimpleRNN(4)))
    with pytest.raises(ValueError, match="gru without biases"):
        from_keras(weights(L.GRU(4, use_bias=False)))
    with pytest.raises(ValueError, match="weights of dense, lstm"):
        from_keras(weights(L.LSTM(4), L.Dense(2)))
    lstm = weights(L.LSTM(4))
    with pytest.raises(ValueError, match="weights of lstm; into needs gru"):
        from_keras(lstm, into=fastlstm.GRU(5, 4))
    before = fastlstm.LSTM(5, 3, seed=0)
    with pytest.raises(ValueError, match=r"lstm, has variables of shapes \[\[5, 16\].*expected \[\[5, 12\]"):
        from_keras(lstm, into=before)
    same_parameters(before, fastlstm.LSTM(5, 3, seed=0))
    with pytest.raises(ValueError, match="tie_weights"):
        from_keras(lstm, into=fastlstm.LanguageModel(7, hidden_size=4, tie_weights=True))
    with pytest.raises(TypeError, match="into is int"):
        from_keras(lstm, into=3)
    with pytest.raises(ValueError, match="only: others say what they hold"):
        from_keras(built(L.LSTM(4), 5), into=fastlstm.LSTM(5, 4))


def run(code, *arguments):
    environment = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, env=environment)


def test_files_need_no_keras(tmp_path):
    theirs = sequential(L.LSTM(4))
    whole, weights = stored(tmp_path, theirs)
    code = """
import sys
sys.modules["keras"] = None
from fastlstm.adapters.keras import from_keras, to_keras
for path in sys.argv[1:]:
    layer = from_keras(path)
    print(layer)
assert not {"torch", "tensorflow", "jax"} & set(sys.modules)
try:
    to_keras(layer)
except ImportError as error:
    print(error)
try:
    from_keras(layer)
except TypeError as error:
    print(error)
sys.modules["h5py"] = None
try:
    from_keras(path)
except ImportError as error:
    print(error)
"""
    done = run(code, whole, weights)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert lines[:2] == ["LSTM(5, 4, batch_first=True)"] * 2
    assert lines[2].startswith('to_keras needs Keras 3 and a backend of it: pip install "fastlstm[keras]"')
    assert lines[3].startswith("source is LSTM; expected a layer or model of Keras 3, or the path")
    assert lines[4] == 'reading files of Keras needs h5py: pip install "fastlstm[keras]"'


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
@pytest.mark.parametrize(
    "top",
    [
        lambda: [L.SimpleRNN(6, return_sequences=True, activation="relu")],
        lambda: [L.LSTM(6, return_sequences=True), L.LSTM(6, return_sequences=True)],
        lambda: [L.GRU(6, return_sequences=True, reset_after=False)],
        lambda: [L.Normalization(mean=[1.0] * 5, variance=[4.0] * 5), L.GRU(6, return_sequences=True), L.GRU(6), L.Dense(3)],
    ],
)
def test_from_keras_to_plain_c(top, tmp_path):
    c = pytest.importorskip("fastlstm.adapters.c")
    theirs = sequential(*top())
    theirs.save(tmp_path / "model.keras")
    done = c.export(from_keras(tmp_path / "model.keras"), tmp_path)
    subprocess.run(["cc", "-std=c99", "-O1", "-shared", "-fPIC", "-o", tmp_path / "model.so", done.source, "-lm"], check=True)
    program = ctypes.CDLL(str(tmp_path / "model.so"))
    state, x, expected = ctypes.create_string_buffer(done.state_bytes), inputs(), numpy(theirs(inputs()))
    found = np.zeros_like(expected)
    for b in range(len(x)):
        program.model_reset(state)
        for t in range(x.shape[1]):
            out = found[b, t] if expected.ndim == 3 else found[b]
            program.model_step(
                state, np.ascontiguousarray(x[b, t]).ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p)
            )
    close(found, expected)


# Files that are not what they say


def rezipped(source, target, **members):
    """A copy of a .keras file with other members; None leaves one out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for name in {*old.namelist(), *members}:
            content = members[name] if name in members else old.read(name)
            if content is not None:
                new.writestr(name, content)
    return target


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keras")
    theirs = sequential(L.Bidirectional(L.LSTM(4, return_sequences=True)), L.GRU(3), L.Dense(2))
    return stored(folder, theirs)[0]


def weights_of(whole, edit):
    """The HDF5 part of a .keras file, edited."""
    with zipfile.ZipFile(whole) as archive:
        data = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(data, "a") as file:
        edit(file)
    return data.getvalue()


def test_a_file_packed_again_is_read(whole, tmp_path):
    x = inputs()
    np.testing.assert_array_equal(from_keras(rezipped(whole, tmp_path / "a.keras"))(x), from_keras(whole)(x))


def test_damaged_files(whole, tmp_path):
    def refused(content, text):
        path = tmp_path / "bad.keras"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=text):
            from_keras(path)

    content = whole.read_bytes()
    refused(b"", "neither a .keras file nor")
    refused(b"\x80\x04\x95 pickled", "neither a .keras file nor")
    refused(content[: len(content) // 2], "neither a .keras file nor")
    with zipfile.ZipFile(whole) as archive:
        weights = archive.read("model.weights.h5")
    refused(weights[:2000], "is damaged")
    for members, text in (
        ({"config.json": b"{"}, "config.json is not a JSON"),
        ({"config.json": b"[" * 100_000}, "nests deeper than 64"),
        ({"config.json": b"[]"}, "not a JSON object"),
        ({"config.json": b"{}"}, "expected class_name and config"),
        ({"config.json": None}, "expected config.json and model.weights.h5"),
        ({"model.weights.h5": None, "model.weights.npz": b""}, "expected config.json and model.weights.h5"),
        ({"model.weights.h5": b"no"}, "is damaged"),
        ({"model.weights.h5": weights[:3000]}, "is damaged"),
        ({"metadata.json": b'{"keras_version": "2.13.1"}'}, "written by Keras 2.13.1"),
        ({"config.json": b" " * (1 << 25)}, "declares 33554432 bytes of config.json"),
    ):
        with pytest.raises(fastlstm.FileError, match=text) as told:
            from_keras(rezipped(whole, tmp_path / "bad.keras", **members))
        assert "bad.keras" in str(told.value)
    with pytest.raises(ValueError, match="is a folder"):
        from_keras(tmp_path)
    with h5py.File(tmp_path / "old.h5", "w") as file:
        file.attrs["layer_names"] = ["a"]
    with pytest.raises(ValueError, match="Keras 2"):
        from_keras(tmp_path / "old.h5")
    with h5py.File(tmp_path / "none.h5", "w") as file:
        file["lstm/vars/0"] = np.zeros(3)
    with pytest.raises(ValueError, match="no layers with weights"):
        from_keras(tmp_path / "none.h5")


def relabelled(path, name, **fields):
    """Change what the central directory of a zip says of one member."""
    data, at = bytearray(path.read_bytes()), 0
    while (at := data.index(b"PK\x01\x02", at)) >= 0:
        if data[at + 46 :].startswith(name.encode()):
            break
        at += 4
    for field, value in fields.items():
        offset, size = {"method": (10, 2), "compress_size": (20, 4), "file_size": (24, 4)}[field]
        data[at + offset : at + offset + size] = value.to_bytes(size, "little")
    path.write_bytes(data)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_members_packed_in_ways_that_keras_does_not_use(method, whole, tmp_path):
    path = tmp_path / "bad.keras"
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(fastlstm.FileError, match=rf"bad\.keras has .* packed by method {method}; expected it stored or defl"):
        from_keras(path)


@pytest.mark.parametrize("lie", [{"compress_size": 1 << 30}, {"file_size": 100}, {"file_size": 1 << 22, "compress_size": 9}])
def test_a_directory_that_lies_about_sizes_costs_no_memory(lie, whole, tmp_path):
    path = rezipped(whole, tmp_path / "bad.keras", **{"config.json": b" " * (1 << 26)})
    relabelled(path, "config.json", **lie)
    tracemalloc.start()
    try:
        with pytest.raises(fastlstm.FileError, match=r"bad\.keras (is damaged|declares)"):
            from_keras(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 25
    finally:
        tracemalloc.stop()


def test_what_is_wrong_with_into_is_no_fault_of_the_file(whole, tmp_path):
    weights = tmp_path / "a.weights.h5"
    sequential(L.LSTM(4)).save_weights(weights)
    for path, into, kind, text in (
        (weights, 3, TypeError, "^into is int; expected"),
        (weights, [], TypeError, "^into is list"),
        (weights, fastlstm.LSTM(5, 4, proj_size=2), ValueError, "^into has proj_size=2"),
        (weights, fastlstm.LanguageModel(5, tie_weights=True, hidden_size=4), ValueError, "^into has tie_weights"),
        (whole, fastlstm.LSTM(5, 4), ValueError, "^into is given"),
    ):
        with pytest.raises(kind, match=text) as told:
            from_keras(path, into=into)
        assert not isinstance(told.value, fastlstm.FileError)
    with pytest.raises(fastlstm.FileError, match=r"a\.weights\.h5"):
        from_keras(weights, into=fastlstm.GRU(5, 4))


def test_an_end_beyond_all_files(whole, tmp_path):
    with zipfile.ZipFile(whole) as archive:
        weights = bytearray(archive.read("model.weights.h5"))
    weights[41:49] = (2**63).to_bytes(8, "little")  # in the address of their end
    path = rezipped(whole, tmp_path / "bad.keras", **{"model.weights.h5": bytes(weights)})
    with pytest.raises(fastlstm.FileError, match="is damaged .OverflowError"):
        from_keras(path)


def test_many_arrays_that_each_declare_a_little_are_counted_together(tmp_path):
    with h5py.File(tmp_path / "a.weights.h5", "w") as file:
        for k in range(20):  # nothing is stored of them
            for number, shape in enumerate([(250, 1000), (250, 1000), (1000,)]):
                place = f"layers/lstm{f'_{k}' if k else ''}/cell/vars/{number}"
                file.create_dataset(place, shape, np.float32)
    with pytest.raises(fastlstm.FileError, match=r"a\.weights\.h5 declares \d+ bytes of variables up to layers/lstm_"):
        from_keras(tmp_path / "a.weights.h5")


def test_arrays_that_lead_elsewhere_or_declare_too_much(whole, tmp_path):
    place = "layers/gru/cell/vars/0"
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["kernel"] = np.zeros((8, 9), np.float32)
    (tmp_path / "raw").write_bytes(bytes(288))

    def soft(file):
        file[place] = h5py.SoftLink("/layers/gru/cell/vars/1")

    def outside(file):
        file[place] = h5py.ExternalLink(str(secret), "kernel")

    def raw(file):
        file.create_dataset(place, (8, 9), np.float32, external=[(str(tmp_path / "raw"), 0, 288)])

    def virtual(file):
        layout = h5py.VirtualLayout((8, 9), np.float32)
        layout[:] = h5py.VirtualSource(secret, "kernel", (8, 9))
        file.create_virtual_dataset(place, layout)

    def huge(file):
        file.create_dataset(place, (1 << 32, 9), np.float32, chunks=(1 << 10, 9), compression="gzip")

    def text(file):
        file[place] = "kernel"

    def wider(file):
        file[place] = np.zeros((9, 9), np.float32)

    def group(file):
        file.create_group(place)

    def nothing(file):
        file[place] = h5py.Empty("f")

    for change, expected in (
        (soft, "has a link at"),
        (outside, "has a link at"),
        (raw, "no plain array"),
        (virtual, "no plain array"),
        (huge, "declares 1546188.* bytes"),
        (text, "dtype object"),
        (wider, "reads 9 features.*gives 8"),
        (group, "no plain array"),
        (nothing, "no plain array"),
        (lambda file: None, "has variables"),
    ):

        def edit(file, change=change):
            del file[place]
            change(file)

        path = rezipped(whole, tmp_path / "bad.keras", **{"model.weights.h5": weights_of(whole, edit)})
        with pytest.raises(ValueError, match=expected):
            from_keras(path)


def test_nothing_in_a_file_is_run(tmp_path):
    mark = tmp_path / "run"
    theirs = keras.Sequential([keras.Input((None, 5)), L.LSTM(4, return_sequences=True), L.Lambda(lambda x: x)])
    theirs.save(tmp_path / "lambda.keras")
    with pytest.raises(ValueError, match=r"\(Lambda\) is not served"):
        from_keras(tmp_path / "lambda.keras")
    layer = {"module": "os", "class_name": "system", "config": {"name": "a", "command": f"touch {mark}"}}
    config = {"module": "keras", "class_name": "Sequential", "config": {"name": "b", "layers": [layer]}}
    path = rezipped(tmp_path / "lambda.keras", tmp_path / "bad.keras", **{"config.json": json.dumps(config)})
    with pytest.raises(ValueError, match=r"\(os.system\) is not served"):
        from_keras(path)
    assert not mark.exists()


def places(value, path=()):
    """Every place in a JSON value."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def replaced(value, path, new):
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


@pytest.mark.filterwarnings("ignore:left out")
def test_any_change_of_a_configuration_is_read_or_refused(tmp_path):
    """Never another exception than ValueError, never anything but a layer or model."""
    entry = keras.Input((None, 5))
    h = L.Bidirectional(L.GRU(3, return_sequences=True))(L.Normalization()(entry))
    h = L.Dense(2)(L.Bidirectional(L.GRU(3))(L.Dropout(0.1)(h)))
    theirs = keras.Model(entry, L.Rescaling(2.0, 1.0)(L.Reshape((1, 2))(h)))
    path, bad = tmp_path / "model.keras", tmp_path / "bad.keras"
    theirs.save(path)
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
    assert from_keras(path).shape.num_layers == 2
    rng, every = np.random.default_rng(7), list(places(config))
    refused = 0
    for place in every:
        new = [None, True, -1, 1e300, "x", [], {}, [{}], {"class_name": "y"}, 2**70][int(rng.integers(10))]
        rezipped(path, bad, **{"config.json": json.dumps(replaced(config, place, new))})
        try:
            from_keras(bad)
        except ValueError:
            refused += 1
    assert 0.2 * len(every) < refused < 0.9 * len(every)
