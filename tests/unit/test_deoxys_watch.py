"""What is latched, when, and with which words: on a clock of the tests' own."""

from dataclasses import replace

import numpy as np
import pytest

from robot.backends.deoxys.messages import ArmState, RobotMode
from robot.backends.deoxys.watch import StateWatch, complaint

GOOD = ArmState(
    O_T_EE=np.eye(4),
    O_T_EE_d=np.eye(4),
    F_T_EE=np.eye(4),
    q=np.zeros(7),
    q_d=np.zeros(7),
    dq=np.zeros(7),
    tau_J=np.zeros(7),
    O_F_ext_hat_K=np.zeros(6),
    K_F_ext_hat_K=np.zeros(6),
    robot_mode=RobotMode.MOVE,
    robot_time_s=100.0,
    frame=7,
)


def state(index: int) -> ArmState:
    return replace(GOOD, robot_time_s=100.0 + 0.01 * index, frame=7 + index)


def watching(*, is_controlled: bool = True) -> StateWatch:
    watch = StateWatch(fault_after_s=1.0)
    watch.is_controlled = is_controlled
    watch.observe(state(0), 50.0)
    return watch


def test_the_age_is_that_of_the_robots_time_and_not_of_the_message() -> None:
    watch = watching()
    for index in range(1, 60):
        watch.observe(replace(state(0), frame=7 + index), 50.0 + 0.01 * index)
        watch.check(50.0 + 0.01 * index)
    assert watch.age_s(50.59) == pytest.approx(0.59)
    assert watch.silence_s(50.59) == pytest.approx(0.0)
    assert watch.fault == ""
    watch.observe(replace(state(0), frame=100), 51.01)
    watch.check(51.01)
    assert "stood still for 1.01 s (limit 1.0 s), though messages come" in watch.fault


def test_without_a_controller_a_state_that_stands_still_is_no_fault_but_silence_is() -> None:
    watch = watching(is_controlled=False)
    for index in range(1, 300):
        watch.observe(replace(state(0), frame=7 + index), 50.0 + 0.01 * index)
        watch.check(50.0 + 0.01 * index)
    assert watch.fault == ""
    watch.check(54.0)
    assert "nothing has come from the NUC for 1.01 s" in watch.fault


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"frame": 2}, "counter went from 7 to 2"),
        ({"frame": 8, "robot_time_s": 0.5}, "clock went back from 100.000 to 0.500 s"),
        ({"robot_mode": RobotMode.OTHER}, "OTHER: the robot is not ready: unlock"),
        ({"robot_mode": RobotMode.GUIDING}, "GUIDING: somebody guides it"),
        ({"robot_mode": RobotMode.REFLEX}, "REFLEX: it stopped itself"),
        ({"robot_mode": RobotMode.USER_STOPPED}, "USER_STOPPED: its stop button"),
        ({"robot_mode": RobotMode.AUTOMATIC_ERROR_RECOVERY}, "AUTOMATIC_ERROR_RECOVERY"),
        ({"current_errors": ("power_limit_violation",)}, "reports power_limit_violation"),
        ({"q": np.full(7, np.nan)}, "not finite"),
        ({"O_F_ext_hat_K": np.full(6, np.inf)}, "not finite"),
        ({"O_T_EE": np.zeros((4, 4))}, "all zeros"),
        ({"O_T_EE": 2.0 * np.eye(4)}, "not a pose"),
    ],
)
def test_each_reason_is_latched_with_its_values(changes: dict[str, object], reason: str) -> None:
    watch = watching()
    watch.observe(replace(state(1), **changes), 50.01)  # type: ignore[arg-type]
    assert reason in watch.fault
    first = watch.fault
    watch.observe(replace(state(2), robot_mode=RobotMode.REFLEX), 50.02)
    for index in range(3, 50):
        watch.observe(state(index), 50.0 + 0.01 * index)
    assert watch.fault == first  # neither replaced nor forgotten when all looks well
    watch.clear()
    assert watch.fault == ""


@pytest.mark.parametrize("mode", [RobotMode.IDLE, RobotMode.MOVE])
def test_nothing_is_said_of_a_good_state(mode: RobotMode) -> None:
    assert complaint(replace(GOOD, robot_mode=mode, last_motion_errors=("joint_reflex",))) == ""
