"""How near the twin's tasks come to the safety gate's limits, and what the gate does about it.

`python -m benchmarks.safety_limits --episodes 100` prints the tables of docs/safety.md.
"""

import argparse
import logging
import timeit
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from actor.env import RobotEnv, connect_backend
from actor.tasks import TASKS, make_task
from actor.tasks.base import Task, TaskOptions
from robot.errors import RobotFaultError
from robot.franka import JOINT_MAX, JOINT_MIN, JOINT_VELOCITY_MAX
from robot.interface import Array, RobotBackend, RobotState
from robot.safety import SafetyGate

# Who acts: random draws each action anew; drift keeps a direction, with noise 0.5; corner keeps one at full deflection,
# as a policy can that has learned nothing; down presses on what is below.
DRIVERS = ("operator", "random", "drift", "corner", "down")
QUANTITIES = ("force, N", "torque, N m", "joint room, rad", "speed, m/s", "joint speed, share", "outside, mm")
_SMALLEST = ("joint room, rad",)


@dataclass
class Tally:
    """What was seen in the episodes of one driver on one task."""

    rows: list[list[float]] = field(default_factory=list)
    clips: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    successes: int = 0


def measured(state: RobotState, task: Task) -> list[float]:
    """Return the QUANTITIES of a state."""
    low, high = np.array(task.safety.workspace_min_m), np.array(task.safety.workspace_max_m)
    position = state.O_T_EE[:3, 3]
    return [
        float(np.linalg.norm(state.O_F_ext_hat_K[:3])),
        float(np.linalg.norm(state.O_F_ext_hat_K[3:])),
        float(np.minimum(state.q - JOINT_MIN, JOINT_MAX - state.q).min()),
        float(np.linalg.norm(state.O_twist_EE[:3])),
        float((np.abs(state.dq) / JOINT_VELOCITY_MAX).max()),
        1e3 * float(np.linalg.norm(position - np.clip(position, low, high))),
    ]


def run_episode(task: Task, backend: RobotBackend, driver: str, seed: int, tally: Tally) -> None:
    """Run one episode, with a guard of its own: a fault ends it."""
    env = RobotEnv(task, backend)
    rng = np.random.default_rng(seed)
    env.reset(seed=seed)
    operator, size = task.make_operator(), task.action_spec.dim
    direction = rng.uniform(-1, 1, size)
    down = -np.eye(size)[2]
    for _ in range(task.max_episode_steps):
        if driver == "operator":
            action: Array = np.asarray(operator.act(env.state, env.objects), dtype=np.float64)
        elif driver == "random":
            action = rng.uniform(-1, 1, size)
        elif driver == "drift":
            action = direction + 0.5 * rng.normal(size=size)
        else:
            action = np.sign(direction) if driver == "corner" else down
        try:
            _, _, terminated, _, info = env.step(np.clip(action, -1, 1).astype(np.float32))
        except RobotFaultError as error:
            tally.faults[str(error).partition(":")[0]] += 1
            return
        tally.clips.update({reason.partition(":")[0] for reason in info["clip_reasons"]})
        tally.rows.append(measured(env.state, task))
        if terminated:
            tally.successes += bool(info["is_success"])
            return


def line(name: str, driver: str, episodes: int, tally: Tally) -> str:
    """Return one line of the table: median / 99 % / extreme of each quantity."""
    values = np.array(tally.rows).T
    cells = []
    for quantity, series in zip(QUANTITIES, values, strict=True):
        percentiles = (50, 1, 0) if quantity in _SMALLEST else (50, 99, 100)
        cells.append(" / ".join(f"{value:.3g}" for value in np.percentile(series, percentiles)))
    clips = ", ".join(f"{limit} {count / len(tally.rows):.1%}" for limit, count in tally.clips.most_common()) or "none"
    faults = ", ".join(f"{limit} {count}" for limit, count in tally.faults.items()) or "0"
    solved = f"{tally.successes} of {episodes}"
    return f"| {name} | {driver} | {solved} | {' | '.join(cells)} | {clips} | {faults} |"


def cost_us(task: Task, state: RobotState) -> tuple[float, float]:
    """Return the microseconds of `apply` and `violation`: the best of five means of 2,000 calls."""
    gate = SafetyGate(task.safety)
    command = task.command(np.full(task.action_spec.dim, 0.5, np.float32), state)
    period_s = 1.0 / task.control_rate_hz
    apply_s = min(timeit.repeat(lambda: gate.apply(state, command, period_s), number=2000, repeat=5))
    violation_s = min(timeit.repeat(lambda: gate.violation(state), number=2000, repeat=5))
    return apply_s / 2000 * 1e6, violation_s / 2000 * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=100, help="episodes of each driver on each task")
    parser.add_argument("--tasks", nargs="*", default=sorted(TASKS))
    parser.add_argument("--drivers", nargs="*", default=DRIVERS, choices=DRIVERS)
    parser.add_argument("--rate", type=float, default=10.0, help="control rate, Hz")
    arguments = parser.parse_args()
    logging.getLogger("robot.guard").setLevel(logging.CRITICAL)  # faults are counted here
    print(f"| task | who acts | solved | {' | '.join(QUANTITIES)} | steps clipped | episodes with a fault |")
    print(f"| --- | --- | --- | {'--- | ' * len(QUANTITIES)}--- | --- |")
    for name in arguments.tasks:
        task = make_task(name, TaskOptions(control_rate_hz=arguments.rate))
        backend = connect_backend("twin", task)
        for driver in arguments.drivers:
            tally = Tally()
            for seed in range(arguments.episodes):
                run_episode(task, backend, driver, seed, tally)
            print(line(name, driver, arguments.episodes, tally), flush=True)
        apply_us, violation_us = cost_us(task, backend.read_state())
        print(f"<!-- {name}: apply {apply_us:.0f} us, violation {violation_us:.0f} us -->", flush=True)
        backend.close()


if __name__ == "__main__":
    main()
