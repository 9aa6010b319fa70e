"""What an answer to one of the article's claims is, and when a measured figure holds."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.article import NEAR


@dataclass(frozen=True)
class Answer:
    """An answer to a claim.

    Attributes
    ----------
    value : str
        What was measured; empty if nothing was.
    holds : bool or None
        Whether the claim holds by it; None if that cannot be said.
    note : str
        How far off the value is, or why there is none. Tables show the part before the first semicolon.
    depends : str
        The verdict, if the claim holds by one way of measuring and not by another.
    """

    value: str = ""
    holds: bool | None = None
    note: str = ""
    depends: str = ""

    @property
    def verdict(self) -> str:
        """The verdict in words."""
        unknown = "not measurable here" if self.value else "not measured here"
        return self.depends or {True: "holds", False: "does not hold", None: unknown}[self.holds]

    @property
    def brief(self) -> str:
        """The note up to its first semicolon."""
        return self.note.split("; ")[0]


@dataclass(frozen=True)
class Row:
    """A row of the report's tables: a claim, the article's figure, and the answers of fastlstm and PyTorch."""

    what: str
    article: str
    here: Answer
    torch: Answer | None = None


def holds(measured: float, article: float) -> bool:
    """Return whether a figure is within a tenth of the article's."""
    return abs(measured / article - 1) <= NEAR


def distance(measured: float, article: float) -> str:
    """Return how far a figure is off the article's, in per cent of the article's."""
    off = f"{measured / article - 1:+.0%}".replace("-", "−")
    return "the same" if off in ("+0%", "−0%") else off


def compared(measured: float, article: float, note: str) -> Answer:
    """Return the answer of a ratio that was measured."""
    return Answer(f"{measured:.3g}", holds(measured, article), f"{distance(measured, article)}; {note}")
