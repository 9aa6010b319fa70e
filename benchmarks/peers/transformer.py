"""The Transformer that recurrent models are compared with: a decoder in PyTorch, trained on the same tokens.

There are two sizes. `same_size` has as many parameters as the recurrent model that it is compared with. `large` has about ten
times as many as the article's LSTM (six layers of 384 units, six heads), since the article reports a much lower perplexity for
its own.

The blocks are pre-norm, with causal attention and a feed-forward part; positions are learned, and the output layer shares no
weights. Parameters and arithmetic are float32. The window is the length of the sequences in training; no state is carried from
one to the next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.peers.layers import ARTICLE, Size, torch_training


class Block(nn.Module):
    """A block: causal attention, then the feed-forward part. x and out are [B, T, width].

    If `forward` gets a list, it keeps keys and values in it, so that a single further step need not compute them again.

    Parameters
    ----------
    width, heads, inner : int
        Units, heads, and units within the feed-forward part.
    dropout : float
        Dropout of attention weights and of the output of each part.
    """

    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.queries_keys_values, self.mixed = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.inner = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, kept: list[torch.Tensor] | None = None) -> torch.Tensor:
        batch, steps, width = x.shape
        parts = self.queries_keys_values(self.norms[0](x)).view(batch, steps, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        queries, *seen = parts
        if kept is not None:
            seen = kept[:] = [torch.cat(pair, 2) for pair in zip(kept, seen, strict=True)] if kept else seen
        dropout = self.dropout if self.training else 0.0
        causal = seen[0].shape[2] == steps  # otherwise this is a single step, which may see all others
        attended = nn.functional.scaled_dot_product_attention(queries, *seen, dropout_p=dropout, is_causal=causal)
        x = x + self.drop(self.mixed(attended.transpose(1, 2).reshape(batch, steps, width)))
        return x + self.drop(self.inner(self.norms[1](x)))


class Decoder(nn.Module):
    """A language model: ids [T, B] to logits [T, B, vocabulary], time first as in the recurrent models.

    Parameters
    ----------
    vocabulary : int
    window : int
        The longest sequence.
    layers : int
        The number of blocks.
    width, heads, inner, dropout
        See `Block`.
    """

    def __init__(
        self, vocabulary: int, window: int, *, width: int, layers: int, heads: int, inner: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.window = window
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(window, width)
        self.blocks = nn.Sequential(*(Block(width, heads, inner, dropout) for _ in range(layers)))
        self.norm, self.head, self.drop = nn.LayerNorm(width), nn.Linear(width, vocabulary), nn.Dropout(dropout)
        for name, value in self.named_parameters():
            if value.dim() == 2:
                into_sum = name.endswith(("mixed.weight", "inner.2.weight"))  # their outputs add up over the layers
                nn.init.normal_(value, std=0.02 / (2 * layers) ** 0.5 if into_sum else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(value)

    def forward(self, ids: torch.Tensor, kept: list[list[torch.Tensor]] | None = None) -> torch.Tensor:
        """Return logits. With a list, empty at first, you may pass a prompt and then single steps; none is computed twice."""
        if kept == []:
            kept += [[] for _ in self.blocks]
        begin = kept[0][0].shape[2] if kept and kept[0] else 0
        steps = begin + len(ids)
        if steps > self.window:
            raise ValueError(f"ids are of {steps} steps; expected at most the window, {self.window}")
        x = self.drop(self.tokens(ids.T) + self.positions.weight[begin:steps])
        for k, block in enumerate(self.blocks):
            x = block(x, kept[k] if kept else None)
        return self.head(self.norm(x)).transpose(0, 1)


def parameters(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(value.numel() for value in model.parameters())


def same_size(count: int, vocabulary: int, window: int, dropout: float = 0.0) -> Decoder:
    """Return a decoder of about `count` parameters: five layers of 128 units, four heads, and as much feed-forward as that
    takes.

    Raises
    ------
    ValueError
        If `count` is too low.
    """
    kind: dict[str, Any] = {"width": 128, "layers": 5, "heads": 4, "dropout": dropout}
    one, two = (parameters(Decoder(vocabulary, window, inner=inner, **kind)) for inner in (1, 2))
    inner = 1 + round((count - one) / (two - one))
    if inner < 1:
        raise ValueError(f"count is {count}; expected at least the {one} that attention and embeddings take")
    return Decoder(vocabulary, window, inner=inner, **kind)


def large(vocabulary: int, window: int, dropout: float = 0.2) -> Decoder:
    """Return a decoder of six layers of 384 units with six heads."""
    return Decoder(vocabulary, window, width=384, layers=6, heads=6, inner=4 * 384, dropout=dropout)


def training_step(model: Decoder, size: Size = ARTICLE, device: str = "cpu") -> Callable[[], float]:
    """Return a training step on the tokens of the recurrent models: cross-entropy, clipping, Adam."""
    return torch_training(model.train(), model, size.tokens(), device)
