"""Disks that are full, on either side: nothing that was done is lost, and all goes on when there is room again."""

import contextlib
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.fault_matrix.ends import PIXELS_PRESET, Link, check_database, wait_until
from tests.link_ends import Actor, Ingest
from tests.transitions import assert_equal, make_transition

MB = 1 << 20
LIMIT_BYTES = 128 << 10
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")


@pytest.fixture
def link(tmp_path: Path) -> Iterator[Link]:
    """With images: 98 kB a step, which fill a small disk soon."""
    link = Link(tmp_path, PIXELS_PRESET)
    yield link
    link.close()


@pytest.fixture
def mount() -> Iterator[Callable[[Path, int], None]]:
    """Return a function that puts a disk of so many bytes in a folder's place.

    Ask for it before what works on that disk, so that this is ended before.
    """
    mounted: list[Path] = []

    def small_disk(folder: Path, size: int) -> None:
        folder.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
        mounted.append(folder)

    yield small_disk
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


@needs_root
def test_a_nearly_full_disk_holds_the_actor_between_episodes_until_the_learner_has_made_room(
    mount: Callable[[Path, int], None], link: Link
) -> None:
    mount(link.actor.run_dir, 30 * MB)
    link.actor.start("--min-free-gb", "0.018", "--pace", "0")
    wait_until(lambda: "no episode begins" in link.actor.output, "the actor's hold")
    assert len(link.actor.steps()) > 0
    link.ingest.start()
    held_at = len(link.actor.steps())
    wait_until(lambda: len(link.actor.steps()) > held_at, "the next episode")
    link.actor.finish()
    assert link.compare().faults == {}


@needs_root
def test_a_full_disk_keeps_steps_in_memory_until_there_is_room(mount: Callable[[Path, int], None], link: Link) -> None:
    """Something else fills the disk in the middle of an episode, and is removed later."""
    mount(link.actor.run_dir, 24 * MB)
    link.actor.start("--min-free-gb", "0")
    link.actor.wait_for_steps(5)
    filler = link.actor.run_dir / "filler"
    fill(filler)
    wait_until(lambda: "HOLD" in link.actor.output, "the actor's hold")
    filler.unlink()
    held_at = len(link.actor.steps())
    wait_until(lambda: len(link.actor.steps()) > held_at, "the next episode")
    link.ingest.start()
    link.actor.finish()
    assert link.compare().faults == {}


def fill(path: Path) -> None:
    """Write until the disk takes no more."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(64 << 10))


@pytest.fixture
def ingest(tmp_path: Path) -> Iterator[Ingest]:
    ingest = Ingest(tmp_path / "run")
    yield ingest
    ingest.kill()


@pytest.fixture
def robot(tmp_path: Path, ingest: Ingest) -> Iterator[Callable[[], Actor]]:
    """Return a function that starts an actor, once ingest has an address."""
    actors: list[Actor] = []

    def start() -> Actor:
        actors.append(Actor(tmp_path / "actor", ingest.address))
        return actors[-1]

    yield start
    for actor in actors:
        actor.close()


def test_a_log_that_may_not_grow_takes_nothing_and_then_everything(ingest: Ingest, robot: Callable[[], Actor]) -> None:
    """RLIMIT_FSIZE is the full disk of who may not mount one."""
    actor = check_started(ingest, robot)
    assert ingest.process is not None
    resource.prlimit(ingest.process.pid, resource.RLIMIT_FSIZE, (LIMIT_BYTES, resource.RLIM_INFINITY))
    actor.offer(range(20, 320))
    wait_until(lambda: "takes no data" in actor.link.statistics.last_error, "word of a full disk")
    held = actor.spool.pending
    assert held > 0
    assert actor.link.refusal is None
    resource.prlimit(ingest.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    check_complete(ingest, actor, 320)
    assert "takes no data" in ingest.stop()


@needs_root
def test_a_log_on_a_full_disk_takes_nothing_and_then_everything(
    mount: Callable[[Path, int], None], ingest: Ingest, robot: Callable[[], Actor]
) -> None:
    mount(ingest.run_dir, 12 * MB)
    actor = check_started(ingest, robot)
    filler = ingest.run_dir / "filler"
    fill(filler)
    actor.offer(range(20, 320))
    wait_until(lambda: "takes no data" in actor.link.statistics.last_error, "word of a full disk")
    ingest.kill()
    filler.unlink()
    ingest.start()
    check_complete(ingest, actor, 320)


def test_below_the_floor_of_free_disk_the_learner_takes_nothing(ingest: Ingest, robot: Callable[[], Actor]) -> None:
    actor = check_started(ingest, robot)
    ingest.kill()
    ingest.start("--min-free-gb", "1e6")
    actor.offer(range(20, 60))
    wait_until(lambda: "min_free_gb" in actor.link.statistics.last_error, "word of the floor")
    assert actor.spool.pending == 40
    ingest.kill()
    ingest.start()
    check_complete(ingest, actor, 60)


def check_started(ingest: Ingest, robot: Callable[[], Actor]) -> Actor:
    """Start both, and see twenty steps arrive."""
    ingest.start()
    actor = robot()
    actor.offer(range(20))
    actor.drain()
    return actor


def check_complete(ingest: Ingest, actor: Actor, count: int) -> None:
    actor.drain()
    check_database(ingest.run_dir / "log.sqlite")
    entries = ingest.entries()
    assert [entry.record_id.sequence for entry in entries] == list(range(count))
    for entry in entries:
        assert_equal(entry.body, make_transition(entry.record_id.sequence))
