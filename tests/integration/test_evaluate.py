"""Evaluations of published policies: blind, unassisted, repeatable, and safe from a kill."""

import json
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pytest
from torch import nn

from actor.config import EvaluateConfig, RewardConfig
from actor.env import RobotEnv
from actor.evaluator import Evaluator
from actor.operator import OperatorSignal, ScriptedSignals
from actor.policy_runner import Proposal
from actor.published_policy import FixedPolicy, PublishedPolicy
from actor.tasks import make_task
from policy.config import PolicyConfig
from policy.diffusion_policy import DiffusionActor
from policy.encoder import ObservationHeads
from policy.errors import EXIT_INTERRUPTED, EXIT_MISMATCH, EXIT_OK, ConfigError, SpecMismatchError, WeightsError
from policy.gaussian_policy import GaussianActor
from policy.spec import Observation, Specs
from policy.weights import serialise
from policy.weights_store import WeightsStore
from tests.teleop_fakes import TypedTerminal

HANG_LIMIT_S = 120.0
POLICY = PolicyConfig(
    denoising_steps=2, denoiser_hidden=(8,), critic_hidden=(8,), num_critics=1, num_quantiles=5, behavior_candidates=2
)
GAUSSIAN = replace(POLICY, distribution="gaussian", gaussian_hidden=(8,))
EPISODES = 3

Row = dict[str, Any]


def published(run_dir: Path, *versions: int, task: str = "reach", config: PolicyConfig = POLICY) -> Path:
    """Write what a learner leaves of a policy with random weights, in the folder of a simulated run; return that."""
    specs = specs_of(task)
    head = (DiffusionActor if config.distribution == "diffusion" else GaussianActor)(specs, config)
    modules = nn.ModuleDict({**head.modules, "heads": ObservationHeads(specs, config)})
    learner = run_dir / "learner"
    learner.mkdir(parents=True)
    (learner / "specs.json").write_text(specs.to_json())
    (learner / "policy.json").write_text(config.to_json())
    for version in versions:
        WeightsStore(learner / "weights").publish(serialise(modules.state_dict()), version, 50 * version)
    return run_dir


def specs_of(task: str) -> Specs:
    made = make_task(task)
    return Specs(made.observation_spec, made.action_spec)


def config(out: Path, checkpoint: Path, **values: Any) -> EvaluateConfig:
    small: dict[str, Any] = {"task": "reach", "backend": "fake", "eval_pace": 0.0, "episodes": EPISODES, "film": False}
    return EvaluateConfig(run_dir=out, checkpoint=checkpoint, **(small | values))


def evaluate(
    chosen: EvaluateConfig, should_stop: Callable[[], bool] = lambda: False, operator: ScriptedSignals | None = None
) -> tuple[int, list[str]]:
    """Return the exit code and what was said."""
    said: list[str] = []
    evaluator = Evaluator(chosen, should_stop, said.append)
    if operator is not None:
        evaluator._cell.operator = operator
    return evaluator.run(), said


def rows(out: Path) -> list[Row]:
    return [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]


def report_of(out: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


@pytest.fixture
def odd_versions_solve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Policies of odd versions go to the target, others stay where they are."""

    def propose(self: FixedPolicy, observation: Observation) -> Proposal:
        is_good = self.weights_version % 2
        action = np.clip(observation["EE_to_target"] / 0.1, -0.3, 0.3) * is_good
        return Proposal(action.astype(np.float32), self.weights_version, 0.0)

    monkeypatch.setattr(FixedPolicy, "propose", propose)


def test_two_policies_are_told_apart_by_what_they_do_alone(odd_versions_solve: None, tmp_path: Path) -> None:
    good, bad = published(tmp_path / "good", 7), published(tmp_path / "bad", 4)
    out = tmp_path / "out"
    code, said = evaluate(config(out, bad, against=good, episodes=8, export=tmp_path / "report.zip"))
    assert code == EXIT_OK

    order = json.loads((out / "key.json").read_text())["order"]
    assert [sorted(order[index : index + 2]) for index in range(0, 16, 2)] == [["A", "B"]] * 8  # a pair per start
    report = report_of(out)
    assert [row["policy"] for row in report["trials"]] == order
    assert [row["is_success"] for row in report["trials"]] == [label == "B" for label in order]
    assert (report["policies"]["A"]["successes"], report["policies"]["B"]["successes"]) == (0, 8)
    assert (report["policies"]["A"]["version"], report["policies"]["B"]["learner_step"]) == (4, 350)
    comparison = report["comparison"]
    assert (comparison["only_b_succeeds"], comparison["pairs"]) == (8, 8)
    assert comparison["mcnemar_p"] == pytest.approx(2 / 256)
    assert comparison["fisher_p"] == pytest.approx(2 / 12870)
    assert comparison["cycle_time_s"]["pairs"] == 0
    assert "B is better" in said[-3]
    assert "B is better" in (out / "report.md").read_text()

    blind = said[:-3]  # before the report nothing tells which policy it was
    assert len(blind) == 16
    for number, line in enumerate(blind, start=1):
        assert re.fullmatch(rf"trial {number} of 16: (SUCCESS|FAILURE) \d\.\d s", line)
    assert not {"policy", "weights_version"} & set(rows(out)[0])

    with zipfile.ZipFile(tmp_path / "report.zip") as archive:
        names = {name.removeprefix("report/") for name in archive.namelist()}
    assert names >= {"report.md", "report.json", "trials.jsonl", "key.json", "evaluation.json"}
    assert {"success.png", "motion.png"} <= names


def test_both_policies_have_each_start_state(tmp_path: Path) -> None:
    first, second = published(tmp_path / "a", 1), published(tmp_path / "b", 2, config=GAUSSIAN)
    out = tmp_path / "out"
    evaluate(config(out, first, against=second))
    starts: dict[int, list[str]] = {}
    for row in rows(out):
        starts.setdefault(row["start"], []).append(json.dumps([row[name] for name in ("seed", "O_T_EE", "objects")]))
    assert [len(states) for states in starts.values()] == [2] * EPISODES
    assert all(one == other for one, other in starts.values())
    assert len({states[0] for states in starts.values()}) == EPISODES
    kinds = [figures["architecture"]["distribution"] for figures in report_of(out)["policies"].values()]
    assert kinds == ["diffusion", "gaussian"]


def test_the_motion_of_a_trial_is_measured(odd_versions_solve: None, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(config(out, published(tmp_path / "good", 1), against=published(tmp_path / "bad", 2)))
    for row in report_of(out)["trials"]:
        assert row["cycle_time_s"] == pytest.approx(row["length"] * 0.1)
        if row["policy"] == "A":
            assert row["ee_jerk_m_s3"] > 0.1
            assert row["action_jerk_s3"] > 0.1
        else:
            assert (row["ee_jerk_m_s3"], row["action_jerk_s3"]) == (0.0, 0.0)


def comparable(out: Path) -> list[str]:
    """Return the trials in an order that does not depend on the one that was drawn."""
    order = json.loads((out / "key.json").read_text())["order"]
    return sorted(
        f"{row['start']} {order[row['trial'] - 1]} "
        + json.dumps({name: value for name, value in row.items() if name not in ("trial", "video")})
        for row in rows(out)
    )


def test_a_killed_evaluation_goes_on_where_it_was(tmp_path: Path) -> None:
    first, second = published(tmp_path / "a", 1), published(tmp_path / "b", 2, config=GAUSSIAN)
    out, other = tmp_path / "out", tmp_path / "other"
    command = [sys.executable, "-m", "actor.evaluate", "--task", "reach", "--backend", "fake", "--no-film"]
    command += ["--checkpoint", str(first), "--against", str(second), "--episodes", str(EPISODES)]
    process = subprocess.Popen([*command, "--eval-pace", "20", "--out", str(out)])
    deadline_s = time.monotonic() + HANG_LIMIT_S
    while not (out / "trials.jsonl").exists() or len(rows(out)) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline_s, "hangs"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = rows(out)
    assert len(before) < 2 * EPISODES
    assert not (out / "report.json").exists()
    with (out / "trials.jsonl").open("a") as file:  # what a power loss may leave
        file.write('{"trial": 3, "sta')
    published_later = WeightsStore(first / "learner" / "weights")
    published_later.publish(b"\x02\x00\x00\x00\x00\x00\x00\x00{}", 99, 1)  # the learner went on: of no concern

    code, said = evaluate(config(out, first, against=second, eval_pace=20.0))
    assert code == EXIT_OK
    assert said[0] == f"{len(before)} of {2 * EPISODES} trials were done earlier"
    assert rows(out)[: len(before)] == before
    assert [row["trial"] for row in rows(out)] == list(range(1, 2 * EPISODES + 1))
    kept = out / "policies" / "A"
    evaluate(config(other, kept, against=second))
    assert comparable(out) == comparable(other)


def test_a_stop_request_leaves_the_finished_trials_and_no_report(tmp_path: Path) -> None:
    asked = 0

    def stop_in_the_second_trial() -> bool:
        nonlocal asked
        asked += 1
        return asked > 70

    out, checkpoint = tmp_path / "out", published(tmp_path / "a", 1)
    code, said = evaluate(config(out, checkpoint), stop_in_the_second_trial)
    assert code == EXIT_INTERRUPTED
    assert said[-1].startswith("stopped after 1 of 3 trials")
    assert not (out / "report.json").exists()
    assert evaluate(config(out, checkpoint))[0] == EXIT_OK
    assert len(rows(out)) == EPISODES


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 3}, "seed = 0, not 3"),
        ({"episodes": 4}, "episodes = 3, not 4"),
        ({"eval_candidates": 1}, "eval_candidates = 0, not 1"),
        ({"reward": RewardConfig(source="task", hold_steps=2)}, "reward.hold_steps = 0, not 2"),
        ({"checkpoint": Path("other")}, "policies.A"),
    ],
)
def test_other_settings_are_not_counted_together(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    chosen = config(tmp_path / "out", published(tmp_path / "a", 1))
    evaluate(chosen)
    with pytest.raises(ConfigError, match=re.escape(named)):
        evaluate(replace(chosen, **change))


def test_two_evaluations_do_not_share_a_folder(tmp_path: Path) -> None:
    chosen = config(tmp_path / "out", published(tmp_path / "a", 1))
    running = Evaluator(chosen, lambda: True, lambda line: None)
    with pytest.raises(ConfigError, match="another evaluation runs in"):
        evaluate(chosen)
    running.run()
    assert evaluate(chosen)[0] == EXIT_OK


def test_a_policy_of_another_task_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(SpecMismatchError, match=r"observation fields: task .*EE_to_target.*hole_to_peg") as refused:
        evaluate(config(out, published(tmp_path / "a", 1), against=published(tmp_path / "b", 1, task="peg_in_hole")))
    assert refused.value.exit_code == EXIT_MISMATCH
    assert "--against" in str(refused.value)
    assert not out.exists()


def test_the_specs_bounds_count_too(tmp_path: Path) -> None:
    run = published(tmp_path / "a", 1)
    path = run / "learner" / "specs.json"
    specs = json.loads(path.read_text())
    specs["action"]["fields"][0]["high"][1] = 0.5
    path.write_text(json.dumps(specs))
    with pytest.raises(SpecMismatchError, match=r"action\.delta_position\.high: task .*0\.02.*0\.5"):
        evaluate(config(tmp_path / "out", run))


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    run = published(tmp_path / "a", 1)
    (run / "learner" / "policy.json").write_text(replace(POLICY, denoiser_hidden=(9,)).to_json())
    with pytest.raises(WeightsError, match=r"denoiser\."):
        evaluate(config(tmp_path / "out", run))
    assert not (tmp_path / "out").exists()


def test_what_is_no_policy_is_named(tmp_path: Path) -> None:
    checkpoint = tmp_path / "step_0000000100"
    checkpoint.mkdir()
    with pytest.raises(ConfigError, match=r"is no published policy\. Give the run folder"):
        evaluate(config(tmp_path / "out", checkpoint))
    (checkpoint / "state.safetensors").touch()
    with pytest.raises(ConfigError, match="the trainer's own checkpoint"):
        evaluate(config(tmp_path / "out", checkpoint))
    with pytest.raises(ConfigError, match=r"--eval-candidates 4: .* without a critic"):
        evaluate(config(tmp_path / "out", published(tmp_path / "a", 1, config=GAUSSIAN), eval_candidates=4))
    assert not (tmp_path / "out").exists()


def test_an_older_version_is_named_by_its_file(tmp_path: Path) -> None:
    run = published(tmp_path / "a", 3, 4)
    weights = run / "learner" / "weights"
    assert PublishedPolicy.read(run).weights.version == 4
    assert PublishedPolicy.read(weights / "00000003.safetensors").weights.version == 3
    damaged = weights / "00000004.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x00")
    with pytest.raises(WeightsError, match="corrupt"):
        PublishedPolicy.read(damaged)


def test_help_makes_it_no_success_and_is_listed(odd_versions_solve: None, tmp_path: Path) -> None:
    """The person takes over in the second trial for three steps; the arm then goes on to the target."""
    out = tmp_path / "out"
    chosen = config(out, published(tmp_path / "a", 1))
    evaluate(chosen)
    polls = rows(out)[0]["length"] + 2  # one before each episode, one per step, one after it
    take_over = ScriptedSignals({polls + 3: [OperatorSignal.INTERVENE], polls + 6: [OperatorSignal.INTERVENE]})
    helped = tmp_path / "helped"
    _, said = evaluate(replace(chosen, run_dir=helped), operator=take_over)
    assert [row["is_success"] for row in rows(helped)] == [True, False, True]
    assert [row["verdict"] for row in rows(helped)] == [True, True, True]
    listed = report_of(helped)["interventions"]
    assert [(row["trial"], row["policy"], row["interventions"]) for row in listed] == [(2, "A", 1)]
    assert listed[0]["intervention_steps"] == 3
    assert "1 interventions" in said[1]
    assert "trial 2 (A): 1 interventions, 3 steps" in (helped / "report.md").read_text()
    assert report_of(helped)["policies"]["A"]["successes"] == 2


def test_a_discarded_trial_is_listed_and_run_again(odd_versions_solve: None, tmp_path: Path) -> None:
    out = tmp_path / "out"
    discard = ScriptedSignals({1: [OperatorSignal.DISCARD]})
    code, _ = evaluate(config(out, published(tmp_path / "a", 1)), operator=discard)
    assert code == EXIT_OK
    assert [(row["trial"], bool(row["void"])) for row in rows(out)] == [(1, True), (1, False), (2, False), (3, False)]
    report = report_of(out)
    assert report["policies"]["A"]["episodes"] == EPISODES
    assert [row["reason"] for row in report["void"]] == ["the operator discarded it"]


def test_recorded_starts_are_replayed_and_checked(tmp_path: Path) -> None:
    checkpoint = published(tmp_path / "a", 1)
    evaluate(config(tmp_path / "first", checkpoint, seed=5))
    recorded = tmp_path / "first" / "trials.jsonl"
    evaluate(config(tmp_path / "second", checkpoint, starts=recorded, episodes=2))
    first, second = (
        [(row["seed"], row["O_T_EE"], row["objects"]) for row in rows(tmp_path / name)] for name in ("first", "second")
    )
    assert second == first[:2]

    with pytest.raises(ConfigError, match="holds 3 start states, --episodes 4"):
        evaluate(config(tmp_path / "third", checkpoint, starts=recorded, episodes=4))
    changed = rows(tmp_path / "first")
    changed[1]["O_T_EE"][0][3] += 0.008
    recorded.write_text("".join(json.dumps(row) + "\n" for row in changed))
    with pytest.raises(ConfigError, match=r"not the recorded one: EE is 8\.0 mm"):
        evaluate(config(tmp_path / "fourth", checkpoint, starts=recorded))
    assert len(rows(tmp_path / "fourth")) == 1


class PersonAtKeys:
    """Presses enter when asked whether the objects are back, and then the next of `answers`; a dot: no key."""

    def __init__(self, terminal: TypedTerminal, answers: str) -> None:
        self._terminal = terminal
        self._answers = iter(answers)
        self.questions: list[str] = []
        self._is_asked = False
        self._asked_since = 0  # how often the evaluation asked whether to stop since enter

    def say(self, line: str) -> None:
        if line.endswith("enter begins"):
            self.questions.append(line)
            self._is_asked = True

    def should_stop(self) -> bool:
        """Asked while waiting and after each step."""
        self._asked_since += 1
        if self._is_asked:
            self._terminal.press("enter")
            self._is_asked, self._asked_since = False, 0
        elif self._asked_since == 3:  # once more before the trial, then after each step
            answer = next(self._answers)
            if answer != ".":
                self._terminal.press(answer)
        return False


@runtime_checkable
class Unsimulated(Protocol):
    """What no backend is."""

    def simulate_everything(self) -> None: ...


def test_on_a_robot_a_person_begins_and_judges_each_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = TypedTerminal()
    monkeypatch.setattr("actor.workcell.SimulatedBackend", Unsimulated)
    monkeypatch.setattr("actor.workcell._check_simulation", lambda *_, **__: None)  # else: real time
    for module in ("actor.operator", "actor.evaluator"):
        monkeypatch.setattr(f"{module}.standard_terminal", lambda: terminal)
    person = PersonAtKeys(terminal, "s.s")
    out = tmp_path / "out"
    human = RewardConfig(source="human")
    chosen = config(out, published(tmp_path / "a", 1), reward=human)
    assert Evaluator(chosen, person.should_stop, person.say).run() == EXIT_OK
    assert person.questions == [f"trial {number} of 3: enter begins" for number in (1, 2, 3)]
    assert [row["is_success"] for row in rows(out)] == [True, False, True]
    assert [row["judged_by"] for row in rows(out)] == ["human"] * 3
    assert rows(out)[1]["length"] == 50
    assert terminal.openings == 0

    monkeypatch.setattr("actor.evaluator.standard_terminal", lambda: TypedTerminal(is_usable=False))
    with pytest.raises(ConfigError, match="or with --auto"):
        evaluate(config(tmp_path / "other", published(tmp_path / "b", 1), reward=human))
    assert evaluate(config(tmp_path / "auto", published(tmp_path / "c", 1), reward=human, auto=True))[0] == EXIT_OK


def test_each_trial_is_filmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imageio = pytest.importorskip("imageio.v2")
    monkeypatch.setattr(RobotEnv, "render", lambda self: np.full((64, 64, 3), 90, np.uint8))
    out = tmp_path / "out"
    evaluate(config(out, published(tmp_path / "a", 1), episodes=2, film=True, export=tmp_path / "all.zip"))
    for row in rows(out):
        assert row["video"] == f"videos/trial_{row['trial']:03d}.mp4"
        with imageio.get_reader(out / row["video"]) as reader:
            assert reader.count_frames() == row["length"] + 1
    with zipfile.ZipFile(tmp_path / "all.zip") as archive:
        assert "all/videos/trial_002.mp4" in archive.namelist()
