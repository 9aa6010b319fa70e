"""Drop-ins for torch.nn's recurrent layers: `RNN`, `LSTM`, `GRU` and their cells; `accelerate` and `restore` for whole models.

Each class is torch.nn's class of the same name with another forward pass: constructor, parameters, state_dict, moves, copies
and errors are torch's own. What the kernels cannot serve goes to torch's forward pass, and a warning says so once.

Examples
--------
>>> import torch
>>> from fastlstm.adapters.torch import LSTM
>>> layer = LSTM(3, 5, num_layers=2)
>>> out, (h_n, c_n) = layer(torch.ones(7, 2, 3))
>>> out.sum().backward()
>>> out.shape, layer.weight_ih_l0.grad.shape
(torch.Size([7, 2, 5]), torch.Size([20, 3]))
"""

from .modules import GRU, LSTM, RNN, GRUCell, LSTMCell, Report, RNNCell, accelerate, restore

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell", "Report", "accelerate", "restore"]
