"""A trained model as plain C: one C99 header and source, for a microcontroller or any program without Python.

Needs no framework, and a C compiler only where its result is compiled. What the C is made of stands in source.py.
"""

from .exported import Exported, export

__all__ = ["Exported", "export"]
