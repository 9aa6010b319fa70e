"""ONNX files that ask for too much, or are broken in ways that onnx lets pass: one error refuses each, by file and node."""

import contextlib
import random

import numpy as np
import pytest

pytest.importorskip("onnx")

import onnx
from onnx import TensorProto, helper

import fastlstm
from fastlstm.adapters import onnx as adapter
from fastlstm.adapters.onnx import plan, sizes
from fastlstm.adapters.onnx.ops import OPERATORS
from fastlstm.adapters.onnx.recurrent import CELLS
from tests.adapters.onnx.models import model

ANY = ("float32", None)
ONE = np.ones(1, np.float32)


def node(op, inputs, outputs="y", **options):
    return helper.make_node(op, inputs.split(), outputs.split(), **({"name": "bomb"} | options))


# What is worked out at load

LONG = np.ones(100_000, np.float32)
BOMBS = {
    "ConstantOfShape": ([node("ConstantOfShape", "sizes")], {"sizes": np.array([30_000, 30_000])}),
    "ConstantOfShape, sizes of 2**62": ([node("ConstantOfShape", "sizes")], {"sizes": np.array([2**62, 2])}),
    "Tile": ([node("Tile", "one counts")], {"one": ONE, "counts": np.array([10**9])}),
    "Range": ([node("Range", "from to by")], {"from": np.int64(0), "to": np.int64(4 * 10**8), "by": np.int64(1)}),
    "Expand": ([node("Expand", "one sizes")], {"one": ONE, "sizes": np.array([30_000, 30_000])}),
    "Gather": ([node("Gather", "rows places")], {"rows": LONG[None], "places": np.zeros(100_000, np.int64)}),
    "MatMul": ([node("MatMul", "a b")], {"a": LONG[:, None], "b": LONG[None]}),
    "Gemm": ([node("Gemm", "a a", transB=1)], {"a": LONG[:, None]}),
    "Add": ([node("Add", "a b")], {"a": LONG[:, None], "b": LONG}),
    "Where": ([node("Where", "c a b")], {"c": np.array([True]), "a": LONG[:, None], "b": LONG}),
    "no rows": ([node("ReduceSum", "none axis")], {"none": np.zeros((0, 30_000, 30_000), np.float32), "axis": np.array([0])}),
    "ScatterElements": (
        [node("ScatterElements", "x i x")],
        {"x": np.zeros([2] * 20, np.float32), "i": np.zeros([2] * 20, np.int64)},
    ),
    "GRU": (
        [node("GRU", "x w r", "y", hidden_size=500)],
        {
            "x": np.zeros((3000, 50, 1), np.float32),
            "w": np.zeros((1, 1500, 1), np.float32),
            "r": np.zeros((1, 1500, 500), np.float32),
        },
    ),
    "a little, many times": (
        [node("Identity", "long", "y0")]
        + [node("Concat", f"y{k} y{k}", f"y{k + 1}", axis=0) for k in range(25)]
        + [node("Identity", "y25")],
        {"long": LONG},
    ),
}


@pytest.mark.parametrize("what", BOMBS)
def test_constants_are_not_worked_out_beyond_what_the_file_is_worth(tmp_path, what, monkeypatch):
    nodes, constants = BOMBS[what]
    if what in ("GRU", "ScatterElements"):
        monkeypatch.setattr(sizes, "LEAST", 1 << 22)
        monkeypatch.setattr(sizes, "TIMES", 1)
    made = model(nodes, {}, {"y": ANY}, constants)
    path = tmp_path / "bomb.onnx"
    path.write_bytes(made.SerializeToString())
    for source, prefix in ((made, ""), (made.SerializeToString(), ""), (path, rf"{path}: ")):
        with pytest.raises(adapter.OnnxError, match=rf"^{prefix}node 'bomb' \(\w+\): its result may have .* numbers; expected"):
            adapter.load(source)


def test_what_a_file_is_worth_is_enough_for_what_models_do_to_their_weights():
    """Every weight cut into gates, joined in another order, turned and given an axis; and states of zeros."""
    weights = {f"w{k}": np.ones((512, 128), np.float32) for k in range(4)}
    nodes = []
    for name in weights:
        gates = [f"{name}{k}" for k in range(4)]
        nodes += [node("Split", name, " ".join(gates), axis=0), node("Concat", " ".join(reversed(gates)), f"{name}_", axis=0)]
        nodes += [node("Transpose", f"{name}_", f"{name}__"), node("Unsqueeze", f"{name}__ axis", f"{name}___")]
    nodes += [node("ConstantOfShape", "sizes", "zeros"), node("Identity", "x", "y")]
    kept = ["y", "zeros", *(f"{name}___" for name in weights)]
    constants = weights | {"axis": np.array([0]), "sizes": np.array([4, 64, 1024])}
    run = adapter.load(model(nodes, {"x": ANY}, dict.fromkeys(kept, ANY), constants))
    assert run({"x": ONE})["w3___"].shape == (1, 128, 512)


def test_bounds_are_bounds(monkeypatch):
    """In every operator's own tests: no result has more numbers than was said before it was worked out."""
    from tests.adapters.onnx.test_backend import cases, check, served_types

    work_out, seen = plan._results, set()

    def watched(node, function, values):
        most = 0 if node.op == "If" else sizes.most(node, *(values.get(name) for name in node.inputs))
        found = work_out(node, function, values)
        if node.op not in ("If", "Shape", "Constant"):  # as many numbers as axes; what stands in the file
            assert all(array.size <= most for array in found.values()), node
            seen.add(node.op)
        return found

    monkeypatch.setattr(plan, "_results", watched)
    for case in cases().values():
        if {node.op_type for node in case.model.graph.node} <= {*OPERATORS, *CELLS} and served_types(case.model):
            with contextlib.suppress(adapter.OnnxError):
                check(case)
    assert seen == {*OPERATORS, *CELLS} - {"Shape", "Constant", "Not"}  # whose own tests are of an opset that is not served


# Whatever else is wrong


def broken(change):
    """A good model that `change` has changed."""
    made = model([node("Add", "x w", name="sum")], {"x": ANY}, {"y": ANY}, {"w": ONE})
    change(made)
    return made


def tensor(**fields):
    def change(made):
        for name, value in fields.items():
            setattr(made.graph.initializer[0], name, value)

    return change


def with_functions(*bodies):
    """A model of functions f0, f1 and so on, each of nodes by their operators; it calls the last."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    functions = []
    for k, ops in enumerate(bodies):
        names = ["a", *(f"v{n}" for n in range(len(ops) - 1)), "b"]
        nodes = [helper.make_node(op, [x], [y], domain="own" * (op[0] == "f")) for op, x, y in zip(ops, names, names[1:])]  # noqa: B905
        functions.append(helper.make_function("own", f"f{k}", ["a"], ["b"], nodes, opsets))
    return model([node(f"f{len(bodies) - 1}", "x", domain="own")], {"x": ANY}, {"y": ANY}, functions=functions)


WRONG = {
    "an element type that there is not": (broken(tensor(data_type=999)), "tensor 'w' has element type 999; expected"),
    "text": (broken(tensor(data_type=TensorProto.STRING)), "tensor 'w' has element type 8; expected one of float32"),
    "too little data": (broken(tensor(raw_data=b"\0\0")), "tensor 'w' cannot be read: "),
    "more than there is": (broken(lambda made: made.graph.initializer[0].dims.append(2**40)), "tensor 'w' cannot be read: "),
    "a negative size": (
        broken(lambda made: made.graph.initializer[0].dims.append(-5)),
        "tensor 'w' has the shape [1, -5]; expected no size",
    ),
    "a constant's type": (
        model([node("Constant", "", value=TensorProto(data_type=17, dims=[1], raw_data=b"\0"))], {}, {"y": ANY}),
        "node 'bomb' (Constant): attribute value: tensor '' has element type 17",
    ),
    "names that are no text": (
        model([node("Add", "x nowh", name="name")], {"x": ANY}, {"y": ANY})
        .SerializeToString()
        .replace(b"name", b"\xff" * 4)
        .replace(b"nowh", b"\xfe" * 4),
        "(Add) reads '\ufffd\ufffd\ufffd\ufffd', which nothing",
    ),
    "no version": (broken(lambda made: setattr(made.opset_import[0], "version", 2**40)), "it is of version 8 with the "),
    "one name, two inputs": (broken(lambda made: made.graph.input.append(made.graph.input[0])), "input 'x' comes twice"),
    "one name, two constants": (
        broken(lambda made: made.graph.initializer.append(made.graph.initializer[0])),
        "initializer 'w' comes twice",
    ),
    "an output without a name": (broken(lambda made: setattr(made.graph.output[0], "name", "")), "output '' comes twice"),
    "results that nobody gives": (
        model([node("Split", "w s", "y a b", axis=0)], {}, {"y": ANY, "b": ANY}, {"w": np.ones(4), "s": np.array([2, 2])}),
        "node 'bomb' (Split): it gives 2 results; the model wants 3",
    ),
    "parts": (
        model([node("Split", "w", "y a", num_outputs=10**9)], {}, {"y": ANY}, {"w": np.ones(4)}, opset=18),
        "num_outputs is 1000000000; expected 2",
    ),
    "more than the most": (
        model([node("TopK", "w k", "y i")], {}, {"y": ANY}, {"w": np.ones(4), "k": np.array([2**40])}),
        "k is 1099511627776; expected 0 to 4",
    ),
    "no shape": (
        model([node("Reshape", "w s")], {}, {"y": ANY}, {"w": np.ones(4), "s": np.array([-2, 2])}),
        "shape is [-2, 2]; expected no size below -1",
    ),
    "no steps": (
        model([node("Range", "w w z")], {}, {"y": ANY}, {"w": np.float64(3), "z": np.float64(0)}),
        "node 'bomb' (Range): ",
    ),
    "a function that calls itself": (with_functions(["f0"]), "expected at most 100,000, and none that calls itself"),
    "functions that double": (
        with_functions(["Neg"], *([f"f{k}", f"f{k}"] for k in range(30))),
        "its functions make 1,073,741,824",
    ),
    "a long row of functions": (with_functions(["Neg"], *([f"f{k}"] for k in range(5000))), "nested too deeply or too large"),
}


@pytest.mark.parametrize("what", WRONG)
def test_one_error(what):
    made, message = WRONG[what]
    with pytest.raises(adapter.OnnxError) as caught:
        adapter.load(made)
    assert message in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_errors_in_a_call_tell_file_and_node(tmp_path):
    made = model([node("Max", "x x")], {"x": ANY}, {"y": ANY})
    made.graph.node[0].input[:] = [""]
    with pytest.raises(adapter.OnnxError, match=r"^node 'bomb' \(Max\): an input is absent"):
        adapter.load(made)({"x": ONE})
    path = tmp_path / "wide.onnx"
    made = model([node("Tile", "x counts")], {"x": ANY}, {"y": ANY}, {"counts": np.array([2**45])})
    path.write_bytes(made.SerializeToString())
    with pytest.raises(adapter.OnnxError, match=rf"^{path}: node 'bomb' \(Tile\): "):
        adapter.load(path)({"x": ONE})


@pytest.mark.parametrize("counts", [[2**62], [2**62, 0], [-1, 2**40], [2**63 - 1, 2**63 - 1]])
def test_repeats_that_overflow_are_refused(counts):
    """NumPy's `repeat` itself ends the process: np.ones((8, 1)).repeat(2**62, 0)."""
    made = model([node("Tile", "x counts")], {"x": ANY}, {"y": ANY}, {"counts": np.array(counts)})
    with pytest.raises(adapter.OnnxError, match=r"node 'bomb' \(Tile\): "):
        adapter.load(made)({"x": np.ones((8,) * len(counts), np.float32)})


def test_sizes_below_zero_are_free():
    run = adapter.load(model([node("Relu", "x")], {"x": ("float32", [-1, 3])}, {"y": ANY}))
    assert run.inputs == {"x": "float32[?, 3]"}
    assert run({"x": np.ones((2, 3))})["y"].shape == (2, 3)


def test_damaged_files_are_refused_or_run(tmp_path):
    """A short part of what was done while this was written: bytes and fields changed at random, thousands of times."""
    adapter.export(fastlstm.LSTM(3, 5, num_layers=2, bidirectional=True, seed=0), tmp_path / "a.onnx", lengths=True)
    whole, rng, refused = (tmp_path / "a.onnx").read_bytes(), random.Random(0), 0
    good = onnx.load_from_string(whole)
    for _ in range(400):
        if rng.random() < 0.5:
            damaged = bytearray(whole)
            for _ in range(rng.randrange(1, 4)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            source = bytes(damaged)
        else:
            source = onnx.ModelProto()
            source.CopyFrom(good)
            one = rng.choice(source.graph.node)
            if rng.random() < 0.5:
                rng.choice(source.graph.initializer).data_type = rng.randrange(-1, 30)
            elif one.attribute and rng.random() < 0.5:
                rng.choice(one.attribute).i = rng.choice([0, -1, 2**31, -(2**62)])
            else:
                one.input[rng.randrange(len(one.input))] = rng.choice(["", "x", "h_n", "nowhere"])
        try:
            run = adapter.load(source)
            run({"x": np.ones((4, 2, 3), np.float32), "lengths": np.array([4, 1])})
        except adapter.OnnxError:
            refused += 1
    assert 50 < refused < 400
