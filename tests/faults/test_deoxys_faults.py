"""What an arm behind Deoxys is commanded when something fails, read from what reached the NUC."""

import logging
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from robot.backends.deoxys import backend, client, link, reset
from robot.errors import RobotError, RobotFaultError, StaleStateError
from robot.pose import apply_delta
from tests.deoxys_arm import HANG_S, PLACEMENT, Arm, StubGripper, goals, is_readable, step, wait_until
from tests.deoxys_fake import START_Q, FakeNuc, schema


@pytest.fixture(autouse=True)
def _quick_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "RELEASE_S", 0.15)
    monkeypatch.setattr(client, "_SETTLE_S", 0.1)
    monkeypatch.setattr(client, "_RECOVERY_S", 0.1)


@pytest.fixture
def nuc(tmp_path: Path) -> Iterator[FakeNuc]:
    nuc = FakeNuc(tmp_path)
    yield nuc
    nuc.close()


@pytest.fixture
def arm(nuc: FakeNuc) -> Iterator[Arm]:
    arm = Arm(nuc)
    arm.backend.connect()
    arm.move()
    yield arm
    arm.backend.close()
    assert nuc.violations == []


@pytest.fixture
def patient(nuc: FakeNuc) -> Iterator[Arm]:
    """An arm whose faults latch late, for outages that end before."""
    arm = Arm(nuc, fault_after_s=5.0)
    arm.backend.connect()
    arm.move()
    yield arm
    arm.backend.close()


def test_a_killed_control_process_latches_and_nothing_speaks_to_the_next_one(nuc: FakeNuc) -> None:
    arm = Arm(nuc, fault_after_s=1.2)
    arm.backend.connect()
    arm.move()
    at_s = time.monotonic()
    nuc.kill()
    assert "nothing has come from the NUC" in arm.fault()
    # Goals end well before the fault: the next control process would take the first that it hears for an order.
    assert [each.termination for each in nuc.sent_since(at_s + 0.5 * 1.2 + 0.2)] == [True]
    arm.assert_ended_and_silent(at_s)
    with pytest.raises(RobotFaultError, match=r"cannot go on yet: nothing comes from the NUC.*auto_arm\.sh.*stopped"):
        arm.backend.recover()
    arm.assert_stays(0.2)
    arm.backend.close()


def test_a_state_that_stands_still_is_stale_though_messages_come(arm: Arm, nuc: FakeNuc) -> None:
    nuc.freezes_state = True
    at_s = time.monotonic()
    while True:
        try:
            arm.backend.read_state()
        except StaleStateError as error:
            assert error.age_s > arm.options.stale_after_s  # noqa: PT017
            break
        assert time.monotonic() - at_s < HANG_S
    with pytest.raises(StaleStateError):
        arm.backend.send_command(step(0.01, 0.0, 0.0))
    at_s = time.monotonic()
    time.sleep(0.3)
    assert len(nuc.sent_since(at_s)) >= 3  # the NUC must not take it for silence
    assert len(goals(nuc.sent_since(at_s))) == 1  # and is told nothing new
    assert "stood still" in arm.fault()
    arm.assert_ended_and_silent(at_s)


def test_a_control_process_that_started_again_shows_in_the_message_counter_and_is_not_driven(nuc: FakeNuc) -> None:
    arm = Arm(nuc, fault_after_s=10.0)  # only the counter is left to tell
    arm.backend.connect()
    arm.move()
    at_s = time.monotonic()
    nuc.restart()
    assert "message counter went from" in arm.fault()
    arm.assert_ended_and_silent(at_s)
    arm.assert_stays(0.2)
    arm.backend.close()


def test_a_reflex_latches_with_its_name_and_its_automatic_recovery_does_not_move_the_arm(
    arm: Arm, nuc: FakeNuc
) -> None:
    nuc.errors = ("cartesian_reflex",)
    nuc.mode = "Reflex"
    at_s = time.monotonic()
    assert "REFLEX" in arm.fault()
    nuc.errors, nuc.mode = (), "Idle"  # as automaticErrorRecovery() leaves it when the process starts again
    wait_until(lambda: nuc.starts == 2, "auto_arm.sh")
    arm.assert_ended_and_silent(at_s)
    arm.assert_stays(0.2)
    arm.assert_recovers()


def test_a_released_emergency_stop_does_not_move_the_arm(arm: Arm, nuc: FakeNuc) -> None:
    at_s = time.monotonic()
    nuc.press_stop()
    arm.fault()
    with pytest.raises(RobotFaultError, match="Release the emergency stop"):
        arm.backend.recover()
    nuc.release_stop()
    wait_until(lambda: nuc.starts == 2, "auto_arm.sh")
    arm.assert_ended_and_silent(at_s)
    arm.assert_stays(0.5)
    arm.assert_recovers()


@pytest.mark.parametrize(
    ("knob", "value", "reason"),
    [
        (
            "errors",
            ("joint_position_limits_violation", "joint_reflex"),
            "joint_position_limits_violation, joint_reflex",
        ),
        ("zeroes_states", True, "all zeros"),
    ],
)
def test_what_the_state_says_latches_and_bars_the_way_out(
    arm: Arm, nuc: FakeNuc, knob: str, value: object, reason: str
) -> None:
    at_s = time.monotonic()
    setattr(nuc, knob, value)
    fault = arm.fault()
    wait_until(lambda: nuc.starts == 2, "the control process, ended, to start again")
    with pytest.raises(RobotFaultError, match=reason):
        raise RobotFaultError(fault)
    arm.assert_ended_and_silent(at_s)
    time.sleep(0.1)
    with pytest.raises(RobotFaultError, match=f"cannot go on yet.*{reason}"):
        arm.backend.recover()
    arm.assert_stays(0.2)


@pytest.mark.parametrize("knob", ["drops_states", "garbles_states"])
def test_an_outage_of_the_state_holds_the_last_goal_and_passes_without_a_fault(
    patient: Arm, nuc: FakeNuc, knob: str
) -> None:
    setattr(nuc, knob, True)
    with pytest.raises(StaleStateError):  # noqa: PT012
        while True:
            patient.backend.read_state()
            time.sleep(0.005)
    at_s = time.monotonic()
    with pytest.raises(StaleStateError):
        patient.backend.send_command(step(0.0, 0.0, 0.05))
    time.sleep(0.15)
    setattr(nuc, knob, False)
    assert len(goals(nuc.sent_since(at_s))) <= 1
    wait_until(lambda: is_readable(patient.backend), "a fresh state")
    patient.move()
    assert (patient.backend.garbled_states > 5) is (knob == "garbles_states")
    assert nuc.starts == 1


def test_states_that_come_late_are_stale_until_they_flow_again(patient: Arm, nuc: FakeNuc) -> None:
    nuc.delays_states_s = 0.3
    with pytest.raises(StaleStateError):  # noqa: PT012
        while True:
            patient.backend.read_state()
            time.sleep(0.005)
    at_s = time.monotonic()
    time.sleep(0.1)
    assert len(goals(nuc.sent_since(at_s))) <= 1
    wait_until(lambda: is_readable(patient.backend), "the delayed states")


def test_a_control_thread_that_stops_for_300_ms_leaves_the_arm_holding_where_it_was(
    arm: Arm, nuc: FakeNuc, caplog: pytest.LogCaptureFixture
) -> None:
    seen = arm.read().O_T_EE
    arm.send(step(0.0, 0.25, 0.0))  # farther than the arm gets in 300 ms
    wait_until(lambda: "no command for" in caplog.text, "the hold")
    held = arm.read().O_T_EE
    at_s = time.monotonic() + 0.06
    time.sleep(0.3)
    sent = [each.O_T_EE for each in nuc.sent_since(at_s)]
    np.testing.assert_array_equal(sent, [sent[0]] * len(sent))
    np.testing.assert_allclose(sent[0][:3, 3], held[:3, 3], atol=0.02)
    assert 0.05 < sent[0][1, 3] - seen[1, 3] < 0.22
    assert caplog.text.count("no command for") == 1
    assert nuc.starts == 1
    arm.move()  # and it goes on when the thread does


def test_stop_holds_the_measured_pose_once_and_nothing_that_is_not_finite_replaces_it(arm: Arm, nuc: FakeNuc) -> None:
    arm.read()
    arm.send(step(0.0, 0.05, 0.0))
    time.sleep(0.05)
    arm.backend.stop()
    at_s = time.monotonic() + 0.02
    for _ in range(10):
        arm.backend.stop()  # again and again, it would follow whatever pushes the arm
        time.sleep(0.02)
    arm.read()
    with pytest.raises(RobotError, match="not finite"):
        arm.backend.send_command(step(np.nan, 0.0, 0.0))
    time.sleep(0.1)
    assert len(goals(nuc.sent_since(at_s))) == 1


def test_a_deoxys_that_adds_absolute_goals_to_the_pose_is_found_out_at_once(nuc: FakeNuc) -> None:
    nuc.adds_absolute_goals = True
    arm = Arm(nuc)
    before = nuc.O_T_EE
    with pytest.raises(RobotFaultError, match=r"told to hold.*older than its fix of absolute goals"):
        arm.backend.connect()
    time.sleep(0.2)
    assert sum(each.termination for each in nuc.sent) == 1
    assert nuc.sent[-1].termination
    assert np.linalg.norm(nuc.O_T_EE[:3, 3] - before[:3, 3]) < 0.1


def test_an_arm_that_was_pushed_away_while_nothing_controlled_it_is_not_pulled_back(nuc: FakeNuc) -> None:
    wait_until(lambda: nuc.starts == 1, "the control process, which now knows the first pose and no other")
    time.sleep(0.05)
    first = nuc.O_T_EE
    nuc.q = np.array(START_Q) + np.array([0.3, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0])
    pushed = nuc.O_T_EE
    push_m = np.linalg.norm(pushed[:3, 3] - first[:3, 3])
    arm = Arm(nuc)
    arm.backend.connect()
    goals = [each for each in nuc.sent if each.controller == "OSC_POSE"]
    for each in goals:
        if each.is_delta:  # from a pose that the controller measured before the push, for one period
            inner = schema().FrankaOSCPoseControllerMessage()
            assert each.message.control_msg.Unpack(inner)
            assert max(*inner.translational_stiffness, *inner.rotational_stiffness) <= 1.0
        else:
            assert np.linalg.norm(each.O_T_EE[:3, 3] - pushed[:3, 3]) < 0.5 * push_m
    arm.backend.close()


def test_a_fault_of_the_gripper_stops_the_arm_and_is_recovered_with_it(nuc: FakeNuc) -> None:
    gripper = StubGripper()
    arm = Arm(nuc, gripper)
    arm.backend.connect()
    for width in (0.08, 0.08, 0.03, 0.03):
        arm.send(step(0.0, 0.0, 0.0, width=width))
    assert gripper.widths == [0.08, 0.03]
    assert arm.read().gripper_width == 0.03
    at_s = time.monotonic()
    gripper.fault = "over-current. Free the fingers."
    assert arm.fault() == "gripper: over-current. Free the fingers."
    arm.assert_ended_and_silent(at_s)
    assert gripper.recovered == 0
    wait_until(lambda: nuc.starts == 2, "auto_arm.sh")
    arm.assert_recovers()
    assert gripper.recovered >= 1
    arm.backend.close()


def test_a_thread_that_fails_stops_the_arm(arm: Arm, nuc: FakeNuc, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(timeout_s: float) -> list[object]:
        raise OSError("a broken cable, say")

    at_s = time.monotonic()
    monkeypatch.setattr(arm.backend._client._link, "receive", fail)
    assert "a broken cable" in arm.fault()
    arm.assert_ended_and_silent(at_s)
    with pytest.raises(RobotFaultError, match="Restart the actor"):
        arm.backend.recover()


def test_too_much_force_in_a_reset_stops_it(arm: Arm, nuc: FakeNuc) -> None:
    nuc.force_n = -45.0
    at_s = time.monotonic()
    with pytest.raises(RobotFaultError, match=r"45 N press on the hand.*40 N"):
        arm.backend.reset(PLACEMENT)
    arm.assert_ended_and_silent(at_s)


def test_a_reset_that_does_not_arrive_says_by_how_much(arm: Arm, nuc: FakeNuc, monkeypatch: pytest.MonkeyPatch) -> None:
    nuc.holds_joints = True
    monkeypatch.setattr(reset, "_JOINT_MOTION_S", 0.3)
    with pytest.raises(RobotError, match=r"has not reached deoxys\.home_q.*misses \[.*rad"):
        arm.backend.reset(PLACEMENT)
    arm.move()  # it holds, and obeys
    monkeypatch.setattr(reset, "_EXTRA_S", 0.3)
    nuc.stops_short_m = 0.2
    with pytest.raises(RobotError, match=r"has not arrived: after .* mm and .* rad away \(limits"):
        arm.backend.reset(PLACEMENT)


def test_an_arm_that_friction_stops_short_of_its_goal_still_arrives(arm: Arm, nuc: FakeNuc) -> None:
    nuc.stops_short_m = 0.008
    target = apply_delta(nuc.O_T_EE, np.array([0.0, 0.05, -0.02]), np.array([0.0, 0.0, 0.1]))
    reset.ResetMotion(arm.backend._client, arm.options, backend._twist).move_to(target)
    assert np.linalg.norm(nuc.O_T_EE[:3, 3] - target[:3, 3]) < 0.004


def test_a_control_process_that_dies_in_a_reset_ends_it(arm: Arm, nuc: FakeNuc) -> None:
    q = nuc.q.copy()

    def is_moving() -> bool:
        return bool(np.abs(nuc.q - q).max() > 0.05)

    def kill() -> None:
        wait_until(is_moving, "the reset to move the arm")
        nuc.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    at_s = time.monotonic()
    with pytest.raises(RobotFaultError, match="nothing has come from the NUC"):
        arm.backend.reset(PLACEMENT)
    killer.join()
    arm.assert_ended_and_silent(at_s)


def test_what_stands_in_the_way_of_connecting_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    nuc = FakeNuc(tmp_path)
    nuc.garbles_states = True
    arm = Arm(nuc)
    with pytest.raises(RobotError, match=r"not Deoxys' state.*NUC\.PUB_PORT.*gripper"):
        arm.backend.connect()
    nuc.garbles_states, nuc.drops_states = False, True
    with pytest.raises(RobotError, match=r"no state has come.*auto_arm\.sh.*NUC\.IP"):
        arm.backend.connect()
    assert nuc.sent == []  # nothing is commanded to an arm that is not seen
    nuc.close()
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # or the last connections still bar the port
        holder.bind(("0.0.0.0", nuc.command_port))
        holder.listen()
        with pytest.raises(RobotError, match=rf"port {nuc.command_port}.*ss -ltnp"):
            arm.backend.connect()
