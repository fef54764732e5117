"""The intervention stages against a table of histories, and across restarts."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from actor.config import ActorConfig
from actor.protocol_stages import FixedSchedule, Stage, StageMachine, StagesConfig
from actor.report import EpisodeReport, read_json_lines
from actor.stage_log import LoggedSchedule
from policy.errors import ConfigError
from tests.unit.test_actor_report import REPORT

CONFIG = StagesConfig(
    enabled=True,
    guidance_episodes=2,
    deviation_window=4,
    recurring_deviations=2,
    recovered_successes=2,
    persistent_failures=3,
    full_demonstrations=2,
)
DEMONSTRATIONS = 2


@dataclass(frozen=True)
class Result:
    kind: str
    is_success: bool
    intervention_steps: int = 0
    is_counted: bool = True


RESULTS = {
    "D": Result("demonstration", is_success=True),
    "d": Result("demonstration", is_success=False),
    "S": Result("training", is_success=True),
    "H": Result("training", is_success=True, intervention_steps=3),
    "F": Result("training", is_success=False),
    "x": Result("training", is_success=True, is_counted=False),
}


@pytest.mark.parametrize(
    ("history", "stages"),  # the stage after each episode: Guidance, Exploration, Correction, Demonstration
    [
        ("DDSS", "GGGE"),
        ("DDFH", "GGGE"),  # guidance asks for episodes, not for success
        ("DDSS SFSSSF", "GGGE EEEEEE"),  # one deviation in any four episodes does not recur
        ("DDSS FSF", "GGGE EEC"),
        ("DDSS FH", "GGGE EC"),  # solved with help is not solved
        ("DDSS FF SS", "GGGE EC CE"),
        ("DDSS FF SHSS", "GGGE EC CCCE"),  # two in a row
        ("DDSS FF FHF", "GGGE EC CCD"),
        ("DDSS FF FFSFFF", "GGGE EC CCCCCD"),  # three in a row
        ("DDSS FF FFF DD", "GGGE EC CCD DE"),
        ("DDSS FF FFF dDD", "GGGE EC CCD DDE"),  # a failed demonstration shows nothing
        ("DDSS FF FFF DD FSSSF", "GGGE EC CCD DE EEEEE"),  # what was before the stage is forgotten
        ("DDSS FF SS F", "GGGE EC CE E"),
        ("xDxDxSxSxFxF", "GGGGGGGEEEEC"),  # what was cut short or discarded counts for nothing
    ],
)
def test_histories(history: str, stages: str) -> None:
    machine = StageMachine(CONFIG, DEMONSTRATIONS)
    after = []
    for letter in history.replace(" ", ""):
        before = machine.stage
        change = machine.observe(RESULTS[letter])
        assert (change is not None) == (machine.stage is not before)
        if change is not None:
            assert (change.before, change.after, change.reason) == (before, machine.stage, machine.plan().reason)
        after.append(machine.stage.name[0])
    assert "".join(after) == stages.replace(" ", "")


@pytest.mark.parametrize(
    ("history", "plan"),  # demonstration?, assistance, stage, one of the initial ones?
    [
        ("", (True, "none", Stage.GUIDANCE, True)),
        ("DD", (False, "random", Stage.GUIDANCE, False)),
        ("DDSS", (False, "none", Stage.EXPLORATION, False)),
        ("DDSSFF", (False, "on_deviation", Stage.CORRECTION, False)),
        ("DDSSFFFFF", (True, "none", Stage.DEMONSTRATION, False)),
    ],
)
def test_each_stage_plans_its_own_help(history: str, plan: tuple[bool, str, Stage, bool]) -> None:
    machine = StageMachine(CONFIG, DEMONSTRATIONS)
    for letter in history:
        machine.observe(RESULTS[letter])
    found = machine.plan()
    assert (found.is_demonstration, found.assistance, found.stage, found.is_initial) == plan


def test_reasons_name_the_numbers() -> None:
    machine = StageMachine(CONFIG, DEMONSTRATIONS)
    changes = [change for letter in "DDSSSFFFHFDD" if (change := machine.observe(RESULTS[letter]))]
    assert [change.reason.partition(":")[0] for change in changes] == [
        "2 demonstrations and 2 guided episodes are done",
        "2 of the last 3 episodes failed or needed help (limit 2)",
        "3 episodes in a row not solved without help",
        "2 full demonstrations recorded",
    ]
    assert changes[1].numbers == {"deviations": 2, "episodes": 3, "recurring_deviations": 2}


def test_nothing_to_guide_begins_with_exploration() -> None:
    machine = StageMachine(replace(CONFIG, guidance_episodes=0), demonstrations=0)
    assert machine.plan().stage is Stage.EXPLORATION


def test_without_stages_demonstrations_come_first_and_help_then_fades() -> None:
    schedule = FixedSchedule(demonstrations=2)
    planned = []
    for letter in "DxDFFF":
        planned.append((schedule.plan().is_demonstration, schedule.plan().assistance))
        assert schedule.observe(RESULTS[letter]) is None
    assert planned == [(True, "none")] * 3 + [(False, "random")] * 3


def reports(history: str) -> list[EpisodeReport]:
    """Return episodes of 10 steps each."""
    return [
        replace(
            REPORT,
            episode=number,
            kind=RESULTS[letter].kind,  # type: ignore[arg-type]
            is_success=RESULTS[letter].is_success,
            intervention_steps=RESULTS[letter].intervention_steps,
            is_discarded=not RESULTS[letter].is_counted,
            length=10,
        )
        for number, letter in enumerate(history)
    ]


def test_a_restart_finds_the_stage_and_writes_what_a_crash_left_unwritten_once(tmp_path: Path) -> None:
    config = ActorConfig(run_dir=tmp_path, demonstrations=DEMONSTRATIONS, stages=CONFIG)
    episodes = reports("DDSxSFF")
    first = LoggedSchedule(config, [], lambda line: None)
    for episode in episodes[:-1]:
        first.observe(episode)
    said: list[str] = []
    for _ in range(2):  # the last episode's line was written, its change of stage was not
        again = LoggedSchedule(config, episodes, said.append)
        assert again.plan().stage is Stage.CORRECTION
    lines = read_json_lines(tmp_path / "stages.jsonl")
    assert [(row["episode"], row["env_steps"], row["from"], row["to"]) for row in lines] == [
        (4, 50, "guidance", "exploration"),
        (6, 70, "exploration", "correction"),
    ]


def test_thresholds_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="recurring_deviations = 6 cannot be reached in a deviation_window of 5"):
        StagesConfig(recurring_deviations=6)
    with pytest.raises(ConfigError, match="full_demonstrations = 0 at least 1"):
        StagesConfig(full_demonstrations=0)
