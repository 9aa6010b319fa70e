"""Batches for training and evaluation: streams of tokens and sets of sequences.

Knows arrays only: nothing of texts, tokenizers, models or the trainer. Both classes follow one protocol, which any
object may: ``batches(epoch, start)``, ``len()``, ``carries_state`` and ``describe()``.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterator
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .runtime import check
from .runtime.arrays import as_numpy


class TooShortError(ValueError):
    """There are not enough tokens for one batch."""


class TokenStream:
    """One long sequence of tokens as `batch_size` contiguous rows, read in pieces of `seq_len` steps.

    Row b of one batch goes on where row b of the batch before ended, so the state is carried from batch to batch and
    zeroed only where an epoch starts. The target of each token is the token after it in its row.

    Parameters
    ----------
    ids : array_like of int, [N]
        The tokens, in ``0 ... 2**31 - 1``; copied.
    batch_size : int
        Rows B. The ``N % B`` tokens at the end that do not fill a row of all are left out.
    seq_len : int
        Steps T of a batch.
    keep_remainder : bool
        What a row holds after its last whole piece of `seq_len` steps is left out (False, for training: every batch
        has the same shape) or becomes a last, shorter batch (True, for evaluation: every target counts).
    characters_per_token : float, optional
        Mean length of a token in characters, for reports in bits per character.

    Raises
    ------
    TypeError
        If `ids` are not integers, or an argument that must be one is not.
    ValueError
        If `ids` is not 1-d or holds a value outside the range.
    TooShortError
        If there are not enough tokens for one batch (a ValueError).

    Examples
    --------
    >>> data = TokenStream(range(10), batch_size=2, seq_len=2)
    >>> len(data), data.num_tokens
    (2, 8)
    >>> for inputs, targets in data:
    ...     print(inputs.tolist(), targets.tolist())
    [[0, 5], [1, 6]] [[1, 6], [2, 7]]
    [[2, 7], [3, 8]] [[3, 8], [4, 9]]
    """

    carries_state = True

    def __init__(
        self,
        ids: ArrayLike,
        batch_size: int = 64,
        seq_len: int = 100,
        *,
        keep_remainder: bool = False,
        characters_per_token: float | None = None,
    ) -> None:
        tokens: NDArray[Any] = check.given("ids", ids, as_numpy)
        self.batch_size = _positive("batch_size", batch_size)
        self.seq_len = _positive("seq_len", seq_len)
        self.characters_per_token = characters_per_token
        if tokens.ndim != 1:
            raise ValueError(f"ids: expected a 1-d array, got shape {tokens.shape}")
        if tokens.size and tokens.dtype.kind not in "iu":
            raise TypeError(f"ids: expected integers, got {tokens.dtype}")
        steps = tokens.size // self.batch_size - 1  # a row's last token is only a target
        fewest = 1 if keep_remainder else self.seq_len
        if steps < fewest:
            raise TooShortError(self._too_short(tokens.size, fewest))
        if tokens.min() < 0 or tokens.max() > np.iinfo(np.int32).max:
            raise ValueError(f"ids: expected 0 ... 2**31 - 1, got {tokens.min()} ... {tokens.max()}")
        self._length = tokens.size
        self._steps = steps if keep_remainder else steps - steps % self.seq_len
        rows = tokens[: (steps + 1) * self.batch_size].reshape(self.batch_size, steps + 1)
        # Time-major, so that inputs and targets of every batch are contiguous views of this one array, a step apart.
        self._ids: NDArray[np.int32] = np.array(rows.T[: self._steps + 1], np.int32, order="C")
        self._ids.flags.writeable = False

    def _too_short(self, size: int, fewest: int) -> str:
        needed = self.batch_size * (fewest + 1)
        message = (
            f"ids: {size} tokens are too few for batch_size={self.batch_size} rows of {fewest} steps and a target; "
            f"at least {self.batch_size} * ({fewest} + 1) = {needed} are needed"
        )
        if size < 2:
            return f"{message}: give more data"
        fits = [f"batch_size={size // (fewest + 1)}"] if size > fewest else []
        if size >= 2 * self.batch_size:
            fits.append(f"seq_len={size // self.batch_size - 1}")
        return f"{message}: give more data, or at most {' or '.join(fits)}" if fits else f"{message}: give more data"

    @property
    def num_tokens(self) -> int:
        """Targets in an epoch, which is what a loss per token is a mean over."""
        return self._steps * self.batch_size

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-self._steps // self.seq_len)

    def __iter__(self) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32]]]:
        return self.batches()

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32]]]:
        """Iterate over an epoch's batches.

        Parameters
        ----------
        epoch : int
            Of no effect: the order is that of the text.
        start : int
            Number of the first batch, ``0 ... len(self)``.

        Returns
        -------
        iterator of (inputs, targets)
            Both int32 [T, B], C-contiguous, read-only views that stay valid and are never overwritten.
        """
        del epoch
        return self._pieces(_start(start, len(self)))

    def _pieces(self, start: int) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32]]]:
        for first in range(start * self.seq_len, self._steps, self.seq_len):
            last = min(first + self.seq_len, self._steps)
            yield self._ids[first:last], self._ids[first + 1 : last + 1]

    def describe(self) -> dict[str, Any]:
        """Facts for a run's record, as values that JSON can hold; `sha256` tells whether data are the same."""
        return {
            "type": "TokenStream",
            "tokens": self._length,
            "batch_size": self.batch_size,
            "seq_len": self.seq_len,
            "batches": len(self),
            "targets": self.num_tokens,
            "left_out": self._length - self._ids.size,
            "characters_per_token": self.characters_per_token,
            "sha256": _fingerprint(self._ids),
        }


class Batches:
    """A set of sequences, drawn in batches, each sequence once per epoch.

    Parameters
    ----------
    inputs : array_like of numbers, [N, T, I]
        The sequences. Not copied: do not write to it while it is in use.
    targets : array_like of numbers, [N, ...]
        What belongs to each sequence: class numbers [N], or values such as [N, horizon, O].
    batch_size : int
        Sequences B of a batch; the last batch of an epoch may have fewer.
    shuffle : bool
        Draw a new order for every epoch, or keep the given one.
    lengths : array_like of int, [N], optional
        Valid steps of each sequence, ``0 ... T``.
    seed : int, optional
        Key of the shuffling, in ``0 ... 2**64 - 1``; epoch e always has the same order with the same seed, so a run
        that is resumed goes on as it would have. None is 0.

    Raises
    ------
    TypeError
        If an argument is not of the type said.
    ValueError
        If shapes do not fit each other, there are no sequences, or a value is not finite or out of range.

    Examples
    --------
    >>> import numpy as np
    >>> data = Batches(np.zeros((5, 7, 3), np.float32), np.arange(5), batch_size=2, seed=1)
    >>> [(inputs.shape, targets.shape) for inputs, targets in data.batches(epoch=0)]
    [((7, 2, 3), (2,)), ((7, 2, 3), (2,)), ((7, 1, 3), (1,))]
    >>> sorted(int(target) for _, targets in data for target in targets)
    [0, 1, 2, 3, 4]
    """

    carries_state = False

    def __init__(
        self,
        inputs: ArrayLike,
        targets: ArrayLike,
        batch_size: int = 32,
        shuffle: bool = True,
        lengths: ArrayLike | None = None,
        seed: int | None = None,
    ) -> None:
        self.batch_size = _positive("batch_size", batch_size)
        self.shuffle = bool(shuffle)
        self.seed = 0 if seed is None else _integer("seed", seed)
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed: expected 0 ... 2**64 - 1, got {seed}")
        self._inputs = _numbers("inputs", inputs)
        self._targets = _numbers("targets", targets)
        shape = self._inputs.shape
        if len(shape) != 3 or 0 in shape:
            raise ValueError(f"inputs: expected shape [N, T, I] without a zero, got {list(shape)}")
        if self._targets.shape[:1] != shape[:1]:
            raise ValueError(
                f"targets: expected one for each of the {shape[0]} sequences of inputs, got shape {list(self._targets.shape)}"
            )
        self._lengths = None if lengths is None else _lengths(lengths, shape[0], shape[1])

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-len(self._inputs) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[NDArray[Any], ...]]:
        return self.batches()

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[tuple[NDArray[Any], ...]]:
        """Iterate over an epoch's batches.

        Parameters
        ----------
        epoch : int
            Number of the epoch, from 0; with `seed` it decides the order.
        start : int
            Number of the first batch, ``0 ... len(self)``.

        Returns
        -------
        iterator of (inputs, targets) or (inputs, targets, lengths)
            New arrays that belong to the caller: `inputs` time-major [T, B, I], C-contiguous; `targets` [B, ...] with
            the sequence first as given; `lengths` int64 [B], where the set has them.
        """
        epoch = _integer("epoch", epoch)
        if not 0 <= epoch < 2**64:
            raise ValueError(f"epoch: expected 0 ... 2**64 - 1, got {epoch}")
        return self._draw(epoch, _start(start, len(self)))

    def _draw(self, epoch: int, start: int) -> Iterator[tuple[NDArray[Any], ...]]:
        order = np.arange(len(self._inputs))
        if self.shuffle:
            # Sorted by the counter's own 64-bit numbers: Philox defines the order, not a version of numpy's shuffle.
            key = np.array([self.seed, epoch], np.uint64)
            order = np.argsort(np.random.Philox(key=key).random_raw(len(order)), kind="stable")
        for first in range(start * self.batch_size, len(order), self.batch_size):
            rows = order[first : first + self.batch_size]
            batch = np.ascontiguousarray(self._inputs[rows].swapaxes(0, 1)), self._targets[rows]
            yield batch if self._lengths is None else (*batch, self._lengths[rows])

    def describe(self) -> dict[str, Any]:
        """Facts for a run's record, as values that JSON can hold; `sha256` tells whether data are the same."""
        arrays = [self._inputs, self._targets] + ([] if self._lengths is None else [self._lengths])
        return {
            "type": "Batches",
            "inputs": list(self._inputs.shape),
            "targets": list(self._targets.shape),
            "lengths": self._lengths is not None,
            "batch_size": self.batch_size,
            "batches": len(self),
            "shuffle": self.shuffle,
            "seed": self.seed,
            "sha256": _fingerprint(*arrays),
        }


def _integer(name: str, value: SupportsIndex) -> int:
    try:
        if not isinstance(value, bool | np.bool_):
            return operator.index(value)
    except TypeError:
        pass
    raise TypeError(f"{name}: expected an integer, got {value!r}")


def _positive(name: str, value: SupportsIndex) -> int:
    number = _integer(name, value)
    if number < 1:
        raise ValueError(f"{name}: expected at least 1, got {number}")
    return number


def _start(start: SupportsIndex, batches: int) -> int:
    number = _integer("start", start)
    if not 0 <= number <= batches:
        raise ValueError(f"start: expected 0 ... {batches}, got {number}")
    return number


def _numbers(name: str, values: ArrayLike) -> NDArray[Any]:
    array: NDArray[Any] = check.given(name, values, as_numpy)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{name}: expected numbers, got {array.dtype}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        place = [int(i) for i in np.argwhere(~np.isfinite(array))[0]]
        raise ValueError(f"{name}: expected finite numbers, got {array[tuple(place)]} at {place}")
    return array


def _lengths(values: ArrayLike, sequences: int, steps: int) -> NDArray[np.int64]:
    array: NDArray[Any] = check.given("lengths", values, as_numpy)
    if array.dtype.kind not in "iu":
        raise TypeError(f"lengths: expected integers, got {array.dtype}")
    if array.shape != (sequences,):
        raise ValueError(f"lengths: expected one for each of the {sequences} sequences, got shape {list(array.shape)}")
    if array.min() < 0 or array.max() > steps:
        raise ValueError(f"lengths: expected 0 ... {steps}, got {array.min()} ... {array.max()}")
    return array.astype(np.int64)


def _fingerprint(*arrays: NDArray[Any]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
