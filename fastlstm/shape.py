"""What a stack of recurrent layers is made of: cells, sizes, options, and the parameters that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

GATES = {"rnn": 1, "lstm": 4, "gru": 3}
DTYPES = ("float32", "float64", "bfloat16")
STORAGE = ("float32", "float64")  # of arrays


@dataclass(frozen=True)
class Shape:
    """What a stack is made of; names and meanings as in the public layers."""

    cell: str
    input_size: int
    hidden_size: int
    num_layers: int = 1
    bias: bool = True
    dropout: float = 0.0
    bidirectional: bool = False
    proj_size: int = 0
    relu: bool = False
    reset_after: bool = True

    @cached_property
    def directions(self) -> int:
        """1 or 2."""
        return 2 if self.bidirectional else 1

    @cached_property
    def width(self) -> int:
        """Width of one direction's h."""
        return self.proj_size or self.hidden_size

    def suffixes(self) -> list[list[str]]:
        """Parameter name suffixes [layer][direction]."""
        return [[f"_l{k}", f"_l{k}_reverse"][: self.directions] for k in range(self.num_layers)]

    def layer_inputs(self, layer: int) -> int:
        """Width of a layer's inputs."""
        return self.input_size if layer == 0 else self.directions * self.width

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the parameters, in torch.nn's order."""
        shapes: dict[str, tuple[int, ...]] = {}
        gates = GATES[self.cell] * self.hidden_size
        for layer, suffixes in enumerate(self.suffixes()):
            for suffix in suffixes:
                shapes[f"weight_ih{suffix}"] = (gates, self.layer_inputs(layer))
                shapes[f"weight_hh{suffix}"] = (gates, self.width)
                if self.bias:
                    shapes[f"bias_ih{suffix}"] = shapes[f"bias_hh{suffix}"] = (gates,)
                if self.proj_size:
                    shapes[f"weight_hr{suffix}"] = (self.proj_size, self.hidden_size)
        return shapes
