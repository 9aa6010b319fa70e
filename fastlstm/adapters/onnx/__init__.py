"""ONNX: run recurrent models of other projects with fastlstm's kernels, and write fastlstm's own for other runtimes.

`load` reads models made of RNN, LSTM and GRU nodes and the operators around them; `export` writes layers and models.
"""

from .convert import Model, OnnxError, export, load

__all__ = ["Model", "OnnxError", "export", "load"]
