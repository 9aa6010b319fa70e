"""What a GPU would do: ``fastlstm.cuda.explain("lstm", 256, 64)`` says which form serves a shape, and what each would take."""

from .runtime.cuda import explain

__all__ = ["explain"]
