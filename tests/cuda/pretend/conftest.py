"""Each test of this folder runs in a process of its own that has the pretend device, forked from one that has imported all.

A test is given its parameters and `tmp_path`, nothing else. What the device notes as a fault fails it, and so does a crash or
more than LIMIT seconds.
"""

from __future__ import annotations

import multiprocessing

import pytest

from tests.cuda import pretend

LIMIT = 120


def pytest_configure(config: pytest.Config) -> None:
    """The mark of tests that need no device."""
    config.addinivalue_line("markers", "here: runs in pytest's own process, without the pretend device")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Send the test to its process."""
    if pyfuncitem.get_closest_marker("here"):
        return None
    if why := pretend.missing():
        pytest.skip(why)
    from tests.cuda.pretend import warm

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.cuda.pretend.warm"])
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    listen, answer = context.Pipe(duplex=False)
    child = context.Process(target=warm.run, args=(str(pyfuncitem.path), pyfuncitem.originalname, arguments, answer))
    child.start()
    answer.close()
    try:
        text = listen.recv() if listen.poll(LIMIT) else f"it took more than {LIMIT} seconds"
    except EOFError:
        child.join()
        text = f"its process ended with {child.exitcode}"
    child.kill()
    child.join()
    if text:
        pytest.fail(text, pytrace=False)
    return True
