"""The recorder: nothing committed is lost, the count survives a kill, and what was discarded is not learned from."""

import itertools
import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actor.config import RecorderConfig
from actor.intervention_config import InterventionConfig
from actor.recorder import Recorder
from actor.recording_state import RecordingState
from actor.tasks import make_task
from learner.config import ReplayConfig
from learner.replay import Replay
from policy.cli import config_from_preset
from policy.config import load_preset
from policy.episode_log import EpisodeLog
from policy.errors import EXIT_CONFIG, EXIT_OK, ConfigError
from policy.spec import Specs
from policy.transition import EpisodeMark, MarkKind, Recordable, RecordId, Transition
from policy.wire import decode_body
from tests.teleop_fakes import TypedTerminal

HANG_LIMIT_S = 60.0
POLICY = replace(
    config_from_preset(RecorderConfig, "actor", load_preset("paper_robot")).policy,
    denoising_steps=2,
    denoiser_hidden=(8,),
    behavior_candidates=1,
)
TASK = make_task("reach")
SPECS = Specs(TASK.observation_spec, TASK.action_spec)
NOBODY = "127.0.0.1:1"

Records = list[tuple[RecordId, Recordable]]


def command(run_dir: Path, learner: str, *options: str) -> list[str]:
    small = ["--policy.denoising-steps", "2", "--policy.denoiser-hidden", "8", "--policy.behavior-candidates", "1"]
    where = [
        "--no-pixels",
        "--backend",
        "fake",
        "--task",
        "reach",
        "--run-dir",
        str(run_dir),
        "--learner",
        learner,
        "--auto",
    ]
    return [sys.executable, "-m", "actor.record", *where, *small, *options]


def wait_until(condition: Callable[[], Any]) -> None:
    deadline_s = time.monotonic() + HANG_LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "hangs"
        time.sleep(0.01)


def kept_steps(run_dir: Path) -> list[int]:
    """Return the length of each kept demonstration."""
    return [report["length"] for report in reports(run_dir) if not report["is_discarded"]]


def reports(run_dir: Path) -> list[dict[str, Any]]:
    path = run_dir / "episodes.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def spooled(run_dir: Path) -> Records:
    """Return what waits in the spool, in order."""
    connection = sqlite3.connect(f"file:{run_dir / 'spool.sqlite'}?mode=ro", uri=True)
    try:
        rows = connection.execute("SELECT incarnation, sequence, body FROM records ORDER BY position").fetchall()
    finally:
        connection.close()
    return [(RecordId("actor-0", *name), decode_body(body, SPECS)) for *name, body in rows]


def learned_steps(records: Records) -> int:
    """Return how many transitions a replay holds of these records; all of them are demonstrations."""
    replay = Replay(ReplayConfig(capacity=10_000), SPECS.observation, SPECS.action.dim, seed=0)
    for record_id, body in records:
        replay.add(record_id, body)
    assert len(replay.online) == 0
    return len(replay.demonstrations)


class Ingest:
    """The learner's intake for the task that is recorded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        policy_path = folder.with_suffix(".json")
        policy_path.write_text(POLICY.to_json())
        options = ["--run-dir", str(folder), "--host", "127.0.0.1", "--port", "0", "--policy-json", str(policy_path)]
        self._process = subprocess.Popen([sys.executable, "-m", "learner.ingest", *options])
        wait_until((folder / "ingest.json").exists)
        self.address: str = json.loads((folder / "ingest.json").read_text())["address"]

    def records(self) -> Records:
        log = EpisodeLog(self.folder / "log.sqlite", SPECS, read_only=True)
        try:
            return [(entry.record_id, entry.body) for entry in log.read_after(0, 100_000)]
        finally:
            log.close()

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(HANG_LIMIT_S)


@pytest.fixture
def ingest(tmp_path: Path) -> Iterator[Ingest]:
    ingest = Ingest(tmp_path / "learner")
    yield ingest
    ingest.stop()


@pytest.mark.parametrize("learner_is_up", [False, True], ids=["without a learner", "with a learner"])
def test_killed_in_a_demonstration_it_loses_nothing_and_resumes_with_the_right_count(
    tmp_path: Path, ingest: Ingest, learner_is_up: bool
) -> None:
    """With a learner, the spool has next to nothing of the dead process when the recorder comes back."""
    run_dir = tmp_path / "actor"
    state = killed_amid_an_episode(run_dir, ingest.address if learner_is_up else NOBODY)
    kept_before = kept_steps(run_dir)
    committed = dict((ingest.records() if learner_is_up else []) + spooled(run_dir))
    cut_short = sum(
        isinstance(body, Transition) and (record_id.incarnation, body.episode) == (state.incarnation, state.episode)
        for record_id, body in committed.items()
    )
    assert cut_short > 0

    again = subprocess.run(
        command(run_dir, ingest.address, "--episodes", str(len(kept_before) + 2), "--pace", "0"),
        capture_output=True, text=True, timeout=HANG_LIMIT_S, check=False,
    )  # fmt: skip
    assert again.returncode == EXIT_OK, again.stderr
    said = f"the process before ended in an episode: its {cut_short} steps are stored, marked as discarded"
    assert said in again.stdout
    assert f"demonstrations: {len(kept_before)} of {len(kept_before) + 2} kept earlier" in again.stdout
    assert again.stdout.splitlines()[-1].endswith("the learner has all of it")
    kept = kept_steps(run_dir)
    assert (kept[: len(kept_before)], len(kept)) == (kept_before, len(kept_before) + 2)

    records = ingest.records()
    arrived = [record_id for record_id, _ in records]
    assert committed.keys() <= set(arrived)
    assert len(arrived) == len(set(arrived)) == sum(kept) + cut_short + 1
    for incarnation in {record_id.incarnation for record_id in arrived}:
        sequences = [record_id.sequence for record_id in arrived if record_id.incarnation == incarnation]
        assert sequences == list(range(len(sequences)))
    marks = [(record_id, body) for record_id, body in records if isinstance(body, EpisodeMark)]
    assert [(record_id.incarnation, body.episode, body.step, body.kind) for record_id, body in marks] == [
        (state.incarnation, state.episode, cut_short - 1, MarkKind.DISCARD)
    ]
    assert learned_steps(records) == sum(kept)


def killed_amid_an_episode(run_dir: Path, learner: str) -> RecordingState:
    """Run a recorder until it has kept two episodes or more, and kill it in a later one that has steps on disk."""
    for _ in range(5):  # a busy machine may be slow to kill, and then the episode is over
        process = subprocess.Popen(
            command(run_dir, learner, "--episodes", "1000", "--pace", "2"), stdout=subprocess.DEVNULL
        )
        kept = len(kept_steps(run_dir)) + 2
        wait_until(lambda kept=kept: len(kept_steps(run_dir)) >= kept)  # type: ignore[misc]
        wait_until(lambda kept=kept: RecordingState.load(run_dir).reports_before >= kept)  # type: ignore[misc]
        time.sleep(0.2)  # four of its steps
        process.send_signal(signal.SIGKILL)
        process.wait()
        state = RecordingState.load(run_dir)
        if state.reports_before == len(reports(run_dir)):
            return state
    raise AssertionError("never killed amid an episode")


class Person:
    """Presses keys when asked. Whatever the recorder waits for, it asks `should_stop` meanwhile."""

    def __init__(self, terminal: TypedTerminal, answers: str) -> None:
        self._terminal = terminal
        self.said: list[str] = []
        self._answers = iter(answers)
        self._answered = 0

    def say(self, line: str) -> None:
        self.said.append(line)

    def should_stop(self) -> bool:
        questions = [line for line in self.said if "enter begins" in line or "enter keeps" in line]
        if len(questions) > self._answered:
            self._answered += 1
            self._press("enter" if "enter begins" in questions[-1] else next(self._answers))
        return False

    def _press(self, key: str) -> None:
        self._terminal.press("enter" if key == "k" else key)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> TypedTerminal:
    """The standard input of this process, as the recorder sees it."""
    terminal = TypedTerminal()
    for module in ("actor.operator", "actor.recorder"):
        monkeypatch.setattr(f"{module}.standard_terminal", lambda: terminal)
    return terminal


def record(run_dir: Path, person: Person, episodes: int, **changes: Any) -> None:
    config = RecorderConfig(
        policy=POLICY, backend="fake", task="reach", run_dir=run_dir, learner=NOBODY, pace=0, drain_timeout_s=0,
        episodes=episodes, **changes,
    )  # fmt: skip
    Recorder(config, person.should_stop, person.say).run()


def by_episode(records: Records) -> list[list[Transition]]:
    steps = [body for _, body in records if isinstance(body, Transition)]
    return [list(group) for _, group in itertools.groupby(steps, key=lambda step: step.episode)]


def test_a_person_keeps_discards_and_redoes(tmp_path: Path, terminal: TypedTerminal) -> None:
    person = Person(terminal, "kdrkk")  # keep, discard, redo, then two more
    record(tmp_path, person, episodes=3)
    records = spooled(tmp_path)
    episodes = by_episode(records)
    assert len(episodes) == 5
    marks = [body for _, body in records if isinstance(body, EpisodeMark)]
    assert [(mark.episode, mark.kind) for mark in marks] == [(1, MarkKind.DISCARD), (2, MarkKind.DISCARD)]
    kept = [len(episodes[number]) for number in (0, 3, 4)]
    assert kept_steps(tmp_path) == kept
    assert learned_steps(records) == sum(kept)
    starts = [tuple(episode[0].observation["EE_to_target"].tolist()) for episode in episodes]
    assert starts[3] == starts[2]  # redone from the same start
    assert len(set(starts)) == 4
    assert person.said[-1].startswith(f"recorded: 3 of 3 demonstrations ({sum(kept)} steps) kept, 2 discarded now; ")
    assert terminal.openings == 0


def test_the_key_for_success_keeps_what_the_task_calls_a_failure(tmp_path: Path, terminal: TypedTerminal) -> None:
    """The scripted operator is so unsteady here that it does not get there."""
    person = Person(terminal, "s")
    record(tmp_path, person, episodes=1, intervention=InterventionConfig(demonstration_noise=50.0))
    records = spooled(tmp_path)
    (episode,) = by_episode(records)
    assert not episode[-1].terminated
    ((_, mark),) = [(record_id, body) for record_id, body in records if isinstance(body, EpisodeMark)]
    assert (mark.kind, mark.step) == (MarkKind.SUCCESS, len(episode) - 1)
    assert [report["is_success"] for report in reports(tmp_path)] == [True]


def test_without_a_person_failures_are_discarded(tmp_path: Path, terminal: TypedTerminal) -> None:
    calls = itertools.count()
    person = Person(terminal, "")
    config = RecorderConfig(
        policy=POLICY, backend="fake", task="reach", run_dir=tmp_path, learner=NOBODY, pace=0, drain_timeout_s=0,
        episodes=1, auto=True, intervention=InterventionConfig(demonstration_noise=50.0),
    )  # fmt: skip
    Recorder(config, lambda: next(calls) > 120, person.say).run()  # two and a half episodes of 50 steps
    records = spooled(tmp_path)
    discarded = [body.episode for _, body in records if isinstance(body, EpisodeMark) and body.kind is MarkKind.DISCARD]
    assert discarded == [0, 1, 2]  # the last one because it was stopped
    assert learned_steps(records) == 0
    assert kept_steps(tmp_path) == []


def test_a_second_recorder_counts_the_first_and_draws_other_starts(tmp_path: Path, terminal: TypedTerminal) -> None:
    for episodes in (1, 2):
        person = Person(terminal, "k")
        record(tmp_path, person, episodes=episodes)
    assert "demonstrations: 1 of 2 kept earlier" in person.said
    firsts = [body for _, body in spooled(tmp_path) if isinstance(body, Transition) and body.step == 0]
    assert len({tuple(step.observation["EE_to_target"].tolist()) for step in firsts}) == 2


def test_nobody_to_ask_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actor.recorder.standard_terminal", lambda: TypedTerminal(is_usable=False))
    config = RecorderConfig(policy=POLICY, backend="fake", task="reach", run_dir=tmp_path / "run")
    with pytest.raises(ConfigError, match="with --auto, which keeps successes"):
        Recorder(config, lambda: False, lambda line: None)
    assert not (tmp_path / "run").exists()


def test_help_names_its_own_options_and_a_bad_device_ends_with_one_message(tmp_path: Path) -> None:
    help_text = subprocess.run(
        [sys.executable, "-m", "actor.record", "--help"], capture_output=True, text=True, check=False
    )
    assert help_text.returncode == EXIT_OK
    for text in ("python -m actor.record", "--episodes", "--auto", "--teleop.device", "--intervention.style"):
        assert text in help_text.stdout
    bad = subprocess.run(
        command(tmp_path, NOBODY, "--teleop.device", "spacemuse"), capture_output=True, text=True, check=False
    )
    assert bad.returncode == EXIT_CONFIG
    assert "unknown input device 'spacemuse'" in bad.stderr
    assert "Traceback" not in bad.stderr
