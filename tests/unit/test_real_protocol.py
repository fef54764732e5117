"""The robot protocol's benchmark: every run it would start is valid, and both algorithms get the same protocol."""

import json
from itertools import product
from pathlib import Path

import pytest

from benchmarks.real_protocol_twin import Budget, Case, Options, _set_aside_unfinished
from launch import sim

ALGORITHMS = ("cgpo", "hil_serl_sac", "bc")


def options(tmp_path: Path, preset: str) -> Options:
    budgets = {"state": Budget(1500, 500, 250, 10, 50, 60), "pixels": Budget(300, 300, 100, 5, 20, 9)}
    return Options(preset=preset, budgets=budgets, encoder_weights="random", overrides=(), out=tmp_path)


def resolved(command: list[str]) -> sim.Run:
    values = dict(zip(command[1:11:2], command[2:11:2], strict=True))
    settings = tuple(command[command.index("--set") + 1 :])
    return sim.resolve(
        sim.Options(
            task=values["--task"],
            preset=values["--preset"],
            seed=int(values["--seed"]),
            max_minutes=float(values["--max-minutes"]),
            out=values["--out"],
            overrides=(settings,),
        )
    )


@pytest.mark.parametrize("preset", ["paper_robot", "sim_quick"])
def test_all_runs_are_valid_and_share_protocol_and_budget(preset: str, tmp_path: Path) -> None:
    chosen = options(tmp_path, preset)
    for task, variant in product(("peg_in_hole", "cube_stacking"), ("state", "pixels")):
        cases = [Case(task, variant, algorithm, 1) for algorithm in ALGORITHMS]
        runs = [resolved(case.command(chosen)) for case in cases]
        assert [run.learner.algorithm for run in runs] == list(ALGORITHMS)
        protocols = [
            (
                {**vars(run.actor), "policy": None, "learner": None, "run_dir": None},
                (run.learner.replay.capacity, run.learner.replay.batch_size, run.learner.replay.demonstration_fraction),
                (run.learner.steps_per_update, run.learner.max_learner_steps, run.learner.learner_steps_per_transition),
                run.actor.policy.critic_hidden,
            )
            for run in runs
        ]
        assert protocols[0] == protocols[1] == protocols[2]
        cgpo, sac = runs[0].learner.cgpo, runs[1].learner.hil_serl_sac
        assert (cgpo.discount, cgpo.cta_ratio) == (sac.discount, sac.cta_ratio) == (0.98, 2)
        actor = runs[0].actor
        assert (actor.pixels, actor.stages.enabled, actor.seed) == (variant == "pixels", True, 1)
        assert (runs[0].learner.replay.capacity, actor.max_env_steps) == (20_000, chosen.budgets[variant].env_steps)
        ratio = chosen.budgets[variant].learner_steps / actor.max_env_steps
        assert runs[0].learner.learner_steps_per_transition == pytest.approx(1.05 * ratio)


def test_an_unfinished_run_makes_room_for_another_and_a_finished_one_stays(tmp_path: Path) -> None:
    ends = {"finished": (False, ""), "stopped": (True, ""), "failed": (False, "the learner died"), "killed": None}
    for _ in range(2):
        for name, end in ends.items():
            (tmp_path / name).mkdir(exist_ok=True)
            if end is not None:
                (tmp_path / name / "summary.json").write_text(json.dumps({"interrupted": end[0], "failure": end[1]}))
        _set_aside_unfinished([*(tmp_path / name for name in ends), tmp_path / "new"])
    unfinished = [f"{name}.unfinished{count}" for name in ("failed", "killed", "stopped") for count in range(2)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["finished", *unfinished])
