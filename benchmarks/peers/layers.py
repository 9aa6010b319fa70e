"""One layer, or one training step, by fastlstm, PyTorch and ONNX Runtime: with the same weights and ready to be timed.

Peers are optional. Each is imported only by the functions that use it; `available` says aloud which are left out. Those in
files of their own (peer_jax, peer_keras, peer_thinc) take part where they are asked for by name.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import fastlstm

CELLS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}
GATES = {"lstm": 4, "gru": 3, "rnn": 1}
ONNX_ORDER = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}  # i,f,g,o -> i,o,f,c; r,z,n -> z,r,h
NEEDS = {"torch": ("torch",), "onnxruntime": ("onnxruntime", "onnx"), "jax": ("jax",), "keras": ("keras",), "thinc": ("thinc",)}
FILES = {"jax": "benchmarks.peers.jax", "keras": "benchmarks.peers.keras", "thinc": "benchmarks.peers.thinc"}

# The article's model: layers, units, batch, steps; characters.
STEPS, BATCH, HIDDEN, LAYERS, VOCABULARY = 100, 64, 256, 2, 65


@dataclass(frozen=True)
class Size:
    """Of a language model and its batches; the article's unless said."""

    hidden: int = HIDDEN
    layers: int = LAYERS
    steps: int = STEPS
    batch: int = BATCH
    vocabulary: int = VOCABULARY

    def shape(self, cell: str) -> Shape:
        """The model's layers."""
        return Shape(cell, self.hidden, self.batch, self.steps, self.layers)

    def tokens(self) -> np.ndarray:
        """ids and targets [T, B] of a training step."""
        return np.random.default_rng(0).integers(0, self.vocabulary, (2, self.steps, self.batch))


ARTICLE = Size()


def on(device: str) -> dict[str, str]:
    """The argument that places a layer or model; none for the CPU, which commits that know no other can be asked for too."""
    return {} if device == "cpu" else {"device": device}


@dataclass(frozen=True)
class Shape:
    """Layers of one cell on a batch: x [steps, batch, input_size]; input_size 0 stands for hidden_size."""

    cell: str
    hidden_size: int
    batch: int
    steps: int = STEPS
    num_layers: int = 1
    input_size: int = 0

    @property
    def inputs(self) -> list[int]:
        """Width of what each layer takes."""
        return [self.input_size or self.hidden_size] + [self.hidden_size] * (self.num_layers - 1)

    def __str__(self) -> str:
        layers = f" x{self.num_layers}" if self.num_layers > 1 else ""
        return f"{self.cell} {self.inputs[0]}->{self.hidden_size}{layers} B={self.batch} T={self.steps}"

    def layer(self, dtype: str = "float32", device: str = "cpu") -> Any:
        """The layer by fastlstm."""
        make, options = getattr(fastlstm, CELLS[self.cell]), on(device)
        return make(self.inputs[0], self.hidden_size, self.num_layers, dtype=dtype, seed=0, **options)

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """x and dout."""
        draw = np.random.default_rng(0)
        widths = (self.inputs[0], self.hidden_size)
        x, dout = (draw.standard_normal((self.steps, self.batch, width), np.float32) for width in widths)
        return x, dout


def same_threads() -> None:
    """As many threads for every peer as for fastlstm, products in float32 without TF32, and the CPU for those that would take a
    GPU by themselves; to be called before they are imported. ONNX Runtime is told by `onnx_session`.
    """
    threads = str(fastlstm.num_threads())
    installed = [name for name in ("tensorflow", "jax", "torch") if importlib.util.find_spec(name)]
    os.environ.setdefault("KERAS_BACKEND", [*installed, "numpy"][0])
    os.environ["NPROC"] = threads  # the size of XLA's pool
    os.environ |= {"JAX_PLATFORMS": "cpu", "KERAS_TORCH_DEVICE": "cpu", "TF_NUM_INTRAOP_THREADS": threads}
    if importlib.util.find_spec("torch"):
        torch = importlib.import_module("torch")
        torch.set_num_threads(fastlstm.num_threads())
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def available(*names: str) -> list[str]:
    """Those of the peers that are installed; the others are named on standard output."""
    found = []
    for name in names:
        try:
            for module in NEEDS[name]:
                importlib.import_module(module)
            found.append(name)
        except ImportError as error:
            print(f"left out: {name} ({error})", flush=True)
    if "torch" in found:
        importlib.import_module("torch").set_num_threads(fastlstm.num_threads())
    return found


def has_dtype(dtype: str) -> bool:
    """Whether this fastlstm computes in `dtype`; said aloud where not."""
    try:
        fastlstm.RNN(1, 1, dtype=dtype)
    except ValueError as error:
        print(f"left out: {dtype} ({error})", flush=True)
        return False
    return True


def on_cpu(array: Any) -> np.ndarray:
    """An array of any peer as NumPy's."""
    if hasattr(array, "detach"):
        array = array.detach().cpu()
    return np.asarray(array.get() if hasattr(array, "__cuda_array_interface__") else array)


def agree(results: dict[str, Any], tolerance: float = 1e-4) -> None:
    """Raise AssertionError unless all results, arrays or tuples of arrays, are the first one's: a comparison of speeds
    means nothing without.
    """

    def arrays(result: Any) -> list[np.ndarray]:
        parts = result if isinstance(result, tuple) else (result,)
        return [on_cpu(part) for part in parts]

    (ours, expected), *others = [(name, arrays(result)) for name, result in results.items()]
    for name, found in others:
        for a, b in zip(expected, found, strict=True):
            np.testing.assert_allclose(
                a, b.reshape(a.shape), rtol=tolerance, atol=tolerance, err_msg=f"{ours} and {name} differ"
            )


def training(shape: Shape, peers: list[str], dtype: str = "float32") -> dict[str, Callable[[], Any]]:
    """Forward and backward of a layer by fastlstm, torch, jax and thinc; each returns (out, dx)."""
    layer, (x, dout) = shape.layer(dtype), shape.data()

    def ours() -> Any:
        out, _, backprop = layer.forward_train(x)
        return out, backprop(dout)[0]

    functions = {"fastlstm": ours}
    if "torch" in peers:
        import torch

        peer, x_torch, dout_torch = torch_layer(layer, shape), torch.tensor(x, requires_grad=True), torch.tensor(dout)

        def theirs() -> Any:
            x_torch.grad = None  # within a model nothing is added to it
            out = peer(x_torch)[0]
            out.backward(dout_torch)
            return out, x_torch.grad

        functions["torch"] = theirs
    return functions | {name: importlib.import_module(FILES[name]).training(layer, shape) for name in FILES if name in peers}


def inference(shape: Shape, peers: list[str], dtype: str = "float32") -> dict[str, Callable[[], Any]]:
    """Inference of a layer by fastlstm, torch, onnxruntime, jax, keras and thinc; each returns out."""
    layer, (x, _) = shape.layer(dtype), shape.data()
    functions: dict[str, Callable[[], Any]] = {"fastlstm": lambda: layer(x)[0]}
    if "torch" in peers:
        import torch

        peer, x_torch = torch_layer(layer, shape), torch.tensor(x)

        def theirs() -> Any:
            with torch.no_grad():
                return peer(x_torch)[0]

        functions["torch"] = theirs
    if "onnxruntime" in peers:
        session, feed = onnx_session(onnx_model(layer), fastlstm.num_threads()), {"x": x}
        functions["onnxruntime"] = lambda: session.run(None, feed)[0]
    return functions | {name: importlib.import_module(FILES[name]).inference(layer, shape) for name in FILES if name in peers}


def inference_on_gpu(shape: Shape, peers: list[str]) -> dict[str, Callable[[], Any]]:
    """Inference of a layer on the GPU by fastlstm and torch (cuDNN), without TF32; each returns out once it is computed."""
    functions: dict[str, Callable[[], Any]] = {}
    x, _ = shape.data()
    if "torch" in peers:
        import torch

        peer, x_torch = torch_layer(shape.layer(), shape).cuda(), torch.tensor(x, device="cuda")

        def theirs() -> Any:
            with torch.no_grad():
                out = peer(x_torch)[0]
            torch.cuda.synchronize()
            return out

        functions["torch"] = theirs
    else:
        from fastlstm.kernels.device import cuda

        layer, stream = shape.layer(device="cuda"), cuda.cupy().cuda.get_current_stream()
        x_ours = cuda.cupy().asarray(x)

        def ours() -> Any:
            out = layer(x_ours)[0]
            stream.synchronize()
            return out

        functions["fastlstm"] = ours
    return functions


def alone(make: Callable[[Shape, list[str]], dict[str, Callable[[], Any]]], shape: Shape, who: str) -> Callable[[], Any]:
    """One contender's function of those that `training`, `inference` or `inference_on_gpu` make."""
    return make(shape, [] if who == "fastlstm" else [who])[who]


def torch_layer(layer: Any, shape: Shape) -> Any:
    """The layer of torch.nn with `layer`'s weights."""
    import torch

    peer = getattr(torch.nn, CELLS[shape.cell])(shape.inputs[0], shape.hidden_size, shape.num_layers)
    peer.load_state_dict({name: torch.tensor(value) for name, value in layer.state_dict().items()})
    return peer


def article_step(cell: str, dtype: str = "float32", size: Size = ARTICLE, device: str = "cpu") -> Callable[[], float]:
    """A whole training step of the article's model by fastlstm, on `size.tokens`."""
    sizes = {"hidden_size": size.hidden, "num_layers": size.layers}
    model = fastlstm.LanguageModel(size.vocabulary, cell, dtype=dtype, seed=0, **sizes, **on(device))
    trainer = fastlstm.Trainer(model, progress=False)
    ids, targets = size.tokens()
    return lambda: trainer.step(ids, targets)


def torch_step(cell: str, autocast: bool = False, size: Size = ARTICLE, device: str = "cpu") -> Callable[[], float]:
    """The same by torch.nn: embedding, layers, head, cross-entropy, clipping, Adam.

    With `autocast` forward runs under torch's bfloat16 autocast.
    """
    import torch

    layers = getattr(torch.nn, CELLS[cell])(size.hidden, size.hidden, size.layers)
    model = torch.nn.ModuleList(
        [torch.nn.Embedding(size.vocabulary, size.hidden), layers, torch.nn.Linear(size.hidden, size.vocabulary)]
    )

    def logits(ids: Any) -> Any:
        embedding, layers, head = model
        with torch.autocast(device, dtype=torch.bfloat16, enabled=autocast):
            return head(layers(embedding(ids))[0])

    return torch_training(model, logits, size.tokens(), device)


def torch_training(model: Any, logits: Callable[[Any], Any], tokens: np.ndarray, device: str) -> Callable[[], float]:
    """A training step by torch: forward by `logits`, cross-entropy, backward, clipping, Adam."""
    import torch

    model.to(device)
    params = list(model.parameters())
    optimizer = torch.optim.Adam(params, lr=1e-3)
    ids, targets = (torch.tensor(part, device=device) for part in tokens)

    def step() -> float:
        optimizer.zero_grad()
        out = logits(ids)
        loss = torch.nn.functional.cross_entropy(out.flatten(0, 1).float(), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        return float(loss.item())

    return step


def training_step(cell: str, peer: str, size: Size = ARTICLE, device: str = "cpu") -> Callable[[], float]:
    """The article's training step by fastlstm or a peer."""
    if peer == "fastlstm":
        return article_step(cell, size=size, device=device)
    if peer == "torch":
        return torch_step(cell, size=size, device=device)
    step: Callable[[], float] = importlib.import_module(FILES[peer]).training_step(cell, size)
    return step


def onnx_model(layer: Any, stateful: bool = False) -> bytes:
    """An ONNX model of one node for each of `layer`'s layers, with its weights.

    Inputs are ``x`` [T, B, I] and, if stateful, ``h_0``, ``c_0``, ``h_1``, ... [1, B, H] for each layer; outputs are ``y``
    [T, 1, B, H] and the final states ``h_0_n``, ``c_0_n``, ``h_1_n``, ... (c of an LSTM only).
    """
    from onnx import TensorProto, helper, numpy_helper

    cell, hidden = layer.shape.cell, layer.hidden_size
    values, nodes = layer.state_dict(), []
    initializers = [numpy_helper.from_array(np.array([1], np.int64), "axes")] if layer.num_layers > 1 else []

    def ordered(name: str) -> np.ndarray:
        value = np.asarray(values[name], np.float32)
        gates = value.reshape(GATES[cell], hidden, -1)[list(ONNX_ORDER[cell])]
        return gates.reshape(1, *value.shape)

    above, states = "x", []
    for k in range(layer.num_layers):
        weights = {
            f"W{k}": ordered(f"weight_ih_l{k}"),
            f"R{k}": ordered(f"weight_hh_l{k}"),
            f"B{k}": np.concatenate([ordered(f"bias_ih_l{k}"), ordered(f"bias_hh_l{k}")], axis=1),
        }
        initializers += [numpy_helper.from_array(value, name) for name, value in weights.items()]
        own = [f"{part}_{k}" for part in ("hc" if cell == "lstm" else "h")]
        states += own
        last = k == layer.num_layers - 1
        out = "y" if last else f"Y{k}"
        options = {"linear_before_reset": 1} if cell == "gru" else {}
        inputs = [above, *weights, "", *own] if stateful else [above, *weights]
        nodes.append(helper.make_node(CELLS[cell], inputs, [out, *(f"{s}_n" for s in own)], hidden_size=hidden, **options))
        if not last:
            nodes.append(helper.make_node("Squeeze", [out, "axes"], [f"X{k}"]))
            above = f"X{k}"

    def tensor(name: str, *sizes: Any) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes)

    graph = helper.make_graph(
        nodes,
        cell,
        [tensor("x", "T", "B", layer.input_size), *(tensor(s, 1, "B", hidden) for s in states if stateful)],
        [tensor("y", "T", 1, "B", hidden), *(tensor(f"{s}_n", 1, "B", hidden) for s in states)],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def onnx_session(model: bytes, threads: int) -> Any:
    """A session of ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
