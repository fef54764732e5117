"""The gate on the twin's physics: what it keeps the arm from that happens without it."""

import dataclasses
import math
from typing import Any

import numpy as np

from actor.tasks import make_task
from actor.tasks.base import TaskOptions
from robot.backends.twin.backend import TwinBackend
from robot.franka import JOINT_MAX, JOINT_MIN
from robot.interface import RobotCommand, RobotState
from robot.safety import SafetyConfig, SafetyGate

PERIOD_S = 0.1
TURNING = RobotCommand(delta_position=np.zeros(3), delta_rotation=np.array([0.0, 0.0, 0.08]))
PRESSING = RobotCommand(delta_position=np.array([0.0, 0.0, -0.02]), delta_rotation=np.zeros(3))


def drive(command: RobotCommand, steps: int, gate: SafetyGate | None) -> list[RobotState]:
    """Repeat a command on the peg's scene; return the states."""
    task = make_task("peg_in_hole", TaskOptions())
    twin = TwinBackend(task.scene)
    twin.connect()
    state = twin.reset(task.sample_placement(np.random.default_rng(1)))
    states = []
    for _ in range(steps):
        twin.send_command(command if gate is None else gate.apply(state, command, PERIOD_S).command)
        twin.advance(PERIOD_S)
        state = twin.read_state()
        states.append(state)
    twin.close()
    return states


def limits(**changes: float) -> SafetyConfig:
    task = make_task("peg_in_hole", TaskOptions())
    chosen: dict[str, Any] = {"max_step_rad": 0.1, "max_speed_rad_s": 1.0, **changes}
    return dataclasses.replace(task.safety, **chosen)


def joint_room(state: RobotState) -> float:
    return float(np.minimum(state.q - JOINT_MIN, JOINT_MAX - state.q).min())


def force(state: RobotState) -> float:
    return math.hypot(*state.O_F_ext_hat_K[:3])


def test_a_hand_turned_one_way_for_ever_stops_before_the_wrists_limit() -> None:
    assert min(map(joint_room, drive(TURNING, 120, None))) < 0.02, "without the gate it gets there"
    margin = 0.1
    states = drive(TURNING, 120, SafetyGate(limits(joint_margin_rad=margin)))
    rooms = list(map(joint_room, states))
    assert min(rooms) > 0.5 * margin
    assert rooms[-1] < 1.5 * margin, "it does get as far as it may"


def test_a_peg_pressed_on_the_plate_is_not_pressed_for_ever() -> None:
    soft = 5.0
    pressed = [force(state) for state in drive(PRESSING, 60, None)]
    assert np.mean(pressed[-30:]) > 1.5 * soft, "without the gate it is"
    gated = [force(state) for state in drive(PRESSING, 60, SafetyGate(limits(soft_force_n=soft)))]
    assert max(gated) > soft, "it does touch"
    assert np.mean(gated[-30:]) < soft
