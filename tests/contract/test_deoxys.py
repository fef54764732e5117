"""What an arm behind Deoxys promises, over our own client and over an installed FrankaInterface alike."""

import itertools
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from robot.backends import make_backend
from robot.backends.deoxys import client, link
from robot.backends.deoxys.backend import DeoxysBackend
from robot.backends.deoxys.options import DeoxysOptions
from robot.errors import MissingDependencyError, RobotError, StaleStateError
from robot.geometry import PEG_RADIUS_M
from robot.interface import RobotCommand, ScenePlacement
from robot.pose import O_R_DOWN, apply_delta, make_pose, pose_difference, rotation_from_rotvec
from tests import deoxys_stub
from tests.deoxys_arm import HANG_S, look_and_send, patiently, step, wait_until
from tests.deoxys_fake import FakeNuc, Sent, schema

RELEASE_S = 0.2  # a fifth of the real one, for the tests' time
START = make_pose(rotation_from_rotvec((0.1, -0.05, 0.4)) @ O_R_DOWN, (0.48, 0.06, 0.3))
CONTROLLER = """
controller_type: OSC_POSE
is_delta: true
Kp: {translation: [140.0, 150.0, 160.0], rotation: 200.0}
action_scale: {translation: 0.05, rotation: 1.0}
residual_mass_vec: [0.0, 0.0, 0.1, 0.1, 0.1, 0.4, 0.5]
traj_interpolator_cfg: {traj_interpolator_type: MIN_JERK_POSE, time_fraction: 0.5}
state_estimator_cfg: {is_estimation: false, state_estimator_type: EXPONENTIAL_SMOOTHING, alpha_q: 0.8}
"""


@pytest.fixture(scope="module", params=["wire", "deoxys-control"])
def arm(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[DeoxysBackend, FakeNuc]]:
    """An arm that has been reset once; its tests run in order and leave it at rest."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        interface = deoxys_stub.install(monkeypatch)
        monkeypatch.setattr(interface, "release_s", RELEASE_S)
        monkeypatch.setattr(link, "RELEASE_S", RELEASE_S)
        monkeypatch.setattr(client, "_SETTLE_S", 0.1)
        folder = tmp_path_factory.mktemp("deoxys")
        nuc = FakeNuc(folder)
        (folder / "osc.yml").write_text(CONTROLLER)
        options = DeoxysOptions(
            interface=request.param, network=nuc.network, controller=folder / "osc.yml", reset_speed_m_s=0.25
        )
        backend = make_backend("deoxys", "peg_in_hole", options=options)
        assert isinstance(backend, DeoxysBackend)
        try:
            backend.connect()
            backend.reset(ScenePlacement(O_T_EE=START))
            yield backend, nuc
        finally:
            backend.close()
            nuc.close()


def test_connecting_releases_the_arm_and_starts_from_where_the_controller_measures_it(
    arm: tuple[DeoxysBackend, FakeNuc],
) -> None:
    _, nuc = arm
    controllers = [sent.controller for sent in nuc.sent]
    first = controllers.index("OSC_POSE")
    assert first >= 15  # of 20; the first may go out before the NUC has connected
    assert set(controllers[:first]) == {"NO_CONTROL"}
    goals = nuc.sent[first:]
    assert goals[0].is_delta
    assert not np.any((goals[0].position, goals[0].rotvec))
    num_deltas = next(i for i, sent in enumerate(goals) if not sent.is_delta)
    assert num_deltas >= 2


def test_a_reset_went_up_then_home_then_straight_to_its_verified_pose(arm: tuple[DeoxysBackend, FakeNuc]) -> None:
    _, nuc = arm
    joint_goals = [sent for sent in nuc.sent if sent.controller == "JOINT_POSITION"]
    assert {sent.q for sent in joint_goals} == {(0.0, -0.1, 0.0, -2.2, 0.0, 2.1, math.pi / 4)}
    assert not any(sent.is_delta for sent in joint_goals)
    before = [sent.position for sent in nuc.sent if sent.at_s < joint_goals[0].at_s and sent.controller == "OSC_POSE"]
    heights = [position[2] for position in before if any(position)]
    assert max(heights) - heights[0] == pytest.approx(0.1, abs=0.011)
    np.testing.assert_allclose(
        [position[:2] for position in before if any(position)], [before[-1][:2]] * len(heights), atol=0.002
    )
    missing, turn = pose_difference(nuc.O_T_EE, START)
    assert np.linalg.norm(missing) < 0.004
    assert np.linalg.norm(turn) < 0.025
    assert nuc.violations == []


def test_the_next_reset_stays_out_of_joint_space_and_never_runs_far_ahead_of_the_arm(
    arm: tuple[DeoxysBackend, FakeNuc],
) -> None:
    backend, nuc = arm
    since_s = time.monotonic()
    other = apply_delta(START, np.array([0.03, -0.05, 0.02]), np.array([0.0, 0.0, 0.2]))
    state = backend.reset(ScenePlacement(O_T_EE=other))
    missing, turn = pose_difference(state.O_T_EE, other)
    assert np.linalg.norm(missing) < 0.004
    assert np.linalg.norm(turn) < 0.025
    goals = nuc.sent_since(since_s)
    assert {sent.controller for sent in goals} == {"OSC_POSE"}
    strides = np.linalg.norm(np.diff([sent.position for sent in goals], axis=0), axis=1)
    assert strides.max() < 0.07


def test_a_step_becomes_the_absolute_pose_that_the_caller_saw_plus_the_step(arm: tuple[DeoxysBackend, FakeNuc]) -> None:
    backend, nuc = arm
    delta, turn = np.array([0.01, -0.005, 0.002]), np.array([0.02, -0.01, 0.03])
    is_sent_in_time = False
    while not is_sent_in_time:  # the machine that tests run on may be busy
        patiently(lambda: look_and_send(backend, step(0.0, 0.05, 0.0)))
        state = patiently(backend.read_state)
        expected = apply_delta(state.O_T_EE, delta, turn)
        for value in (state.O_T_EE, state.q, state.dq):
            value[:] = np.nan  # the caller's arrays are the caller's
        time.sleep(0.04)  # a policy thinks while the arm moves on
        since_s = time.monotonic()
        try:
            backend.send_command(RobotCommand(delta_position=delta, delta_rotation=turn))
        except StaleStateError:
            continue
        is_sent_in_time = True

    def is_of_before(each: Sent) -> bool:
        return each.is_delta or not np.allclose(each.O_T_EE, expected, rtol=0, atol=1e-9)

    def sent_from_it_on() -> list[Sent]:
        """A repetition of the goal before may still have been on its way."""
        return list(itertools.dropwhile(is_of_before, nuc.sent_since(since_s)))

    wait_until(lambda: len(sent_from_it_on()) >= 4, "the goal and its repetitions")
    sent = sent_from_it_on()[:4]
    for each in sent:
        assert not each.is_delta
        np.testing.assert_allclose(each.O_T_EE, expected, atol=1e-9)
    message = sent[0].message
    inner = schema().FrankaOSCPoseControllerMessage()
    message.control_msg.Unpack(inner)
    assert list(inner.translational_stiffness) == [140.0, 150.0, 160.0]
    assert list(inner.rotational_stiffness) == [200.0] * 3
    assert list(inner.config.residual_mass_vec) == [0.0, 0.0, 0.1, 0.1, 0.1, 0.4, 0.5]
    assert message.traj_interpolator_type == schema().FrankaControlMessage.TrajInterpolatorType.Value("MIN_JERK_POSE")
    assert message.traj_interpolator_time_fraction == 0.5
    assert message.state_estimator_msg.estimator_type == 1


def test_the_state_is_libfrankas_with_a_twist_that_is_the_rate_of_the_pose(arm: tuple[DeoxysBackend, FakeNuc]) -> None:
    backend, _ = arm
    deadline_s, is_the_rate = time.monotonic() + 12 * HANG_S, False
    while not is_the_rate:  # a busy machine lets the arm halt between two looks, but never makes a wrong twist right
        assert time.monotonic() < deadline_s
        for _ in range(4):
            patiently(lambda: look_and_send(backend, step(0.02, 0.01, 0.0)))
            time.sleep(0.03)
        before = patiently(backend.read_state)
        after = before
        while after.robot_time_s - before.robot_time_s < 0.015:
            after = patiently(backend.read_state)
        moved = np.concatenate(pose_difference(before.O_T_EE, after.O_T_EE))
        rate = moved / (after.robot_time_s - before.robot_time_s)
        error = (before.O_twist_EE + after.O_twist_EE) / 2 - rate
        is_the_rate = bool(np.linalg.norm(rate[:3]) > 0.05 and np.abs(error).max() < 0.03)
    for name, shape in {"O_T_EE": (4, 4), "O_twist_EE": (6,), "q": (7,), "dq": (7,), "O_F_ext_hat_K": (6,)}.items():
        assert getattr(after, name).shape == shape, name
    np.testing.assert_allclose(after.tau_J, np.linspace(-3.0, 3.0, 7))
    assert after.gripper_width == 2 * PEG_RADIUS_M
    assert 0.0 <= time.monotonic() - after.received_monotonic_s < HANG_S


def test_a_pause_keeps_the_control_process_and_the_pose(arm: tuple[DeoxysBackend, FakeNuc]) -> None:
    backend, nuc = arm
    backend.stop()
    wait_until(lambda: np.abs(patiently(backend.read_state).O_twist_EE).max() < 0.001, "the arm at rest")
    held = nuc.O_T_EE
    since_s = time.monotonic()
    backend.stop()
    time.sleep(1.3)  # the NUC gives up after 1 s
    np.testing.assert_allclose(nuc.O_T_EE, held, atol=0.001)
    assert nuc.starts == 1
    sent = nuc.sent_since(since_s)
    assert len({(each.controller, each.position) for each in sent}) == 1
    assert len(sent) >= 15


def test_closing_ends_the_control_process_once_and_opening_again_works(arm: tuple[DeoxysBackend, FakeNuc]) -> None:
    backend, nuc = arm
    since_s = time.monotonic()
    backend.close()
    backend.close()
    backend.stop()
    with pytest.raises(RobotError):
        backend.read_state()
    wait_until(lambda: nuc.starts == 2, "auto_arm.sh starting the control process again")
    time.sleep(0.2)
    sent = nuc.sent_since(since_s)
    assert [each.termination for each in sent if each.termination] == [True]
    assert sent[-1].termination
    backend.connect()
    assert np.isfinite(patiently(backend.read_state).O_T_EE).all()
    assert nuc.violations == []


def test_deoxys_own_client_is_opened_once_and_told_to_leave_the_hand_alone(arm: tuple[DeoxysBackend, FakeNuc]) -> None:
    assert deoxys_stub.FrankaInterface.opened <= 1  # its ports cannot be taken twice in a process
    assert not deoxys_stub.FrankaInterface.has_opened_a_hand


def test_another_package_of_that_name_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "network.yml").write_text("NUC: {IP: 127.0.0.1}")
    options = DeoxysOptions(interface="deoxys-control", network=tmp_path / "network.yml")
    for name in ("deoxys", "deoxys.franka_interface"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if not (Path(entry) / "deoxys").is_dir()])
    with pytest.raises(MissingDependencyError, match=r"No module named 'deoxys'.*UT-Austin-RPL/deoxys_control"):
        make_backend("deoxys", "reach", options=options).connect()
    unrelated = ModuleType("deoxys")
    unrelated.__path__, unrelated.__file__ = [], "deoxys/__init__.py"
    monkeypatch.setitem(sys.modules, "deoxys", unrelated)
    with pytest.raises(MissingDependencyError, match=r"PyPI.*pip uninstall deoxys"):
        make_backend("deoxys", "reach", options=options).connect()


def test_a_command_for_a_pose_that_is_no_longer_so_is_not_sent(arm: tuple[DeoxysBackend, FakeNuc]) -> None:
    """What the gate judged was a step from the pose that was read, and not one from wherever the arm is by now."""
    backend, nuc = arm
    patiently(backend.read_state)
    time.sleep(0.2)
    since_s = time.monotonic()
    with pytest.raises(StaleStateError):
        backend.send_command(step(0.0, 0.0, 0.05))
    wait_until(lambda: len(nuc.sent_since(since_s)) >= 2, "the heartbeat goes on")
    highest = max(sent.position[2] for sent in nuc.sent_since(since_s))
    assert highest < nuc.O_T_EE[2, 3] + 0.02
