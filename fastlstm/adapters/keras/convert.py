"""Keras 3: weights both ways for SimpleRNN, LSTM, GRU, Bidirectional and chains of layers, and from Keras's files.

Keras itself is needed, and imported, by `to_keras` alone; files need h5py.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...files.schema import reading
from .build import build
from .chain import Activation, Chain, Last
from .config import layers, records
from .files import opened
from .records import DTYPES, Record, describe, fill
from .weights import found_in, reader, records_of

__all__ = ["Activation", "Chain", "Last", "from_keras", "to_keras"]


def from_keras(source: Any, *, into: Any = None) -> Any:
    """The fastlstm layer or model that a Keras layer, model or file of one is.

    Parameters
    ----------
    source : Keras layer or model, or path
        Built. A model is Sequential or Functional and a chain: each layer reads the one before it. A path is a `.keras` file,
        or `.weights.h5`, which says nothing of what its weights belong to: see `into`.
    into : fastlstm layer, model or Chain, optional
        For `.weights.h5`: what the weights are of, in order; they are written to it, and it is returned. None is enough for
        LSTM or GRU layers alone, in one direction or both, with biases and Keras's own activations.

    Returns
    -------
    RNN, LSTM, GRU
        For recurrent layers of one kind and size, with batch_first: x is [B, T, I] as in Keras. All steps are returned,
        and the final state, whatever return_sequences and return_state are.
    LanguageModel
        For an Embedding, recurrent layers, and a Dense layer as wide as the vocabulary at every step. It gives logits, also
        where Keras goes on to a softmax.
    SequenceClassifier, SequenceRegressor
        For recurrent layers and a Dense layer on the last step, with a softmax and without; also the Normalization before
        and the Reshape and Rescaling after them.
    Linear, Embedding, Dropout
        For one such layer.
    Chain
        For any other chain; called as the Keras model.

    Warns
    -----
    UserWarning
        Naming options that act in Keras's training only, such as recurrent_dropout and regularizers, and are left out.

    Raises
    ------
    ValueError
        For what fastlstm does not do, by the layer's and option's names; for a layer that is not built. Of a file, and for one
        that is damaged or not Keras 3's, it is a `fastlstm.FileError`. Nothing in a file is ever unpickled or run.
    TypeError
        For another type of source or of into.
    ImportError
        For a file, without h5py.
    """
    notes: list[str] = []
    if isinstance(source, str | os.PathLike):
        made = _from_file(source, into, notes)
    else:
        _expect_keras(source)
        _expect_no(into)
        made = build(_live(source, notes))
    if notes:
        warnings.warn(f"left out, as they act in Keras's training only: {', '.join(notes)}", stacklevel=2)
    return made


def _from_file(path: str | os.PathLike[str], into: Any, notes: list[str]) -> Any:
    own = None if into is None else records_of(into)
    with opened(path) as (config, stored):
        if config is not None:
            _expect_no(into)
        with reading(path):  # what is wrong from here on is the file's fault
            if config is None:
                found = found_in(str(path), stored, own)
            else:
                found = records(config, reader(config, stored), notes)
            if into is None:
                return build(found)
            fill(into, found)
    return into


def _expect_no(into: Any) -> None:
    if into is not None:
        raise ValueError("into is given; expected it with a .weights.h5 file only: others say what they hold")


def to_keras(layer: Any, *, return_sequences: bool = True) -> Any:
    """A Keras layer or Sequential model with the weights of a fastlstm layer or model.

    Parameters
    ----------
    layer : RNN, LSTM, GRU, Linear, Embedding, Dropout, LanguageModel, SequenceRegressor, SequenceClassifier or Chain
    return_sequences : bool
        Whether a recurrent layer gives every step or only the last; models know themselves.

    Returns
    -------
    keras.Layer
        Built, inputs [B, T, I] or ids [B, T]. One recurrent layer becomes SimpleRNN, LSTM, GRU or Bidirectional; several,
        and models, become a Sequential: a LanguageModel with logits, a SequenceClassifier with a softmax.

    Raises
    ------
    ValueError
        For what Keras cannot hold: proj_size, a dtype that it lacks.
    TypeError
        For another type of layer.
    ImportError
        Without Keras 3 and a backend of it.

    Warns
    -----
    UserWarning
        For tied weights, of which Keras gets two copies.
    """
    found = describe(layer, bool(return_sequences))
    keras = _keras()
    if getattr(layer, "tie_weights", False):
        warnings.warn("layer has tie_weights; in Keras its embedding and its head are two copies", stacklevel=2)
    if isinstance(layer, Chain) or len(found) > 1:
        return _sequential(keras, found)
    made = _layer(keras, found[0])
    if found[0].arrays:
        made.build((None, None) if found[0].kind == "Embedding" else (None, None, found[0].arrays[0][0].shape[0]))
        made.set_weights([array for direction in found[0].arrays for array in direction])
    return made


def _keras() -> Any:
    try:
        import keras
    except ImportError as error:
        raise ImportError(f'to_keras needs Keras 3 and a backend of it: pip install "fastlstm[keras]" ({error})') from error
    if not str(keras.__version__).startswith("3"):
        raise ImportError(f'to_keras needs Keras 3, and found {keras.__version__}: pip install "fastlstm[keras]"')
    return keras


def _sequential(keras: Any, found: Sequence[Record]) -> Any:
    """A built model of these layers."""
    made = [_layer(keras, record) for record in found]
    first = next(record for record in found if record.arrays)
    if first.kind == "Embedding":
        entry = keras.Input((None,), dtype="int32")
    else:
        time = (None,) if any(record.recurrent for record in found) else ()
        dtype = "float64" if first.dtype == "float64" else "float32"
        entry = keras.Input((*time, first.arrays[0][0].shape[0]), dtype=dtype)
    model = keras.Sequential([entry, *made])
    for record, one in zip(found, made, strict=True):
        if record.arrays:
            one.set_weights([array for direction in record.arrays for array in direction])
    return model


def _layer(keras: Any, record: Record) -> Any:
    """An unbuilt Keras layer."""
    kind, options, dtype = record.kind, record.options, DTYPES[record.dtype]
    make = getattr(keras.layers, kind)
    if record.recurrent:
        own = {"reset_after": options["reset_after"]} if kind == "GRU" else {}
        if options["relu"]:
            own["activation"] = "relu"
        layer = make(
            record.arrays[0][1].shape[0], use_bias=options["bias"], return_sequences=options["sequences"], dtype=dtype, **own
        )
        return layer if len(record.arrays) == 1 else keras.layers.Bidirectional(layer, dtype=dtype)
    if kind == "Dense":
        return make(record.width, use_bias=len(record.arrays[0]) == 2, dtype=dtype)
    if kind == "Embedding":
        return make(*record.arrays[0][0].shape, dtype=dtype)
    if kind == "Normalization":
        return make(mean=options["mean"].tolist(), variance=(options["std"] ** 2).tolist(), dtype=dtype)
    if kind == "Rescaling":
        return make(options["scale"].tolist(), options["offset"].tolist(), dtype=dtype)
    argument = {"Dropout": "rate", "Activation": "activation", "Reshape": "shape"}[kind]
    return make(options[argument], dtype=dtype)


def _expect_keras(source: Any) -> None:
    """Check that `source` is a built layer of Keras 3; it can be one only if Keras has been imported."""
    keras = sys.modules.get("keras")
    if keras is None or not isinstance(source, keras.Layer):
        raise TypeError(f"source is {type(source).__name__}; expected a layer or model of Keras 3, or the path of its file")
    if not source.built:
        raise ValueError(f"layer {source.name!r} ({type(source).__name__}) is not built; call it once, or its build method")


def _live(source: Any, notes: list[str]) -> list[Record]:
    """The records of a Keras layer or model in memory."""
    keras = _keras()
    # As its file would say it, where tuples are lists.
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(source), default=repr))

    def read(name: str, inner: str) -> list[np.ndarray]:
        one = source if not isinstance(source, keras.Model) else source.get_layer(name)
        for attribute in filter(None, inner.split("/")):
            one = getattr(one, attribute)
        store: dict[str, Any] = {}
        one.save_own_variables(store)
        return [np.asarray(keras.ops.convert_to_numpy(store[str(k)])) for k in range(len(store))]

    if isinstance(source, keras.Model):
        layers(config)  # refuses a model of another class, before its options are
    return records(config, read, notes)
