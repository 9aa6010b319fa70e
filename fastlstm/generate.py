"""Text from a trained model: sampling one token after another. Knows models by `Stream`, tokenizers and checkpoints.

Draws are made in float64 from a Philox counter, one number for each token, so that a seed means the same text anywhere.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .files import schema
from .models.stream import Stream
from .runtime import check
from .runtime.arrays import as_numpy
from .training import arguments, checkpoint, snapshot


class Run:
    """
    A trained model with its tokenizer.

    Parameters
    ----------
    model : LanguageModel
        Not changed; its weights are read anew by each call.
    tokenizer : tokenizer
        The one that it was trained with.

    Attributes
    ----------
    model, tokenizer
        As given; ``tokenizer`` is None for a model of something else than text.
    path : Path or None
        The checkpoint file that it was loaded from.
    history : list of dict
        The records of its training, as `fastlstm.Trainer.fit` makes them.
    """

    def __init__(self, model: Any, tokenizer: Any = None) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.path: Path | None = None
        self.history: list[dict[str, Any]] = []

    def generate(
        self,
        prompt: str = "",
        length: int = 200,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> str:
        """
        Text that goes on from a prompt.

        Parameters
        ----------
        prompt : str
            What to go on from. Empty: as at the start of a line.
        length : int
            Tokens to generate; of a character model, characters.
        temperature : float
            Below 1 the likely becomes likelier, above 1 less so; 0 always takes the likeliest.
        top_k : int, optional
            Draw from the so many likeliest tokens only.
        top_p : float, optional
            Draw from the fewest likeliest tokens only that together have this probability, above 0 and at most 1.
        seed : int, optional
            From 0 to 2**64 - 1: the same seed gives the same text. None draws a new one.

        Returns
        -------
        str
            The new text, without the prompt.

        Raises
        ------
        ValueError
            If a parameter is out of its range, or the prompt has characters that the tokenizer does not know (named).
        TypeError
            If the model is not one of text, or a parameter is no number, or not a whole one.
        """
        return "".join(self.stream(prompt, length, temperature, top_k, top_p, seed))

    def stream(
        self,
        prompt: str = "",
        length: int = 200,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> Iterator[str]:
        """Give the text of `generate` piece by piece, as it is made; everything is checked before the first piece."""
        if self.tokenizer is None or self.model.config["type"] != "LanguageModel":
            kind = self.model.config["type"]
            raise TypeError(f"only a LanguageModel with a tokenizer generates text; this is a {kind} without")
        length = check.integer("length", length)
        if length < 0:
            raise ValueError(f"length: expected at least 0 tokens, got {length}")
        sampler = Sampler(temperature, top_k, top_p, seed)
        start = [int(token) for token in self.tokenizer.encode(prompt)]
        decoder = self.tokenizer.decode_stream()
        for token in start:
            # What is shown of a token may hang on the one before it.
            decoder.push(token)
        return self._pieces(start or [self._newline()], length, sampler, decoder)

    def _pieces(self, start: list[int], length: int, sampler: "Sampler", decoder: Any) -> Iterator[str]:
        step = Stream(self.model)
        for token in start[:-1]:
            step(token)
        token = start[-1]
        for _ in range(length):
            token = sampler.draw(as_numpy(step(token)))
            piece = decoder.push(token)
            if piece:
                yield piece
        rest = decoder.flush()
        if rest:
            yield rest

    def _newline(self) -> int:
        """The token to start from where there is no prompt: the end of a line, or of texts without lines, the first."""
        try:
            ids = self.tokenizer.encode("\n")
        except ValueError:
            return 0
        return int(ids[-1]) if len(ids) else 0


class Sampler:
    """
    Draws tokens by their logits.

    Parameters
    ----------
    temperature, top_k, top_p, seed
        As in `Run.generate`. The temperature comes first, then ``top_k``, then ``top_p`` of what is left.

    Examples
    --------
    >>> import numpy as np
    >>> Sampler(temperature=0).draw(np.array([0.1, 2.0, -1.0], np.float32))
    1
    """

    def __init__(
        self, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None, seed: int | None = None
    ) -> None:
        temperature = check.number("temperature", temperature)
        if not 0 <= temperature < float("inf"):
            raise ValueError(f"temperature: expected a number from 0, got {temperature}")
        self._top_p = None if top_p is None else check.number("top_p", top_p)
        if self._top_p is not None and not 0 < self._top_p <= 1:
            raise ValueError(f"top_p: expected a probability above 0 and at most 1, got {top_p}")
        seed = int.from_bytes(os.urandom(8)) if seed is None else check.integer("seed", seed)
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed: expected 0 to 2**64 - 1, got {seed}")
        # Below, a division by the temperature could overflow; it is greedy there anyway.
        self._temperature = temperature if temperature > 1e-100 else 0.0
        self._top_k = None if top_k is None else check.positive("top_k", top_k)
        self._counter = np.random.Philox(key=seed)
        self._odds = np.empty(0)
        self._sums = np.empty(0)

    def draw(self, logits: np.ndarray) -> int:
        """
        Draw the next token.

        Parameters
        ----------
        logits : ndarray, [V]
            Any float type; not changed.

        Raises
        ------
        FloatingPointError
            If a logit is NaN or infinite.
        """
        best = int(logits.argmax())
        top = float(logits[best])
        # NaN is what argmax finds first; an odd of -inf is harmless.
        if not -float("inf") < top < float("inf"):
            raise FloatingPointError(f"the model's output is not finite (logit {top} of token {best}); was it trained?")
        if self._temperature == 0.0:
            return best
        if self._odds.shape != logits.shape:
            self._odds, self._sums = np.empty(logits.shape), np.empty(logits.shape)
        odds, sums = self._odds, self._sums
        odds[:] = logits
        odds -= top
        odds /= self._temperature
        np.exp(odds, out=odds)
        if self._top_k is not None and self._top_k < len(odds):
            odds[_ranked(odds)[self._top_k :]] = 0.0
        if self._top_p is not None and self._top_p < 1.0:
            order = _ranked(odds)
            np.cumsum(odds[order], out=sums)
            odds[order[int(sums.searchsorted(self._top_p * sums[-1])) + 1 :]] = 0.0
        np.cumsum(odds, out=sums)
        total = float(sums[-1])
        # The upper 53 bits, as a fraction below 1. Rounding must not reach the total, which lies past the last token.
        fraction = (int(self._counter.random_raw()) >> 11) * 2.0**-53
        return int(sums.searchsorted(min(fraction * total, np.nextafter(total, 0.0)), side="right"))


def load(path: str | os.PathLike[str], device: str | None = None) -> Run:
    """
    Load a trained model with its tokenizer.

    Parameters
    ----------
    path : path
        A run's folder (its checkpoint with the lowest validation loss if there is one, else its last), or a checkpoint.
    device : str, optional
        Where the model is to run; by default where it was trained, or on the CPU where this machine has no such device.

    Returns
    -------
    Run
        With ``model``, ``tokenizer`` and ``generate``.

    Raises
    ------
    FileNotFoundError, fastlstm.CheckpointError
        If there is no checkpoint, or no whole one.
    """
    file = checkpoint.find_checkpoint(path, best=True)
    arrays, record = snapshot.read(file, optimizer=False, schedule=False)
    model = snapshot.new_model(record, file, device)
    snapshot.put_back_model(model, file, arrays, record)
    run = Run(model, snapshot.new_tokenizer(record, file))
    with schema.reading(file, checkpoint.CheckpointError):
        arguments.check_vocabulary(run.model, run.tokenizer)
    run.path = file
    run.history = record["history"]
    return run


def _ranked(odds: np.ndarray) -> np.ndarray:
    """The tokens from the likeliest down; of equals, the lower number first."""
    return np.argsort(-odds, kind="stable")
