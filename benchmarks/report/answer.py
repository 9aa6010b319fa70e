"""What a claim of the article and an answer to it are, and when a measured figure holds.

A measured figure holds where it is within 10 % of the article's, a margin chosen beforehand.
"""

from __future__ import annotations

from dataclasses import dataclass

NEAR = 0.1


@dataclass(frozen=True)
class Answer:
    """What was measured, whether the claim holds by it (None: not measured), and by how much or why not: up to the first
    semicolon of the note in brief. `depends` says where a claim holds by one way of measuring and not by another.
    """

    value: str = ""
    holds: bool | None = None
    note: str = ""
    depends: str = ""

    @property
    def verdict(self) -> str:
        """In words."""
        unknown = "not measurable here" if self.value else "not measured here"
        return self.depends or {True: "holds", False: "does not hold", None: unknown}[self.holds]

    @property
    def brief(self) -> str:
        """The distance, or the reason."""
        return self.note.split("; ")[0]


@dataclass(frozen=True)
class Claim:
    """A claim of the article, and the answers to it."""

    what: str
    article: str
    here: Answer
    torch: Answer | None = None


def holds(measured: float, article: float) -> bool:
    """See the top of this file."""
    return abs(measured / article - 1) <= NEAR


def distance(measured: float, article: float) -> str:
    """Per cent of the article's that a figure is off."""
    off = f"{measured / article - 1:+.0%}".replace("-", "−")
    return "the same" if off in ("+0%", "−0%") else off


def compared(measured: float, article: float, note: str) -> Answer:
    """A ratio beside the article's."""
    return Answer(f"{measured:.3g}", holds(measured, article), f"{distance(measured, article)}; {note}")
