"""How often the scripted operator solves each task on the twin: from the start, with noise, after a take-over.

`python -m benchmarks.scripted_operator --episodes 200` writes benchmarks/results/scripted_operator.md.
"""

import argparse
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from actor.env import RobotEnv, connect_backend
from actor.evaluate import wilson_interval
from actor.tasks import TASKS, make_task

RESULTS = Path(__file__).parent / "results" / "scripted_operator.md"


@dataclass(frozen=True)
class Case:
    """What disturbs the operator. Noise is a standard deviation in normalised action units."""

    what: str
    noise: float = 0.0  # on each of its own actions
    before: Literal["", "random", "drift"] = ""  # what acts until the take-over; drift: one direction, noise 0.5


CASES = (
    Case("from the start"),
    Case("noise 0.2 on its actions", noise=0.2),
    Case("takes over after random actions", before="random"),
    Case("takes over after a drift", before="drift"),
    Case("takes over after a drift, noise 0.2", before="drift", noise=0.2),
)


def run_episode(env: RobotEnv, case: Case, seed: int) -> tuple[bool, int] | None:
    """Return success and length, None if luck solved the task before the operator took over.

    A take-over comes after a fifth to two fifths of the episode's step limit, which counts from the start.
    """
    rng = np.random.default_rng(seed)
    env.reset(seed=seed)
    operator = env.task.make_operator()
    limit, size = env.task.max_episode_steps, env.task.action_spec.dim
    taken_over_at = 0 if not case.before else int(rng.integers(limit // 5, 2 * limit // 5 + 1))
    direction = rng.uniform(-1, 1, size)
    for step in range(1, limit + 1):
        if step > taken_over_at:
            action = operator.act(env.state, env.objects) + case.noise * rng.normal(size=size)
        elif case.before == "drift":
            action = direction + 0.5 * rng.normal(size=size)
        else:
            action = rng.uniform(-1, 1, size)
        _, _, terminated, _, _ = env.step(np.clip(action, -1, 1).astype(np.float32))
        if terminated:
            return (True, step) if step > taken_over_at else None
    return False, limit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=200, help="episodes of each case")
    episodes = parser.parse_args().episodes
    rows = []
    for name in TASKS:
        task = make_task(name)
        backend = connect_backend("twin", task)
        env = RobotEnv(task, backend)
        for case in CASES:
            attempts = (run_episode(env, case, seed) for seed in itertools.count())
            results = list(itertools.islice((result for result in attempts if result), episodes))
            successes = sum(success for success, _ in results)
            low, high = wilson_interval(successes, episodes)
            length = np.mean([length for _, length in results])
            rows.append(
                f"| {name} | {case.what} | {successes} of {episodes} ({low:.0%} to {high:.0%}) | {length:.1f} |"
            )
            print(rows[-1], flush=True)
        backend.close()
    RESULTS.write_text(
        "\n".join(
            [
                "# The scripted operator on the twin",
                "",
                f"`python -m benchmarks.scripted_operator --episodes {episodes}`. The step limit of the task counts",
                "from the episode's start; a take-over comes at a random step between a fifth and two fifths of it.",
                "Brackets: 95 % Wilson interval.",
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
