"""How often the scripted operator solves each task on the twin: from the start, with noise, taking over from a policy.

`python -m benchmarks.scripted_operator --episodes 200` writes benchmarks/results/scripted_operator.md.
"""

import argparse
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from actor.env import RobotEnv, connect_backend
from actor.statistics import wilson_interval
from actor.tasks import make_task
from actor.tasks.base import TaskOptions
from robot.geometry import CUBE_EDGE_M

RESULTS = Path(__file__).parent / "results" / "scripted_operator.md"
# Task, options, and what the table calls them.
VARIANTS = (
    ("reach", TaskOptions(), ""),
    ("peg_in_hole", TaskOptions(), ""),
    ("peg_in_hole_rotation", TaskOptions(), ""),
    ("peg_in_hole_rotation", TaskOptions(frame="reset"), ", frame reset"),
    ("cube_stacking", TaskOptions(gripper="discrete"), ", discrete gripper"),
    ("cube_stacking", TaskOptions(gripper="continuous"), ", continuous gripper"),
    ("cube_stacking", TaskOptions(frame="reset"), ", frame reset"),
)


@dataclass(frozen=True)
class Spoiler:
    """What acts before the operator takes over."""

    motion: Literal["random", "drift"]  # drift: one direction, with noise 0.5
    begins: Literal["start", "lifted", "landed"] = "start"  # before that the operator acts: cube in the air, or stacked
    gripper: float | None = None  # its element of the action; None: like the others

    def begins_now(self, env: RobotEnv) -> bool:
        if self.begins == "start":
            return True
        x, y, z = env.objects["cube_top"][:3, 3] - env.objects["cube_bottom"][:3, 3]
        if self.begins == "lifted":
            return bool(z > 0.75 * CUBE_EDGE_M)
        return bool(math.hypot(x, y) < 0.25 * CUBE_EDGE_M and z < 1.1 * CUBE_EDGE_M)

    def steps(self, limit: int, rng: np.random.Generator) -> int:
        """Return for how long it acts: a fifth to two fifths of the limit from the start, ten steps from later on."""
        return int(rng.integers(limit // 5, 2 * limit // 5 + 1)) if self.begins == "start" else 10


@dataclass(frozen=True)
class Case:
    """What disturbs the operator. Noise is a standard deviation in normalised action units."""

    what: str
    noise: float = 0.0  # on each of its own actions
    spoiler: Spoiler | None = None


CASES = (
    Case("from the start"),
    Case("noise 0.2 on its actions", noise=0.2),
    Case("takes over after random actions", spoiler=Spoiler("random")),
    Case("takes over after a drift", spoiler=Spoiler("drift")),
    Case("takes over after a drift, noise 0.2", noise=0.2, spoiler=Spoiler("drift")),
)
CUBE_CASES = (
    Case("takes over with the cube in the drifting hand", spoiler=Spoiler("drift", "lifted", gripper=-1.0)),
    Case("takes over after the cube was dropped on the way", spoiler=Spoiler("random", "lifted", gripper=1.0)),
    Case("takes over after the cube was dragged off the other one", spoiler=Spoiler("drift", "landed", gripper=-1.0)),
)


def run_episode(env: RobotEnv, case: Case, seed: int) -> tuple[bool, int] | None:
    """Return success and length, None if luck solved the task before the operator took over.

    The step limit counts from the episode's start.
    """
    rng = np.random.default_rng(seed)
    env.reset(seed=seed)
    operator = env.task.make_operator()
    limit, size = env.task.max_episode_steps, env.task.action_spec.dim
    spoiler = case.spoiler
    has_begun, steps_left = False, spoiler.steps(limit, rng) if spoiler else 0
    direction = rng.uniform(-1, 1, size)
    for step in range(1, limit + 1):
        has_begun = has_begun or (spoiler is not None and spoiler.begins_now(env))
        is_spoilt = has_begun and steps_left > 0
        if spoiler is not None and is_spoilt:
            steps_left -= 1
            action = rng.uniform(-1, 1, size) if spoiler.motion == "random" else direction + 0.5 * rng.normal(size=size)
            if spoiler.gripper is not None:
                action[-1] = spoiler.gripper
        else:
            action = operator.act(env.state, env.objects) + case.noise * rng.normal(size=size)
        _, _, terminated, _, _ = env.step(np.clip(action, -1, 1).astype(np.float32))
        if terminated:
            return None if steps_left > 0 or is_spoilt else (True, step)
    return False, limit


def measure(env: RobotEnv, label: str, case: Case, episodes: int) -> str:
    """Return the table's line of one case."""
    attempts = (run_episode(env, case, seed) for seed in itertools.count())
    results = list(itertools.islice((result for result in attempts if result), episodes))
    successes = sum(success for success, _ in results)
    low, high = wilson_interval(successes, episodes)
    length = np.mean([length for _, length in results])
    success = f"{successes} of {episodes} ({low:.0%} to {high:.0%})"
    return f"| {label} | {case.what} | {success} | {length:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=200, help="episodes of each case")
    parser.add_argument("--tasks", nargs="*", help="some tasks only; then nothing is written")
    arguments = parser.parse_args()
    rows = []
    for name, options, remark in VARIANTS:
        if arguments.tasks and name not in arguments.tasks:
            continue
        task = make_task(name, options)
        backend = connect_backend("twin", task)
        env = RobotEnv(task, backend)
        for case in CASES + CUBE_CASES * (task.scene == "cube_stacking"):
            rows.append(measure(env, name + remark, case, arguments.episodes))
            print(rows[-1], flush=True)
        backend.close()
    if arguments.tasks:
        return
    RESULTS.write_text(
        "\n".join(
            [
                "# The scripted operator on the twin",
                "",
                f"`python -m benchmarks.scripted_operator --episodes {arguments.episodes}`. The step limit of the task",
                "counts from the episode's start. A take-over from random actions or a drift comes at a random step",
                "between a fifth and two fifths of it; the cases with a cube begin with the operator and are then",
                "disturbed for ten steps. Brackets: 95 % Wilson interval.",
                "",
                "| task | operator | success | mean length, steps |",
                "| --- | --- | --- | --- |",
                *rows,
                "",
            ]
        )
    )
    print(f"wrote {RESULTS}")


if __name__ == "__main__":
    main()
