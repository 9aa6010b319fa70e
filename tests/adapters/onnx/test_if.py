"""ONNX's `If`: by a constant condition one branch takes its place, else a call runs the branch that its condition says."""

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import helper

from fastlstm.adapters import onnx as adapter
from tests.adapters.onnx.models import assert_as_runtime, model, recurrent
from tests.adapters.onnx.test_models import node

ANY = ("float32", ["n"])
FLAG = ("bool", [])
X = np.array([-2.0, 3.0], np.float32)


def branch(nodes, *outputs, constants=None):
    made = model(nodes, {}, dict.fromkeys(outputs, ("float32", None)), constants)
    return made.graph


def choice(then, other, outputs="out", name="choice", condition="c"):
    return node("If", condition, outputs, name=name, then_branch=then, else_branch=other)


def both_ways(nodes, outputs, constants=None, inputs=X, **options):
    """As onnxruntime, with the condition as an input and as a constant; the models with the constant."""
    made = model(nodes, {"x": ANY, "c": FLAG}, dict.fromkeys(outputs, ("float32", None)), constants, **options)
    fixed = []
    for flag in (True, False):
        assert_as_runtime(made, {"x": inputs, "c": np.array(flag)})
        always = model(
            nodes, {"x": ANY}, dict.fromkeys(outputs, ("float32", None)), (constants or {}) | {"c": np.array(flag)}, **options
        )
        assert_as_runtime(always, {"x": inputs})
        fixed.append(adapter.load(always))
    return fixed


def test_branches_read_what_stands_around_them():
    nodes = [node("Abs", "x", "y"), choice(branch([node("Relu", "y", "z")], "z"), branch([node("Neg", "y", "z")], "z"))]
    yes, no = both_ways(nodes, ["out"])
    assert [step.node.op for step in yes._plan._steps] == ["Abs", "Relu", "Identity"]
    assert [step.node.op for step in no._plan._steps] == ["Abs", "Neg", "Identity"]


def test_nodes_that_only_the_other_branch_reads_are_left_out():
    nodes = [
        node("Abs", "x", "a"),
        node("Exp", "x", "b"),
        choice(branch([node("Relu", "a", "z")], "z"), branch([node("Neg", "b", "z")], "z")),
    ]
    yes, _ = both_ways(nodes, ["out"])
    assert [step.node.op for step in yes._plan._steps] == ["Abs", "Relu", "Identity"]


def test_branches_have_constants_and_several_outputs():
    """Some outputs are what came in, or a constant; the same names stand in both branches and in the next `If`."""
    then = branch([node("Add", "x w", "s"), node("Identity", "x", "t")], "s", "t", "w", constants={"w": np.float32([1, 2])})
    other = branch([node("Mul", "x w", "s"), node("Neg", "s", "t")], "w", "s", "t", constants={"w": np.float32([3, 4])})
    both_ways(
        [choice(then, other, "p q r"), choice(other, then, "u v w", name="again"), node("Sum", "p v", "end")],
        ["p", "q", "r", "u", "v", "w", "end"],
    )


def test_branches_in_branches():
    inner = choice(branch([node("Neg", "a", "z")], "z"), branch([node("Add", "a x", "z")], "z"), "i", "inner", condition="d")
    then = branch([node("Exp", "x", "a"), node("Not", "c", "d"), inner], "i")
    other = branch([node("Identity", "x", "a"), node("Not", "c", "d"), inner], "i")
    both_ways([choice(then, other)], ["out"])


def test_what_branches_give_belongs_to_the_caller():
    then = branch([], "w", constants={"w": np.float32([1, 2])})
    nodes = [choice(then, branch([], "x"))]
    free = adapter.load(model(nodes, {"x": ANY, "c": FLAG}, {"out": ANY}))
    fixed = [adapter.load(model(nodes, {"x": ANY}, {"out": ANY}, {"c": np.array(flag)})) for flag in (True, False)]
    for run in (free, *fixed):
        for flag in (True, False):
            given = {"x": X.copy()} | ({"c": flag} if "c" in run.inputs else {})
            first = run(given)["out"]
            kept = first.copy()
            first += 1
            assert (run({**given, "x": X})["out"] == kept).all()
            assert (given["x"] == X).all()


@pytest.mark.parametrize("op", ["GRU", "LSTM"])
def test_cells_in_branches_are_prepared_at_load(op):
    made, inputs = recurrent(op, 0, states=True)
    cell, constants = made.graph.node[0], made.graph.initializer
    twin = helper.make_node(op, cell.input, ["Z", *cell.output[1:]], hidden_size=4, direction="reverse")
    (weights, _), names = recurrent(op, 1), [value.name for value in made.graph.output]
    then = helper.make_graph([cell], "then", [], made.graph.output)
    other = helper.make_graph([twin], "other", [], [helper.make_tensor_value_info(name, 1, None) for name in twin.output])
    nodes = [choice(then, other, " ".join(f"{name}_out" for name in names))]
    whole = model(
        nodes,
        {name: (array.dtype, [None] * array.ndim) for name, array in inputs.items()} | {"c": FLAG},
        {f"{name}_out": ("float32", None) for name in names},
    )
    whole.graph.initializer.extend(constants)
    for flag in (True, False):
        assert_as_runtime(whole, inputs | {"c": np.array(flag)})
    assert not weights.functions


def test_what_is_refused():
    relu, conv = branch([node("Relu", "x", "z")], "z"), branch([node("Conv", "x x", "z", name="far")], "z")
    given = {"x": ANY, "c": FLAG}
    with pytest.raises(adapter.OnnxError, match=r"node 'far' \(Conv\): this operator is not served"):
        adapter.load(model([choice(relu, conv)], given, {"out": ANY}))
    adapter.load(model([choice(relu, conv)], {"x": ANY}, {"out": ANY}, {"c": np.array(True)}))  # which never runs it
    nothing = branch([node("Relu", "nowhere", "z")], "z")
    with pytest.raises(adapter.OnnxError, match=r"node 'choice' \(If\) reads 'nowhere', which nothing makes"):
        adapter.load(model([choice(relu, nothing)], given, {"out": ANY}))
    circle = branch([node("Add", "x q", "z"), node("Neg", "z", "q")], "z")
    with pytest.raises(adapter.OnnxError, match="the nodes read each other in a circle"):
        adapter.load(model([choice(relu, circle)], given, {"out": ANY}))
    for wrong in (
        choice(relu, branch([node("Relu", "x", "z")], "z", "x")),
        node("If", "c", "out", then_branch=relu),
        node("If", "c", "out", then_branch=relu, else_branch=1),
        choice(relu, relu, condition=""),
        choice(relu, helper.make_graph([], "e", [relu.output[0]], [relu.output[0]])),
    ):
        with pytest.raises(adapter.OnnxError, match=r"\(If\) is not valid ONNX: expected a condition, and as then_branch and"):
            adapter.load(model([wrong], given, {"out": ANY}))
    run = adapter.load(model([choice(relu, relu)], given | {"c": ("bool", None)}, {"out": ANY}))
    with pytest.raises(adapter.OnnxError, match=r"node 'choice' \(If\): its condition has dtype bool and shape \[2\]; expe"):
        run({"x": X, "c": [True, False]})
    for op in ("Loop", "Scan"):
        with pytest.raises(adapter.OnnxError, match=rf"node 'round' \({op}\): this operator is not served"):
            adapter.load(model([node(op, "x", "out", name="round", body=relu)], {"x": ANY}, {"out": ANY}))


@pytest.mark.parametrize("name", ["test_if"])
def test_onnx_s_own(name):
    from tests.adapters.onnx.test_backend import cases, check

    check(cases()[name])


def test_many_branches_in_each_other():
    """Nearly as deep as messages can be."""
    graph = branch([node("Relu", "x", "z")], "z")
    for _ in range(30):
        graph = branch([choice(graph, branch([node("Neg", "x", "z")], "z"), "z")], "z")
    both_ways([choice(graph, graph)], ["out"])
