"""The store of compiled kernels: never stale, never half a file, right under a crowd; and the choice of instructions.

Works on a copy of the package with a kernel file of its own (cheap to compile), each test with a cache of its own.
"""

import ast
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

import fastlstm
from fastlstm import kernels
from fastlstm.kernels.native import jit
from fastlstm.runtime import info

PACKAGE, KERNELS = Path(fastlstm.__file__).parent, Path(kernels.__file__).parent
COMPILING = "compiling kernels"
PROBE = '''
"""Kernels like the real ones, but small: y = tanh(x), and y = k x for several k from one factory."""

from typing import NamedTuple

from .vector.activations import make_tanh


class Values(NamedTuple):
    count: int
    x: int
    y: int


def bent(simd):
    tanh, load, store, lanes = make_tanh(simd), simd.load, simd.store, simd.lanes

    def kernel(thread, threads, a: Values):
        for k in range(0, a.count, lanes):
            store(a.y, k, tanh(load(a.x, k)))

    return kernel


def _times(factor):
    def factory(simd):
        by, load, store, lanes = simd.splat(factor), simd.load, simd.store, simd.lanes

        def kernel(thread, threads, a: Values):
            for k in range(0, a.count, lanes):
                store(a.y, k, load(a.x, k) * by())

        return kernel

    return factory


times2, times3, times5 = _times(2.0), _times(3.0), _times(5.0)


def talking(simd):
    def kernel(thread, threads, a: Values):
        print(threads)

    return kernel
'''
CALL = """
import sys
from collections import namedtuple
import numpy as np
from fastlstm.kernels.operations import OPERATIONS, Operation
from fastlstm.runtime.engine import engine

def call(name, dtype="float32"):
    cpu = engine("cpu", dtype)
    x, y = cpu.zeros(16), cpu.zeros(16)
    x[:] = np.linspace(-2, 2, 16)
    record = namedtuple(name, "count x y")
    OPERATIONS[record] = Operation("probe." + name, "")
    cpu.run(record(16, x, y), work=0)
    return x, y
"""
BENT = CALL + "print(call('bent')[1].tobytes().hex(), 'numba' in sys.modules)"
MULTIPLY = (
    CALL
    + """
wrong = []
for shift in (0, 1, 2):
    for name, factor in [("times2", 2), ("times3", 3), ("times5", 5)][shift:]:
        x, y = call(name)
        wrong += [name] * (not np.array_equal(y, factor * x))
print("right" if not wrong else wrong)
"""
)


class Copy:
    """A copy of the package and the environment to run it in."""

    def __init__(self, folder, cache):
        self.folder, self.kernels = folder, folder / "fastlstm" / "kernels"
        self.cache = cache
        self.environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("FASTLSTM_", "XDG_", "PYTHONPATH", "COVERAGE_"))
        }
        self.environment |= {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "FASTLSTM_CACHE": str(cache)}

    def arguments(self, code, without=(), **environment):
        both = {key: value for key, value in (self.environment | environment).items() if key not in without}
        return {"args": [sys.executable, "-c", code], "env": both, "cwd": self.folder, "text": True}

    def python(self, code, without=(), **environment):
        return subprocess.run(**self.arguments(code, without, **environment), capture_output=True, timeout=300)

    def value(self, code=BENT, **environment):
        """What the program prints, and whether it compiled."""
        done = self.python(code, **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.split(), COMPILING in done.stderr

    def objects(self):
        return sorted(self.cache.rglob("*.o"))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("copy")
    ignore = shutil.ignore_patterns("__pycache__", "kernels")
    shutil.copytree(PACKAGE, folder / "fastlstm", ignore=ignore)
    shutil.copytree(KERNELS, folder / "fastlstm" / "kernels", ignore=ignore)
    (folder / "fastlstm" / "kernels" / "probe.py").write_text(PROBE)
    return folder


@pytest.fixture
def copy(source, tmp_path):
    return Copy(source, tmp_path / "cache")


@pytest.fixture(scope="module")
def filled(source, tmp_path_factory):
    """A cache that holds the kernel `bent`, and what that gives."""
    copy = Copy(source, tmp_path_factory.mktemp("filled"))
    return copy.cache, copy.value()[0][0]


@pytest.fixture
def warm(copy, filled):
    """A copy whose cache is filled, and `bits`: what the kernel gives."""
    cache, copy.bits = filled
    shutil.copytree(cache, copy.cache)
    return copy


def test_compiled_once_and_loaded_without_numba(copy):
    (first, numba), compiled = copy.value()
    assert (compiled, numba) == (True, "True")
    assert np.allclose(np.frombuffer(bytes.fromhex(first), np.float32), np.tanh(np.linspace(-2, 2, 16)))
    assert [path.name.split("-")[0] for path in copy.objects()] == [f"fastlstm.probe.bent.float32.{jit.supported()[0]}"]
    (second, numba), compiled = copy.value()
    assert (second, compiled, numba) == (first, False, "False")
    assert COMPILING not in copy.python(BENT, FASTLSTM_QUIET="1", FASTLSTM_CACHE=str(copy.cache / "other")).stderr


def test_an_edited_helper_is_seen(warm):
    helper = warm.kernels / "vector" / "activations.py"
    text = helper.read_text()
    edited = text.replace("simd.splat(-2.0)", "simd.splat(-4.0)")  # tanh(x) becomes tanh(2 x)
    assert text.count("simd.splat(-2.0)") == 1
    try:
        helper.write_text(edited)
        os.utime(helper, (0, 0))  # nor does the time stamp decide
        (after, _), compiled = warm.value()
        assert compiled
        assert np.allclose(np.frombuffer(bytes.fromhex(after), np.float32), np.tanh(2 * np.linspace(-2, 2, 16)))
    finally:
        helper.write_text(text)
    assert warm.value() == ([warm.bits, "False"], False)


@pytest.mark.parametrize("damage", ["cut", "empty", "a bit", "another kernel's", "text"])
def test_a_damaged_file_is_compiled_anew(warm, damage):
    (path,) = warm.objects()
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    if damage == "another kernel's":
        warm.value(CALL + "call('times2'); print()")
        flipped = next(p for p in warm.objects() if "times2" in p.name).read_bytes()
    path.write_bytes({"cut": whole[:middle], "empty": b"", "text": b"hello\n" * 9}.get(damage, flipped))
    assert warm.value() == ([warm.bits, "True"], True)
    assert path.read_bytes() == whole
    assert warm.value() == ([warm.bits, "False"], False)


def test_twelve_processes_at_once_on_an_empty_cache(copy):
    running = [subprocess.Popen(**copy.arguments(MULTIPLY), stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(12)]
    for process in running:
        out, err = process.communicate(timeout=300)
        assert out == "right\n", err
    assert copy.value(MULTIPLY) == (["right"], False)
    assert len(copy.objects()) == 3
    assert not [path for path in copy.cache.rglob("*") if path.is_file() and path.suffix != ".o"]  # no temporary is left


def test_two_threads_compile_one_kernel(copy):
    code = (
        CALL
        + """
import threading
from fastlstm.kernels.native import jit
found = []
threads = [threading.Thread(target=lambda: found.append(jit.compiled("probe.times2"))) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(found), len(set(found)))
"""
    )
    assert copy.value(code)[0] == ["4", "1"]


@pytest.mark.parametrize("where", ["/dev/null/cache", "a file"])
def test_without_a_folder_to_write_kernels_live_in_memory(copy, where, tmp_path):
    if where == "a file":
        (tmp_path / "file").write_text("")
        where = str(tmp_path / "file")
    code = BENT + "\nfrom fastlstm.kernels.native import jit; print(jit.cache_folder())"
    (_, _, folder), compiled = copy.value(code, FASTLSTM_CACHE=where)
    assert (folder, compiled) == ("None", True)


FOLDER = "import os; os.umask(0)\nfrom fastlstm.kernels.native import jit; print(jit.cache_folder())"
UNKNOWN_USER = "import pwd\ndef unknown(uid): raise KeyError(uid)\npwd.getpwuid = unknown\n"


@pytest.mark.skipif(sys.platform != "linux", reason="XDG folders")
@pytest.mark.parametrize("home", ["xdg", "unknown", "unwritable"])
def test_without_a_home_another_folder_serves(copy, home, tmp_path):
    """Unknown: a user without an entry, as in many containers. Nobody else may write where machine code is read from."""
    (tmp_path / "tmp").mkdir()
    settings = {"TMPDIR": str(tmp_path / "tmp")} | ({"XDG_CACHE_HOME": str(tmp_path / "xdg")} if home == "xdg" else {})
    settings |= {"HOME": "/dev/null"} if home == "unwritable" else {}
    without = ("FASTLSTM_CACHE",) if home == "unwritable" else ("FASTLSTM_CACHE", "HOME")
    done = copy.python((UNKNOWN_USER if home == "unknown" else "") + FOLDER, without, **settings)
    assert done.returncode == 0, done.stderr
    root = tmp_path / "xdg" / "fastlstm" if home == "xdg" else tmp_path / "tmp" / f"fastlstm-{os.getuid()}"
    folder = Path(done.stdout.strip())
    assert folder.is_relative_to(root)
    assert folder.stat().st_mode & 0o022 == 0
    assert root.stat().st_mode & 0o022 == 0


def planted(warm, cache):
    """A stored kernel as an attacker has it: another's code under this one's name and with the right checksum."""
    shutil.copytree(warm.cache, cache)
    shutil.rmtree(warm.cache)
    (path,) = cache.rglob("*.o")
    symbol = path.name.rpartition("-")[0]
    rest = path.read_bytes().partition(b"\n")[2] + b"planted"
    path.write_bytes(hashlib.sha256(symbol.encode() + rest).hexdigest().encode() + b"\n" + rest)
    return path


@pytest.fixture
def reachable():
    """A folder that other users can reach, as they cannot pytest's own."""
    path = Path(tempfile.mkdtemp()).resolve()
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


DESCRIBED = BENT + "\nfrom fastlstm.kernels.native import jit; print(jit.cache_described())"


@pytest.mark.skipif(sys.platform != "linux", reason="XDG folders")
@pytest.mark.parametrize(
    ("door", "fault"),
    [
        ("FASTLSTM_CACHE", "writable"),
        ("FASTLSTM_CACHE", "another's"),
        ("FASTLSTM_CACHE", "another's link"),
        ("XDG_CACHE_HOME", "another's"),
        ("HOME", "writable"),
        ("TMPDIR", "another's link"),
    ],
)
def test_no_code_from_where_others_can_write(warm, reachable, door, fault, tmp_path):
    """Whichever way the folder is named: what is in it is not loaded, and it is said whose it is."""
    if fault != "writable" and os.getuid() != 0:
        pytest.skip("only root gives files to others")
    cache = {
        "FASTLSTM_CACHE": reachable / "cache",
        "XDG_CACHE_HOME": reachable / "cache" / "fastlstm",
        "HOME": reachable / "cache" / ".cache" / "fastlstm",
        "TMPDIR": reachable / "cache" / f"fastlstm-{os.getuid()}",
    }[door]
    path = planted(warm, cache)
    before, bad = path.read_bytes(), cache
    if fault == "writable":
        cache.chmod(0o777)
    elif fault == "another's":
        for each in (cache, *cache.rglob("*")):
            os.chown(each, 65534, 65534)
    else:
        mine = tmp_path / "mine"
        cache.rename(mine)
        cache.symlink_to(mine)
        os.chown(cache, 65534, 65534, follow_symlinks=False)
    named = {door: str(cache if door == "FASTLSTM_CACHE" else reachable / "cache")}
    if door == "TMPDIR":
        named["HOME"] = "/dev/null"
    elsewhere = {"TMPDIR": str(tmp_path)} if door in ("XDG_CACHE_HOME", "HOME") else {}
    done = warm.python(DESCRIBED, () if door == "FASTLSTM_CACHE" else ("FASTLSTM_CACHE",), **named, **elsewhere)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:2] == [warm.bits, "True"], "compiled, not loaded"
    assert path.read_bytes() == before
    said = re.findall("RuntimeWarning: compiled kernels are kept (.*), for other users could change them: (.*)", done.stderr)
    told = f"everybody may write to the folder {bad}" if fault == "writable" else f"{bad} belongs to user 65534"
    assert len(said) == 1
    assert told in said[0][1]
    where = done.stdout.splitlines()[1]
    if elsewhere:
        assert where.startswith(f"{tmp_path}/fastlstm-{os.getuid()}/kernels/")
        assert said[0][0] == f"in {where}"
    else:
        assert where.startswith("kept in memory only: ")
        assert told in where
        assert said[0][0] == "in memory only, so every process compiles them"


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root gives files to others")
def test_no_code_from_a_file_of_another_user(warm):
    (path,) = warm.objects()
    os.chown(path, 65534, 65534)
    done = warm.python(BENT)
    assert done.stdout.split() == [warm.bits, "True"]
    assert f"a kernel is compiled anew, for its file is not safe: the file {path} belongs to user 65534" in done.stderr
    assert warm.value() == ([warm.bits, "False"], False)
    assert path.stat().st_uid == os.getuid()


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can be another user")
def test_another_user_may_not_enter_roots_cache(warm, reachable):
    """As in an image that was warmed up by root for itself. That is no failure, and no danger to warn of."""
    shutil.copytree(warm.cache, reachable / "cache")
    (reachable / "cache").chmod(0o700)
    code = "import os\nfrom fastlstm.kernels.native import jit\nos.setuid(65534)\nprint(jit.cache_described())"
    done = warm.python(code, FASTLSTM_CACHE=str(reachable / "cache"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("kept in memory only: [Errno 13] Permission denied")


def test_info_says_where_kernels_are(monkeypatch):
    monkeypatch.setattr(jit, "cache_described", lambda: "somewhere")
    assert info.describe()["compiled_kernels"] == "somewhere"


def test_an_empty_name_is_none(copy, tmp_path):
    """Not the folder that the process happens to be in."""
    code = "from fastlstm.kernels.native import jit; print(jit.cache_folder())"
    done = copy.python(
        code,
        FASTLSTM_CACHE="",
        XDG_CACHE_HOME=str(tmp_path / "xdg"),
        LOCALAPPDATA=str(tmp_path / "xdg"),
        HOME=str(tmp_path / "xdg"),
    )
    assert done.stdout.startswith(str(tmp_path / "xdg"))


def test_without_any_folder_at_all(copy):
    """Not even one for temporary files."""
    code = """
import tempfile
def none(): raise FileNotFoundError(2, "No usable temporary directory")
tempfile.gettempdir = none
from fastlstm.kernels.native import jit
print(jit.cache_described())
"""
    done = copy.python(code, ("FASTLSTM_CACHE",), HOME="/dev/null", LOCALAPPDATA="/dev/null")
    assert done.stdout.startswith("kept in memory only: "), done.stderr
    assert "No usable temporary directory" in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_full_disk_leaves_nothing(copy):
    """It costs every process its compilation, and not a byte more of the disk."""
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))\n" + BENT
    first, second = copy.value(code), copy.value(code)
    assert first == second
    assert first[1]
    assert [path for path in copy.cache.rglob("*") if path.is_file()] == []


READ_ONLY = """
import errno, os
reading = os.open
def only_reading(path, flags, *arguments, **options):
    if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
        raise OSError(errno.EROFS, "Read-only file system")
    return reading(path, flags, *arguments, **options)
os.open = only_reading
"""


def test_a_warmed_cache_serves_where_nothing_can_be_written(warm):
    assert warm.value(READ_ONLY + BENT) == ([warm.bits, "False"], False)
    assert warm.value(READ_ONLY + MULTIPLY) == (["right"], True)


def test_old_versions_go(warm):
    (current,) = {path.parent for path in warm.objects()}
    now = time.time()
    for age in range(1, 7):
        folder = current.parent / f"{age:016x}"
        folder.mkdir()
        (folder / "fastlstm.gemm.product.float32.avx2-0.o").write_bytes(b"")
        (folder / "fastlstm.0.part").write_bytes(b"")
        (folder / ".fastlstm.gemm.product.float32.avx2-0.o.01234567.0123456789abcdef.tmp").write_bytes(b"")
        os.utime(folder, (now - 1000 * age,) * 2)
    assert warm.value()[1] is False
    assert {path.name for path in current.parent.iterdir()} == {current.name, *(f"{age:016x}" for age in (1, 2, 3))}


def test_what_others_keep_there_stays(warm, tmp_path):
    (current,) = {path.parent for path in warm.objects()}
    elsewhere, names = tmp_path / "elsewhere", [f"{age:016x}" for age in range(1, 10)]
    elsewhere.mkdir()
    for name in [*names, "mine", "a" * 17, "A" * 16]:
        (current.parent / name).mkdir()
        (current.parent / name / "precious.c").write_text("")
        (elsewhere / f"fastlstm.{name}.o").write_text("")
    linked = current.parent / ("f" * 16)
    linked.symlink_to(elsewhere)
    for path in [*current.parent.iterdir(), elsewhere]:
        os.utime(path, (0, 0))
    kept = [*elsewhere.iterdir(), *current.parent.glob("*/precious.c"), linked]
    assert warm.value()[1] is False
    assert len(kept) == 25
    assert all(path.exists() for path in kept)


NO_PICKLES = """
import numpy, pickle
def refused(*arguments, **options): raise SystemExit("unpickled")
pickle.load = pickle.loads = pickle.Unpickler = refused
"""


def test_nothing_is_unpickled(warm):
    """What is stored is object code; a planted pickle has nobody to open it."""
    assert warm.value(NO_PICKLES + BENT) == ([warm.bits, "False"], False)
    for path in [*PACKAGE.rglob("*.py"), *KERNELS.rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None)]
            assert not {"pickle", "marshal", "shelve", "dill", "joblib"} & set(names), path.name


def test_a_kernel_that_calls_python_is_refused(copy):
    done = copy.python("from fastlstm.kernels.native import jit; jit.compiled('probe.talking')")
    assert "RuntimeError: kernel fastlstm.probe.talking.float32" in done.stderr
    assert "kernels may not call the Python runtime" in done.stderr
    assert not copy.objects()


@pytest.mark.parametrize("name", jit.supported())
def test_the_environment_chooses_the_instruction_set(warm, name):
    code = BENT + "\nfrom fastlstm.kernels.native import jit; print(jit.isa())"
    assert warm.value(code, FASTLSTM_ISA=name)[0][::2] == [warm.bits, name]
    assert {path.name.split("-")[0].rpartition(".")[2] for path in warm.objects()} == {jit.supported()[0], name}


LAYER = """
import hashlib
import numpy as np, fastlstm
x = np.random.default_rng(0).standard_normal((5, 3, 17)).astype(np.float32)
layer = fastlstm.RNN(17, 33, 2, bidirectional=True, seed=0)
out, state, backprop = layer.forward_train(x)
dx, _ = backprop(out)
print(hashlib.sha256(out.tobytes() + state.tobytes() + dx.tobytes() + layer.grads.flat.tobytes()).hexdigest())
"""


def test_a_layer_gives_the_same_bits_on_every_instruction_set():
    found = {}
    for name in jit.supported():
        done = subprocess.run(
            [sys.executable, "-c", LAYER],
            capture_output=True,
            text=True,
            cwd=PACKAGE.parent,
            timeout=300,
            env=os.environ | {"FASTLSTM_ISA": name},
        )
        assert done.returncode == 0, done.stderr
        found[name] = done.stdout
    assert len(set(found.values())) == 1, found


@pytest.mark.parametrize("name", ["avx1024", "AVX2", ""])
def test_unknown_instruction_sets(copy, name):
    done = copy.python(BENT, FASTLSTM_ISA=name)
    assert f"ValueError: FASTLSTM_ISA is {name!r}; this machine runs " in done.stderr
    with pytest.raises(ValueError, match=f"isa is {name!r}; this machine runs .*portable"), jit.use_isa(name):
        pass


def test_the_instruction_set_is_put_back():
    before = jit.isa()

    def fail():
        with jit.use_isa("portable"):
            assert jit.isa() == "portable"
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert jit.isa() == before


def test_kernels_are_imported_under_their_name_only():
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(KERNELS.parent)!r}); import kernels"],
        capture_output=True,
        text=True,
        cwd=KERNELS.parent,
    )
    assert "install fastlstm" in done.stderr


def test_a_backward_pass_wants_the_instruction_set_of_its_forward_pass():
    """Rows are padded to other lengths in each."""
    best, *others = jit.supported()
    layer = fastlstm.LSTM(3, 5, seed=0)
    with jit.use_isa(best):
        out, _, backprop = layer.forward_train(np.ones((2, 1, 3), np.float32))
    if not others:
        pytest.skip("one instruction set alone")
    with jit.use_isa(others[0]), pytest.raises(RuntimeError, match=f"saved for {best}; the kernels in use are for {others[0]}"):
        backprop(out)
