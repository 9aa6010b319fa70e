"""What a claim of the article and an answer to it are, and when a measured figure holds.

A measured figure holds where it is within 10 % of the article's: two runs on one machine may differ by that.
"""

from __future__ import annotations

from dataclasses import dataclass

NEAR = 0.1


@dataclass(frozen=True)
class Answer:
    """What was measured, whether the claim holds by it (None: not measured), and by how much or why not."""

    value: str = ""
    holds: bool | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        """In words."""
        return {True: "holds", False: "does not hold", None: "not measurable here" if self.value else "not measured here"}[
            self.holds
        ]


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


def compared(measured: float, article: float, note: str) -> Answer:
    """A ratio beside the article's."""
    off = f"{measured / article - 1:+.0%}".replace("-", "−")
    return Answer(f"{measured:.3g}", holds(measured, article), f"{'the same' if off in ('+0%', '−0%') else off}; {note}")
