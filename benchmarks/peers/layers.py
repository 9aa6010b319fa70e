"""Makes one layer or one training step by fastlstm, PyTorch and ONNX Runtime, with the same weights, ready to be timed.

Peers are optional. Each is imported only by the functions that use it, and `available` prints which are missing. JAX, Keras and
thinc have files of their own beside this one; they take part if they are named.
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
from benchmarks import article

CELLS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}
GATES = {"lstm": 4, "gru": 3, "rnn": 1}
ONNX_ORDER = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}  # i,f,g,o -> i,o,f,c; r,z,n -> z,r,h
NEEDS = {"torch": ("torch",), "onnxruntime": ("onnxruntime", "onnx"), "jax": ("jax",), "keras": ("keras",), "thinc": ("thinc",)}
FILES = {"jax": "benchmarks.peers.jax", "keras": "benchmarks.peers.keras", "thinc": "benchmarks.peers.thinc"}


@dataclass(frozen=True)
class Size:
    """Sizes of a language model and its batches. The defaults are the article's."""

    hidden: int = article.HIDDEN_SIZE
    layers: int = article.NUM_LAYERS
    steps: int = article.STEPS
    batch: int = article.BATCH
    vocabulary: int = article.VOCABULARY

    def shape(self, cell: str) -> Shape:
        """Return the shape of the model's recurrent layers."""
        return Shape(cell, self.hidden, self.batch, self.steps, self.layers)

    def tokens(self) -> np.ndarray:
        """Return the ids and targets of a training step, [2, T, B]."""
        return np.random.default_rng(0).integers(0, self.vocabulary, (2, self.steps, self.batch))


ARTICLE = Size()


def on(device: str) -> dict[str, str]:
    """Return the argument that places a layer on a device; none for the CPU, since old commits have no such argument."""
    return {} if device == "cpu" else {"device": device}


@dataclass(frozen=True)
class Shape:
    """The shape of layers of one cell and their batch, x [steps, batch, input_size]. An input_size of 0 means hidden_size."""

    cell: str
    hidden_size: int
    batch: int
    steps: int = article.STEPS
    num_layers: int = 1
    input_size: int = 0

    @property
    def inputs(self) -> list[int]:
        """Input size of each layer."""
        return [self.input_size or self.hidden_size] + [self.hidden_size] * (self.num_layers - 1)

    def __str__(self) -> str:
        layers = f" x{self.num_layers}" if self.num_layers > 1 else ""
        return f"{self.cell} {self.inputs[0]}->{self.hidden_size}{layers} B={self.batch} T={self.steps}"

    def layer(self, dtype: str = "float32", device: str = "cpu") -> Any:
        """Return a layer of fastlstm of this shape."""
        make, options = getattr(fastlstm, CELLS[self.cell]), on(device)
        return make(self.inputs[0], self.hidden_size, self.num_layers, dtype=dtype, seed=0, **options)

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Return x and dout."""
        draw = np.random.default_rng(0)
        widths = (self.inputs[0], self.hidden_size)
        x, dout = (draw.standard_normal((self.steps, self.batch, width), np.float32) for width in widths)
        return x, dout


def same_threads() -> None:
    """Give every peer as many threads as fastlstm has, float32 without TF32, and the CPU rather than a GPU.

    Call it before the peers are imported. ONNX Runtime gets its threads from `onnx_session`.
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
    """Return the peers that are installed, and print the names of the others."""
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
    """Return whether this fastlstm computes in `dtype`; print the reason if not."""
    try:
        fastlstm.RNN(1, 1, dtype=dtype)
    except ValueError as error:
        print(f"left out: {dtype} ({error})", flush=True)
        return False
    return True


def on_cpu(array: Any) -> np.ndarray:
    """Return a peer's array as a NumPy array."""
    if hasattr(array, "detach"):
        array = array.detach().cpu()
    return np.asarray(array.get() if hasattr(array, "__cuda_array_interface__") else array)


def agree(results: dict[str, Any], tolerance: float = 1e-4) -> None:
    """Raise AssertionError unless all results equal the first: only then may their speeds be compared.

    A result is an array or a tuple of arrays.
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
    """Return functions that run a layer forward and backward by fastlstm and the named peers; each returns (out, dx)."""
    layer, (x, dout) = shape.layer(dtype), shape.data()

    def ours() -> Any:
        out, _, backprop = layer.forward_train(x)
        return out, backprop(dout)[0]

    functions = {"fastlstm": ours}
    if "torch" in peers:
        import torch

        peer, x_torch, dout_torch = torch_layer(layer, shape), torch.tensor(x, requires_grad=True), torch.tensor(dout)

        def theirs() -> Any:
            x_torch.grad = None  # within a model this gradient is not added to an older one
            out = peer(x_torch)[0]
            out.backward(dout_torch)
            return out, x_torch.grad

        functions["torch"] = theirs
    return functions | {name: importlib.import_module(FILES[name]).training(layer, shape) for name in FILES if name in peers}


def inference(shape: Shape, peers: list[str], dtype: str = "float32") -> dict[str, Callable[[], Any]]:
    """Return functions that run a layer's inference by fastlstm and the named peers; each returns out."""
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
    """Return a function that runs a layer's inference on the GPU without TF32, by torch (cuDNN) if it is named, else by
    fastlstm.

    It returns out once it is computed.
    """
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
    """Return the function of one contender from `training`, `inference` or `inference_on_gpu`."""
    return make(shape, [] if who == "fastlstm" else [who])[who]


def torch_layer(layer: Any, shape: Shape) -> Any:
    """Return a layer of torch.nn with the weights of `layer`."""
    import torch

    peer = getattr(torch.nn, CELLS[shape.cell])(shape.inputs[0], shape.hidden_size, shape.num_layers)
    peer.load_state_dict({name: torch.tensor(value) for name, value in layer.state_dict().items()})
    return peer


def article_step(cell: str, dtype: str = "float32", size: Size = ARTICLE, device: str = "cpu") -> Callable[[], float]:
    """Return a whole training step of the article's model by fastlstm, on `size.tokens`."""
    sizes = {"hidden_size": size.hidden, "num_layers": size.layers}
    model = fastlstm.LanguageModel(size.vocabulary, cell, dtype=dtype, seed=0, **sizes, **on(device))
    trainer = fastlstm.Trainer(model, progress=False)
    ids, targets = size.tokens()
    return lambda: trainer.step(ids, targets)


def torch_step(cell: str, autocast: bool = False, size: Size = ARTICLE, device: str = "cpu") -> Callable[[], float]:
    """Return the same training step by torch.nn: embedding, layers, head, cross-entropy, clipping, Adam.

    With `autocast` the forward pass runs under torch's bfloat16 autocast.
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
    """Return a training step by torch: the forward pass `logits`, cross-entropy, backward, clipping, Adam."""
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
    """Return the article's training step by fastlstm or a peer."""
    if peer == "fastlstm":
        return article_step(cell, size=size, device=device)
    if peer == "torch":
        return torch_step(cell, size=size, device=device)
    step: Callable[[], float] = importlib.import_module(FILES[peer]).training_step(cell, size)
    return step


def onnx_model(layer: Any, stateful: bool = False) -> bytes:
    """Return an ONNX model that has a node for each of `layer`'s layers, with its weights.

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
    """Return a session of ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
