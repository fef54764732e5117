"""What the doctor makes of an arm's state, value by value."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from actor.config import ActorConfig
from actor.doctor.arm import _judge_step, check_ages, check_force, check_joints, check_mode, check_mount, check_step
from actor.doctor.check import Result, Status
from actor.tasks import make_task
from robot.backends.deoxys.messages import ArmState, RobotMode
from robot.backends.fake import FakeBackend
from robot.errors import RobotFaultError
from robot.franka import JOINT_MAX, JOINT_MIN, forward_kinematics
from robot.interface import RobotCommand, ScenePlacement
from robot.pose import rotation_from_rotvec, translation

Q = np.array((0.0, 0.2, 0.0, -2.2, 0.0, 2.4, 0.785))
TASK_START = make_task("reach").sample_placement(np.random.default_rng(0)).O_T_EE
HAND = translation(0.0, 0.0, 0.1034)


def make_state(**changes: Any) -> ArmState:
    q, F_T_EE = changes.pop("q", Q), changes.pop("F_T_EE", HAND)
    state = ArmState(
        O_T_EE=forward_kinematics(q, F_T_EE),
        O_T_EE_d=np.eye(4),
        F_T_EE=F_T_EE,
        q=q,
        q_d=q,
        dq=np.zeros(7),
        tau_J=np.zeros(7),
        O_F_ext_hat_K=np.array((0.3, 0.0, -1.0, 0.0, 0.0, 0.0)),
        K_F_ext_hat_K=np.zeros(6),
        robot_mode=RobotMode.IDLE,
        robot_time_s=10.0,
        frame=3,
    )
    return replace(state, **changes)


def assert_says(result: Result, expected: Status, *words: str) -> None:
    assert result.status is expected, result
    text = f"{result.measured} {result.detail} {result.fix}"
    assert all(word in text for word in words), text


def test_a_healthy_arm() -> None:
    state = make_state()
    for check in (check_mode, check_mount, check_joints, check_force):
        assert_says(check(state), Status.OK)


@pytest.mark.parametrize(
    ("changes", "expected", "word"),
    [
        ({"robot_mode": RobotMode.USER_STOPPED}, Status.FAILED, "USER_STOPPED"),
        ({"robot_mode": RobotMode.REFLEX}, Status.FAILED, "REFLEX"),
        ({"current_errors": ("joint_reflex",)}, Status.FAILED, "joint_reflex"),
        ({"last_motion_errors": ("cartesian_reflex",)}, Status.WARNING, "cartesian_reflex"),
        ({"O_T_EE": np.zeros((4, 4))}, Status.FAILED, "zeros"),
        ({"q": np.full(7, np.nan)}, Status.FAILED, "not finite"),
    ],
)
def test_modes_and_errors(changes: dict[str, Any], expected: Status, word: str) -> None:
    assert_says(check_mode(make_state(**changes)), expected, word)


def test_a_mount_that_is_no_pose_or_too_far_away() -> None:
    scaled = HAND.copy()
    scaled[:3, :3] *= 1.1
    assert_says(check_mount(make_state(F_T_EE=scaled)), Status.FAILED, "Desk")
    mirrored = HAND.copy()
    mirrored[0, 0] = -1.0
    assert_says(check_mount(make_state(F_T_EE=mirrored)), Status.FAILED)
    assert_says(check_mount(make_state(F_T_EE=translation(0.0, 0.0, 0.5))), Status.FAILED, "500 mm")
    assert_says(check_mount(make_state(F_T_EE=np.eye(4))), Status.WARNING, "no hand")


def test_joints_and_pose_that_do_not_belong_together() -> None:
    O_T_EE = forward_kinematics(Q, HAND)
    moved = translation(0.003, 0.0, 0.0) @ O_T_EE
    assert_says(check_mount(make_state(O_T_EE=moved)), Status.FAILED, "3.00 mm")
    turned = O_T_EE.copy()
    turned[:3, :3] = rotation_from_rotvec((0.0, 0.0, 0.02)) @ turned[:3, :3]
    assert_says(check_mount(make_state(O_T_EE=turned)), Status.FAILED, "0.020 rad")


@pytest.mark.parametrize("joint", range(7))
@pytest.mark.parametrize(
    ("margin", "expected"), [(0.26, Status.OK), (0.24, Status.WARNING), (0.09, Status.FAILED), (-0.1, Status.FAILED)]
)
def test_the_joint_nearest_to_its_limit_is_named(joint: int, margin: float, expected: Status) -> None:
    middle = 0.5 * (JOINT_MIN + JOINT_MAX)
    for limit, inwards in ((JOINT_MIN, 1.0), (JOINT_MAX, -1.0)):
        q = middle.copy()
        q[joint] = limit[joint] + inwards * margin
        assert_says(check_joints(make_state(q=q)), expected, f"joint {joint + 1} ")


@pytest.mark.parametrize(("force_n", "expected"), [(4.9, "ok"), (5.1, "warning"), (-15.1, "failed")])
def test_a_force_with_nothing_touching(force_n: float, expected: str) -> None:
    wrench = np.array((0.0, force_n, 0.0, 0.0, 0.0, 0.0))
    result = check_force(make_state(O_F_ext_hat_K=wrench))
    assert result.status == expected
    assert f"{abs(force_n):.1f} N" in result.measured


@pytest.mark.parametrize(
    ("reached_mm", "left_mm", "expected"),
    [
        ((0.1, 0.0, 9.8), 0.2, Status.OK),
        ((0.0, 0.0, 4.0), 0.2, Status.WARNING),
        ((0.0, 0.0, 0.5), 0.2, Status.FAILED),
        ((0.0, 0.0, -10.0), 0.2, Status.FAILED),
        ((9.0, 0.0, 10.0), 0.2, Status.FAILED),
        ((0.0, 0.0, 10.0), 9.0, Status.FAILED),
    ],
)
def test_the_step_is_compared_with_what_was_commanded(
    reached_mm: tuple[float, float, float], left_mm: float, expected: Status
) -> None:
    reached = np.array(reached_mm) * 1e-3
    result = _judge_step(reached, left_mm * 1e-3, set(), np.zeros(3))
    assert result.status is expected
    assert f"{reached_mm[2]:.1f}) mm" in result.measured


def test_a_step_that_the_gate_cut_is_not_the_arm_s_fault() -> None:
    result = _judge_step(np.zeros(3), 0.0, {"workspace"}, np.array((0.5, 0.0, 0.7)))
    assert_says(result, Status.FAILED, "workspace", "[0.5, 0.0, 0.7] m")


@pytest.mark.parametrize(("oldest_s", "expected"), [(0.05, "ok"), (0.08, "warning"), (0.13, "failed")])
def test_the_age_of_states_is_judged_by_the_limit_at_which_the_arm_holds(oldest_s: float, expected: str) -> None:
    assert check_ages([0.01, 0.01, oldest_s, 0.01], 0.12).status == expected
    assert check_ages([], 0.12).status is Status.SKIPPED


class Arm(FakeBackend):
    """The fake arm, noting what is done to it."""

    def __init__(self) -> None:
        super().__init__("reach")
        self.said: list[str] = []

    def connect(self) -> None:
        super().connect()
        super().reset(ScenePlacement(O_T_EE=TASK_START, objects={"target": TASK_START}))

    def send_command(self, command: RobotCommand) -> None:
        self.said.append("command")
        super().send_command(command)

    def close(self) -> None:
        self.said.append("close")
        super().close()


def step(arm: Arm, monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> Result:
    monkeypatch.setattr("actor.doctor.arm.make_backend", lambda name, scene, options: arm)
    config = ActorConfig(backend="deoxys", task="reach")
    return check_step(config, make_task("reach"), lambda question: True, [], **arguments)


def test_a_person_who_stops_the_doctor_stops_the_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    arm = Arm()
    asked: list[bool] = []

    def should_stop() -> bool:
        asked.append(True)
        return len(asked) > 2

    assert_says(step(arm, monkeypatch, should_stop=should_stop), Status.FAILED, "told to stop")
    assert arm.said == ["command", "command", "close"]


def test_an_arm_that_fails_in_the_step_is_let_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    arm = Arm()

    def fault() -> Any:
        raise RobotFaultError("the emergency stop is pressed. Release it.")

    monkeypatch.setattr(arm, "read_state", fault)
    assert_says(step(arm, monkeypatch), Status.FAILED, "emergency stop", "Release it")
    assert arm.said == ["close"]
