"""A reliability campaign: the library is killed, fed damaged files, called from many threads, checked against float64.

    python -m tests.campaign --minutes 60               every part, for an hour, on all processors
    python -m tests.campaign --parts threads,soak       these, until their trials are done
    python -m tests.campaign.worker threads 17          one seed of a part again

A part is a module of this folder with

    NAME = "files"                              as in --parts
    TRIALS = 1_000_000                          of a full campaign
    LIMIT = 10.0                                optional: seconds that a call of `trial` may take
    def prepare(folder: Path) -> None           optional: makes what all trials need, once
    def trial(rng: random.Random, folder: Path) -> int

`trial` does one or more trials, all drawn from `rng`, and returns how many. What it raises says what failed. Its folder holds
what `prepare` made there, and is no other process's.
"""
