"""What `pytest` runs from here: the tests, or with --benchmark-only the benchmarks; and the options that these have.

They stand here because options must be known before the folder that they belong to is looked at.
"""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """The benchmarks' options."""
    group = parser.getgroup("benchmarks of fastlstm")
    group.addoption("--record", metavar="NAME", help="write the measurements to benchmarks/results/NAME.json")
    group.addoption("--full", action="store_true", help="every shape and longer blocks, about an hour instead of minutes")
    group.addoption("--smoke", action="store_true", help="tiny shapes and short blocks: whether all runs, not how fast")
    group.addoption("--peers", metavar="NAME,...", help="only these peers instead of all that are installed")


def pytest_configure(config: pytest.Config) -> None:
    """Choose between the two."""
    only = config.getoption("benchmark_only", default=False)
    if config.args_source is pytest.Config.ArgsSource.TESTPATHS:
        config.args = ["benchmarks" if only else "tests"]
    elif not only and not config.getoption("benchmark_disable", default=False):
        config.option.benchmark_skip = True  # named by hand, they are still not run without --benchmark-only
