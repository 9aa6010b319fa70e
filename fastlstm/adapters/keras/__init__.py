"""Keras 3: weights both ways for SimpleRNN, LSTM, GRU, Bidirectional and chains of layers, and from Keras's files.

Keras itself is needed, and imported, by `to_keras` alone; files need h5py.
"""

from .convert import Activation, Chain, Last, from_keras, to_keras

__all__ = ["Activation", "Chain", "Last", "from_keras", "to_keras"]
