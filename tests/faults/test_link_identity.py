"""Who is who, and what time it is: two processes with one name, a copied spool, clocks that are wrong."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from actor.config import ActorConfig
from benchmarks.fault_matrix.ends import ActorEnd, Link, wait_until
from benchmarks.fault_matrix.oracle import compare, read_log
from policy.cli import config_from_preset
from policy.config import load_preset
from policy.diffusion_policy import make_denoiser
from policy.spec import Specs
from policy.transition import Transition
from policy.weights import serialise
from policy.weights_store import WeightsStore

HOUR_S = 3600.0


@pytest.fixture
def link(tmp_path: Path) -> Iterator[Link]:
    link = Link(tmp_path)
    yield link
    link.close()


def test_clocks_that_are_an_hour_wrong_change_neither_order_nor_the_age_of_weights(link: Link) -> None:
    """The second process is two hours earlier than the one before it, by its own clock."""
    link.ingest.start()
    options = ("--max-weights-age-s", "60", "--pace", "4")
    link.actor.start(*options, clock_offset_s=HOUR_S)
    link.actor.wait_for_steps(1)
    wait_until((link.ingest.run_dir / "specs.json").exists, "the first Hello")
    publish(link, version=1)
    wait_until(lambda: steps_of_version(link, 1), "an episode with the first weights")
    assert link.actor.stop() == 0
    link.actor.start(*options, "--seed", "1", clock_offset_s=-HOUR_S)
    link.actor.wait_for_steps(1)
    publish(link, version=2)
    wait_until(lambda: steps_of_version(link, 2), "an episode with the second weights")
    assert link.actor.stop() == 0
    link.actor.finish()
    assert link.compare().faults == {}
    assert "no episode begins" not in link.actor.output
    before, after = steps_of_version(link, 1)[0], steps_of_version(link, 2)[-1]
    assert all(0.0 < step.weights_age_s < 60.0 for step in (before, after))
    assert after.wall_time_s < before.wall_time_s - HOUR_S, "recorded as the actor's clock has it"


def steps_of_version(link: Link, version: int) -> list[Transition]:
    bodies = [entry.body for entry in read_log(link.ingest.run_dir)]
    return [body for body in bodies if isinstance(body, Transition) and body.weights_version == version]


def publish(link: Link, version: int) -> None:
    specs = Specs.from_json((link.ingest.run_dir / "specs.json").read_text())
    denoiser = make_denoiser(specs, config_from_preset(ActorConfig, "actor", load_preset(str(link.preset))).policy)
    data = serialise({f"denoiser.{name}": tensor for name, tensor in denoiser.state_dict().items()})
    WeightsStore(link.ingest.run_dir / "weights").publish(data, version, learner_step=50 * version)


def test_a_second_actor_of_a_name_waits_for_the_first_to_be_gone(link: Link, tmp_path: Path) -> None:
    """It has a spool of its own, so nothing but the lease says that the first is gone."""
    link.ingest.start()
    link.actor.start()
    link.actor.wait_for_steps(5)
    second = ActorEnd(tmp_path / "second", link.preset, link.proxy.address)
    try:
        second.start("--seed", "1")
        second.wait_for_steps(5)
        assert link.actor.process is not None
        told = f"in use by process {link.actor.process.pid} "
        wait_until(lambda: told in second.output, "word of the first process")
        first_incarnation = link.actor.steps()[-1].incarnation
        assert {entry.record_id.incarnation for entry in read_log(link.ingest.run_dir)} == {first_incarnation}
        link.actor.kill_in_action()
        incarnation = second.steps()[-1].incarnation
        wait_until(lambda: link.ingest.has_steps_of(incarnation), "the second's turn")
        second.finish()
        link.actor.finish()  # the first's spool still had something
        result = compare([*link.actor.steps(), *second.steps()], read_log(link.ingest.run_dir), link.actor.killed)
        assert result.faults == {}
    finally:
        second.kill()


def test_a_copied_spool_brings_nothing_twice(link: Link, tmp_path: Path) -> None:
    link.actor.start("--drain-timeout-s", "0")
    link.actor.wait_for_steps(30)
    assert link.actor.stop() == 0
    assert link.actor.num_spooled() >= 30
    copy = ActorEnd(tmp_path / "copy", link.preset, link.proxy.address)
    shutil.copytree(link.actor.run_dir, copy.run_dir)
    link.ingest.start()
    link.actor.finish()
    logged = link.ingest.num_logged
    copy.finish()
    assert copy.num_spooled() == 0
    assert link.ingest.num_logged == logged
    assert link.compare().faults == {}
