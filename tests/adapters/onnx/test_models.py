"""Loading ONNX: sources, the graph around recurrent nodes, what belongs to whom, and what is refused."""

import re
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx
from onnx import TensorProto, helper, numpy_helper

from fastlstm.adapters import onnx as adapter
from fastlstm.adapters.onnx.ops import OPERATORS
from tests.adapters.onnx.models import assert_as_runtime, assert_close, by_runtime, model, recurrent

ANY = ("float32", [None, None])
ONES = np.ones((2, 3), np.float32)


def node(op, inputs, outputs, **options):
    return helper.make_node(op, inputs.split(), outputs.split(), **options)


def tall():
    """An embedding, two bidirectional GRUs in an order of their own making, and a head, as nodes in disorder."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    constants = {
        "table": draw(7, 3),
        "W0": draw(2, 12, 3),
        "R0": draw(2, 12, 4),
        "W1": draw(2, 12, 8),
        "R1": draw(2, 12, 4),
        "head": draw(5, 8),
        "bias": draw(5),
        "flat": np.array([0, 0, -1]),
        "rows": np.array([-1, 8]),
    }
    nodes = [
        node("LogSoftmax", "logits", "scores", axis=-1),
        node("GRU", "joined W1 R1", "steps1", hidden_size=4, direction="bidirectional", linear_before_reset=1),
        node("Reshape", "turned0 flat", "joined"),
        node("GRU", "x W0 R0", "steps0", hidden_size=4, direction="bidirectional"),
        node("Gather", "table ids", "x"),
        node("Transpose", "steps0", "turned0", perm=[0, 2, 1, 3]),
        node("Transpose", "steps1", "turned1", perm=[0, 2, 1, 3]),
        node("Gemm", "matrix head bias", "logits", transB=1),
        node("Reshape", "turned1 rows", "matrix"),
    ]
    return model(nodes, {"ids": ("int64", ["time", "batch"])}, {"scores": ANY}, constants)


def in_order(made):
    nodes = {n.output[0]: n for n in made.graph.node}
    other = onnx.ModelProto()
    other.CopyFrom(made)
    del other.graph.node[:]
    for name in ("x", "steps0", "turned0", "joined", "steps1", "turned1", "matrix", "logits", "scores"):
        other.graph.node.append(nodes[name])
    return other


# Graphs


def test_nodes_may_stand_in_any_order():
    ids = np.array([[1, 2], [6, 0], [3, 3]])
    assert_close(adapter.load(tall())({"ids": ids}), by_runtime(in_order(tall()), {"ids": ids}))


def test_nodes_in_order_stay_so():
    wanted = [n.output[0] for n in in_order(tall()).graph.node]
    assert [step.node.outputs[0] for step in adapter.load(in_order(tall()))._plan._steps] == wanted
    # Two chains one after the other: what the first leaves is not kept until the second has caught up.
    nodes = [
        node("Relu", "x", "a"),
        node("Neg", "a", "b"),
        node("Abs", "x", "c"),
        node("Neg", "c", "d"),
        node("Add", "b d", "y"),
    ]
    run = adapter.load(model(nodes, {"x": ANY}, {"y": ANY}))
    assert [step.node.outputs[0] for step in run._plan._steps] == ["a", "b", "c", "d", "y"]


def test_what_the_outputs_do_not_need_does_not_run():
    nodes = [node("Relu", "x", "y"), node("MatMul", "x x", "wrong")]
    run = adapter.load(model(nodes, {"x": ANY}, {"y": ANY}))
    assert_close(run({"x": ONES}), {"y": ONES})


def test_constants_are_worked_out_once():
    nodes = [
        node("Constant", "", "two", value_float=2.0),
        node("Mul", "weight two", "double"),
        node("Add", "x double", "y"),
        node("Shape", "weight", "sizes"),
        node("ConstantOfShape", "sizes", "zeros"),
        node("Add", "y zeros", "z"),
    ]
    run = adapter.load(model(nodes, {"x": ANY}, {"z": ANY}, {"weight": ONES}))
    assert [step.node.op for step in run._plan._steps] == ["Add", "Add"]
    assert run._plan._constants.keys() == {"double", "zeros"}
    assert_close(run({"x": ONES}), {"z": 3 * ONES})


def test_values_are_freed_when_they_have_been_used():
    count, size = 20, 1 << 20
    nodes = [node("Add", f"v{k} v{k}", f"v{k + 1}") for k in range(count)]
    run = adapter.load(model(nodes, {"v0": ("float32", [None])}, {f"v{count}": ("float32", None)}))
    x = np.ones(size, np.float32)
    tracemalloc.start()
    try:
        run({"v0": x})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 2 * x.nbytes <= peak < 4 * x.nbytes


def test_operators_of_old_versions():
    """What is an input today was an attribute then."""
    nodes = [
        node("Unsqueeze", "x", "a", axes=[0]),
        node("Slice", "a", "b", axes=[2], starts=[-3], ends=[2**62]),
        node("Squeeze", "b", "c", axes=[0]),
        node("Split", "c", "d e", axis=1, split=[1, 2]),
        node("ReduceSum", "e", "f", axes=[1]),
        node("Softmax", "a", "g"),
        node("Clip", "g", "h", min=0.05, max=0.15),
        node("Dropout", "h", "i", ratio=0.3),
        node("TopK", "x", "j k", axis=1, k=2),
    ]
    outputs = {"d": ANY, "f": ANY, "i": ("float32", None), "j": ANY, "k": ("int64", None)}
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    assert_as_runtime(model(nodes, {"x": ANY}, outputs, opset=9), {"x": x})


def test_functions_of_the_model_are_written_out():
    body = [helper.make_node("Relu", ["a"], ["b"]), helper.make_node("Neg", ["b"], ["c"])]
    function = helper.make_function("own", "Fall", ["a"], ["c"], body, [helper.make_opsetid("", 17)])
    made = model([node("Fall", "x", "y", domain="own")], {"x": ANY}, {"y": ANY}, functions=[function])
    assert_close(adapter.load(made)({"x": -ONES}), {"y": -0 * ONES})
    assert_close(adapter.load(made)({"x": ONES}), {"y": -ONES})


def test_an_input_with_a_default_may_be_missing():
    made = model([node("Add", "x b", "y")], {"x": ANY, "b": ANY}, {"y": ANY}, {"b": ONES})
    run = adapter.load(made)
    assert_close(run({"x": ONES}), {"y": 2 * ONES})
    assert_close(run({"x": ONES, "b": 3 * ONES}), {"y": 4 * ONES})
    assert_close(run({"x": ONES}), {"y": 2 * ONES})


def test_constants_of_old_files_are_no_inputs():
    made, inputs = recurrent("GRU", 0, weights_given=True, opset=8)
    made.ir_version = 3
    for name in ("W", "R", "B"):
        made.graph.initializer.append(numpy_helper.from_array(inputs.pop(name), name))
    run = adapter.load(made)
    assert run.inputs == {"X": "float32[?, ?, ?]"}
    assert not run._plan._constants
    assert_close(run(inputs), by_runtime(made, inputs))


# Sources


def test_sources(tmp_path):
    made, inputs = recurrent("LSTM", 0)
    wanted = by_runtime(made, inputs)
    path = tmp_path / "model.onnx"
    path.write_bytes(made.SerializeToString())
    before = made.SerializeToString()
    for source in (made, path, str(path), made.SerializeToString(), bytearray(made.SerializeToString())):
        assert_close(adapter.load(source)(inputs), wanted)
    assert made.SerializeToString() == before
    run = adapter.load(path)
    assert run.inputs == {"X": "float32[?, ?, ?]"}
    assert run.outputs == {"Y": "float32", "Y_h": "float32", "Y_c": "float32"}
    assert "float32" in repr(run)


def test_weights_in_another_file(tmp_path):
    made, inputs = recurrent("GRU", 1, hidden=20)
    wanted = by_runtime(made, inputs)
    path = tmp_path / "model.onnx"
    onnx.save(made, path, save_as_external_data=True, location="weights", size_threshold=0)
    assert (tmp_path / "weights").exists()
    assert_close(adapter.load(path)(inputs), wanted)
    with pytest.raises(ValueError, match="tensor 'W' lies in another file; expected a path as source"):
        adapter.load(path.read_bytes())
    (tmp_path / "weights").rename(tmp_path / "elsewhere")
    with pytest.raises((ValueError, OSError), match="weights"):
        adapter.load(path)


def test_what_is_no_model(tmp_path):
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ValueError, match=r"text\.onnx is not an ONNX model"):
        adapter.load(tmp_path / "text.onnx")
    for junk in (b"", b"\x08\x07", b"junk that is no protobuf"):
        with pytest.raises(ValueError, match="source is not an ONNX model"):
            adapter.load(junk)
    with pytest.raises(FileNotFoundError):
        adapter.load(tmp_path / "missing.onnx")
    with pytest.raises(TypeError, match="source is int; expected a path, bytes or an onnx.ModelProto"):
        adapter.load(3)


def test_a_file_cut_short(tmp_path):
    whole = recurrent("LSTM", 2)[0].SerializeToString()
    for end in range(1, len(whole), 97):
        with pytest.raises(ValueError, match="source is not an ONNX model|reads|not valid ONNX|has shape"):
            adapter.load(whole[:end])


# Calls


def test_inputs_that_do_not_fit():
    run = adapter.load(model([node("Relu", "x", "y")], {"x": ("float32", ["batch", 3])}, {"y": ANY}))
    with pytest.raises(ValueError, match=r"missing \['x'\], unknown \['z'\]; expected x"):
        run({"z": ONES})
    with pytest.raises(ValueError, match=r"input 'x' has shape \[2, 4\]; expected float32\[batch, 3\]"):
        run({"x": np.ones((2, 4), np.float32)})
    with pytest.raises(ValueError, match=r"input 'x' has shape \[3\]"):
        run({"x": np.ones(3, np.float32)})
    for wrong in (ONES.astype(complex), np.array([["a"] * 3])):
        with pytest.raises(TypeError, match="input 'x' has dtype .*; expected float32"):
            run({"x": wrong})
    for other in (ONES.astype("float64"), ONES.astype(int), ONES.tolist()):
        assert_close(run({"x": other}), {"y": ONES})
    whole = adapter.load(model([node("Neg", "x", "y")], {"x": ("int64", [None])}, {"y": ("int64", None)}))
    with pytest.raises(TypeError, match="input 'x' has dtype float64; expected int64"):
        whole({"x": np.ones(2)})


def test_inputs_that_are_no_arrays_are_told_by_name():
    torch = pytest.importorskip("torch")
    run = adapter.load(model([node("Relu", "x", "y")], {"x": ("float32", [2, 3])}, {"y": ANY}))
    ones = torch.ones(2, 3)
    for wrong in (ones.to("meta"), ones.to_sparse(), None, [[1], [2, 3]]):
        with pytest.raises((TypeError, ValueError), match="^input 'x' is "):
            run({"x": wrong})


def test_integers_that_an_input_cannot_hold():
    run = adapter.load(model([node("Neg", "x", "y")], {"x": ("int32", [None])}, {"y": ("int32", None)}))
    least, most = -(2**31) + 1, 2**31 - 1
    assert run({"x": np.array([least, most])})["y"].tolist() == [-least, -most]
    assert run({"x": np.zeros(0, int)})["y"].size == 0
    for wrong in (np.array([0, 2**40 + 3]), np.array([-(2**31) - 1]), np.array([2**31], np.uint32)):
        with pytest.raises(ValueError, match=r"input 'x' has values from .*; expected -2147483648 to 2147483647, of int32"):
            run({"x": wrong})


def test_outputs_belong_to_the_caller():
    nodes = [
        node("Identity", "x", "same"),
        node("Transpose", "x", "turned"),
        node("Identity", "b", "constant"),
        node("Relu", "x", "fresh"),
        node("Identity", "fresh", "twin"),
        node("Shape", "x", "sizes"),
        node("Expand", "fresh sizes", "spread"),
    ]
    names = ("same", "turned", "constant", "fresh", "twin", "spread")
    run = adapter.load(model(nodes, {"x": ANY}, dict.fromkeys(names, ANY), {"b": ONES}))
    x = ONES.copy()
    first = run({"x": x})
    for array in first.values():
        assert array.flags.c_contiguous
        array += 1  # must be writable, and nobody else's
    assert (x == 1).all()
    assert all((array == 2).all() for array in first.values())
    assert all((array == 1).all() for array in run({"x": x}).values())


def test_results_stay_as_they_are():
    made, inputs = recurrent("LSTM", 3, direction="bidirectional")
    run = adapter.load(made)
    first = run(inputs)
    kept = {name: array.copy() for name, array in first.items()}
    run({name: array * 2 for name, array in inputs.items()})
    assert_close(first, kept, atol=0)


def test_many_threads():
    run = adapter.load(tall())
    rng = np.random.default_rng(0)
    inputs = [{"ids": rng.integers(0, 7, (5, batch))} for batch in (1, 2, 3, 4)]
    wanted = [run(given) for given in inputs]
    wrong = []

    def work(k):
        for _ in range(20):
            if not (run(inputs[k])["scores"] == wanted[k]["scores"]).all():
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# What is refused, at load


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([node("Conv", "x x", "y", name="early")], "node 'early' (Conv): this operator is not served"),
        ([node("Relu", "x", "y"), node("Erf", "x", "z")], "node 'z' (Erf): this operator is not served"),
        ([node("Fast", "x", "y", domain="com.other")], "node 'y' (com.other.Fast): this operator is not served"),
        ([node("Relu", "q", "y", name="r")], "node 'r' (Relu) reads 'q', which nothing makes"),
        ([node("Relu", "x", "z")], "the model reads 'y', which nothing makes"),
        ([node("Relu", "x", "y", name="a"), node("Neg", "x", "y", name="b")], "(Neg): its output 'y' is also node 'a' (Relu)"),
        ([node("Neg", "x", "x"), node("Relu", "x", "y")], "node 'x' (Neg): its output 'x' is also an input or constant"),
        ([node("Add", "x b", "a"), node("Neg", "a", "b"), node("Relu", "b", "y")], "the nodes read each other in a circle: "),
        ([node("Gemm", "x", "y", name="g")], "node 'g' (Gemm) is not valid ONNX: "),
        ([node("Relu", "x", "y", alpha=1.0)], "node 'y' (Relu) is not valid ONNX: Unrecognized attribute: alpha"),
        ([node("Cast", "x", "y", to=TensorProto.BFLOAT16)], "node 'y' (Cast): element type 16 is not served; expected one of"),
        ([node("ScatterElements", "x x x", "y", reduction="mul")], "(ScatterElements): reduction 'mul' is not served"),
        ([node("Constant", "", "y", value_string="a")], "node 'y' (Constant): attribute value_string is not served"),
    ],
)
def test_refused_nodes(nodes, message):
    made = model(nodes, {"x": ANY}, {"y": ANY})
    with pytest.raises(ValueError, match=re.escape(message)):
        adapter.load(made)


def test_refused_models():
    relu = [node("Relu", "x", "y")]
    with pytest.raises(ValueError, match="the model is of opset 6; expected 7 or later"):
        adapter.load(model(relu, {"x": ANY}, {"y": ANY}, opset=6))
    made = model(relu, {"x": ANY}, {"y": ANY})
    made.graph.input[0].type.tensor_type.elem_type = TensorProto.BFLOAT16
    with pytest.raises(ValueError, match="'x' has element type 16; expected one of float32"):
        adapter.load(made)
    made.graph.input[0].CopyFrom(helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, None))
    with pytest.raises(ValueError, match="'x' is of sequence_type; expected a tensor"):
        adapter.load(made)
    made = model(relu, {"x": ANY}, {"y": ANY})
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.ones(1, np.float32), "s"), numpy_helper.from_array(np.zeros(1, np.int64)), [3]
    )
    made.graph.sparse_initializer.append(sparse)
    with pytest.raises(ValueError, match="sparse initializers, which are not served"):
        adapter.load(made)


def test_the_page_lists_the_operators():
    page = (Path(__file__).parents[3] / "docs" / "onnx.md").read_text(encoding="utf-8")
    table = page[page.index("Other operators that") : page.index("All of them may be")]
    listed = re.findall(r"\b[A-Z][A-Za-z]+\b", table.partition("| --- |")[2])
    assert sorted(listed) == sorted(OPERATORS)


def test_errors_while_running_tell_the_node():
    run = adapter.load(model([node("MatMul", "x x", "y", name="product")], {"x": ANY}, {"y": ANY}))
    with pytest.raises(ValueError, match=r"^node 'product' \(MatMul\): .*mismatch"):
        run({"x": ONES})
    dropout = [node("Dropout", "x ratio training", "y", name="drop")]
    constants = {"ratio": np.float32(0.5), "training": np.array(True)}
    run = adapter.load(model(dropout, {"x": ANY}, {"y": ANY}, constants))
    with pytest.raises(ValueError, match=r"node 'drop' \(Dropout\): training_mode is true"):
        run({"x": ONES})


def test_without_onnx_there_is_one_clear_sentence():
    code = "import sys; sys.modules['onnx'] = None; import fastlstm.adapters.onnx"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        'ImportError: fastlstm.adapters.onnx needs the package onnx: pip install "fastlstm[onnx]"'
    )


def test_the_package_does_not_import_onnx():
    code = "import sys, fastlstm, fastlstm.adapters; sys.exit('onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
