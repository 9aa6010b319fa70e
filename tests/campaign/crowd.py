"""64 threads at once, each with operations of its own on a few objects that they share: threads.py in a crowd.

python -m tests.campaign --parts crowd --minutes 60 --turn 3600 --workers 1       for an hour in one process
"""

from __future__ import annotations

import random
from pathlib import Path

from tests.campaign.threads import draw, together

NAME, TRIALS = "crowd", 20
LIMIT = 120.0
THREADS, SECONDS = 64, 3.0


def trial(rng: random.Random, folder: Path) -> int:
    """One crowd."""
    together(draw(rng, folder, THREADS, rng.randint(2, 8)), SECONDS)
    return 1
