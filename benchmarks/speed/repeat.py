"""Compares the ratios of two records of the suite on one machine: `python -m benchmarks.speed.repeat FIRST SECOND [--record
NAME]`.

The records are files that ``pytest --benchmark-only --record NAME`` writes. Exits with 1 if a ratio differs by more than a
tenth.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.article import NEAR
from benchmarks.measure.record import Record


def compared(first: dict[str, Any], second: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return, by claim and contender, both values of each ratio that both records have, and how far the second is off."""
    found: dict[str, dict[str, Any]] = {}
    for claim in first["ratios"]:
        for who in ("fastlstm", "torch"):
            values = [record["ratios"].get(claim, {}).get(who, {}).get("value") for record in (first, second)]
            if None not in values and not claim.startswith("parameters"):
                found.setdefault(claim, {})[who] = {"values": values, "off": values[1] / values[0] - 1}
    return found


def main() -> None:
    """Compare, print, and write the record if one was named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--record", metavar="NAME")
    options = parser.parse_args()
    first, second = (json.loads(path.read_text()) for path in (options.first, options.second))
    if first["machine"] != second["machine"]:
        raise SystemExit(f"{options.first} and {options.second} are of two machines: {first['machine']}, {second['machine']}")
    record = Record(options.record)
    found = record.content["results"] = compared(first, second)
    record.save()
    offs = {f"{claim}, {who}": one["off"] for claim, by in found.items() for who, one in by.items()}
    for name, off in offs.items():
        print(f"{name:60} {off:+.1%}{'  more than a tenth' if abs(off) > NEAR else ''}")
    if any(abs(off) > NEAR for off in offs.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
