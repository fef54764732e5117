"""What an actor's run folder must fit before anything is recorded into it."""

import contextlib
from pathlib import Path

import pytest

from actor.config import ActorConfig
from actor.uplink import open_uplink
from policy.errors import ConfigError
from policy.spec import ActionSpec, Specs
from tests.transitions import SPECS, make_transition

OTHER = Specs(SPECS.observation, ActionSpec((*SPECS.action.fields, *SPECS.observation.fields[1:])))


def open_once(run_dir: Path, incarnation: str, specs: Specs, *, offers: int = 0) -> None:
    """Work in the folder as an actor without a learner that is then killed, or ends."""
    config = ActorConfig(actor_id="robot", learner="127.0.0.1:1", run_dir=run_dir, drain_timeout_s=0.0)
    with contextlib.ExitStack() as closing:
        spool, _ = open_uplink(config, specs, incarnation, 0, closing, must_stop=lambda: True, say=lambda line: None)
        for step in range(offers):
            spool.offer(make_transition(step))


def test_steps_of_another_task_are_not_sent_and_archived_as_of_this_one(tmp_path: Path) -> None:
    open_once(tmp_path, "a", SPECS, offers=3)
    with pytest.raises(ConfigError, match=r"holds \d steps of another task"):
        open_once(tmp_path, "b", OTHER)
    open_once(tmp_path, "c", SPECS)


def test_a_folder_whose_steps_are_all_sent_may_change_its_task(tmp_path: Path) -> None:
    open_once(tmp_path, "a", SPECS)
    open_once(tmp_path, "b", OTHER)
