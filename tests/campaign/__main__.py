"""`python -m tests.campaign`: run a campaign, or write the table of a recorded one into the documents.

Exit status: 0 all trials passed, 1 some failed, 2 bad use, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from tqdm import tqdm

from fastlstm.kernels.native import jit
from fastlstm.runtime import info
from tests.campaign import report, runner


def options() -> argparse.Namespace:
    """What the command was given."""
    known = runner.parts()

    def names(text: str) -> list[str]:
        chosen = text.split(",") if text else known
        if unknown := [name for name in chosen if name not in known]:
            raise argparse.ArgumentTypeError(f"no part {unknown[0]!r}; expected some of {','.join(known)}")
        return chosen

    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("--minutes", type=float, help="end after these, done or not; all parts get their share")
    parser.add_argument("--seed", type=int, default=0, help="another number tries other things (%(default)s)")
    parser.add_argument("--parts", type=names, default=known, metavar="NAME,...", help=f"of {','.join(known)}; all if absent")
    parser.add_argument("--trials", type=int, help="of each part, instead of its own number")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes at a time (%(default)s)")
    parser.add_argument("--turn", type=float, metavar="SECONDS", help="that a process stays at a part before a fresh one comes")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write what came out as JSON")
    parser.add_argument("--table", type=Path, metavar="FILE", help="run nothing: put a recorded table into docs/campaign.md")
    return parser.parse_args()


def main() -> int:
    """Run the command."""
    given = options()
    if given.table:
        report.write_table(given.table)
        return 0
    for isa in jit.supported():  # compiling is no trial
        with jit.use_isa(isa):
            info.warmup()
    bars: dict[str, tqdm] = {}
    campaign = runner.Campaign(
        given.parts,
        minutes=given.minutes,
        seed=given.seed,
        trials=given.trials,
        workers=given.workers,
        turn=given.turn,
        tell=lambda failure: tqdm.write(report.told(failure)),
        progress=lambda tally, trials: bars[tally.part].update(trials),
    )
    for place, tally in enumerate(campaign.tallies):
        bars[tally.part] = tqdm(total=tally.target, desc=f"{tally.part:<10}", unit="", position=place, disable=None)
    status = 0
    try:
        campaign.run()
    except KeyboardInterrupt:
        status = 130
    for bar in bars.values():
        bar.close()
    print(report.summary(campaign), flush=True)
    if given.record:
        given.record.parent.mkdir(parents=True, exist_ok=True)
        given.record.write_text(json.dumps(report.record(campaign), indent=1) + "\n")
    return status or int(any(tally.failures for tally in campaign.tallies))


if __name__ == "__main__":
    raise SystemExit(main())
