"""What holds for the whole suite: one torch thread, and failures of a machine that stood still are not ours.

One thread, since small networks are slower on several, and figures vary with their number.
"""

import functools
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch reads it, and for the processes that tests start

import pytest
import torch
from hypothesis import settings

from tests.stalls import StallMeter

torch.set_num_threads(1)

settings.register_profile("long", max_examples=5000, deadline=None)

METER = pytest.StashKey[StallMeter]()
EXCUSED = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[METER] = StallMeter()
    config.stash[METER].start()
    config.stash[EXCUSED] = []


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[METER].stop()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.flaky(reruns=5, reruns_delay=5, condition=functools.partial(_is_excused, item)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.config.stash[METER].forget()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    excused = config.stash[EXCUSED]
    if excused:
        terminalreporter.section("failed while the machine stood still, run again")
        terminalreporter.write_line("\n".join(excused))


def _is_excused(item: pytest.Item, error: BaseException | None) -> bool:
    """Whether the machine stood still while `item` ran, so that its failure says nothing of the code."""
    meter = item.config.stash[METER]
    if error is None or not meter.excuses():
        return False
    item.config.stash[EXCUSED].append(f"{item.nodeid}: for {1000 * meter.longest_s:.0f} ms")
    return True
