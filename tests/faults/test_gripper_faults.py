"""What a gripper is told after something broke, read from the model of the device: nothing, until a person recovers."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from robot.errors import RobotError
from robot.grippers.franka_hand import FrankaHand
from robot.grippers.options import GripperOptions
from robot.grippers.robotiq import RobotiqGripper
from tests.franka_hand_node import FrankaHandNode
from tests.robotiq_device import RobotiqDevice, wait_until

CLOSED, OPEN = 0.0, 0.085


@pytest.fixture
def device(tmp_path: Path) -> Iterator[RobotiqDevice]:
    device = RobotiqDevice(tmp_path, hurry=20.0)
    yield device
    device.close()


@pytest.fixture
def robotiq(device: RobotiqDevice) -> Iterator[RobotiqGripper]:
    gripper = RobotiqGripper(GripperOptions(driver="robotiq", device=str(device.port)))
    gripper.connect()
    yield gripper
    gripper.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[FrankaHandNode]:
    node = FrankaHandNode(tmp_path)
    yield node
    node.close()


@pytest.fixture
def hand(node: FrankaHandNode, monkeypatch: pytest.MonkeyPatch) -> Iterator[FrankaHand]:
    monkeypatch.setattr("robot.grippers.franka_hand._RECOVERY_TIMEOUT_S", 0.3)
    monkeypatch.setattr("robot.grippers.franka_hand._STILL_AFTER_S", 0.08)  # the model hurries
    monkeypatch.setattr("robot.grippers.franka_hand._REPEAT_S", 0.12)
    gripper = FrankaHand(GripperOptions(driver="franka_hand"), network=node.network)
    gripper.connect()
    yield gripper
    gripper.close()


def grip(gripper: RobotiqGripper | FrankaHand) -> None:
    gripper.move(CLOSED)
    wait_until(lambda: gripper.read().is_holding and not gripper.read().is_moving, "the grip")


def wait_for_fault(gripper: RobotiqGripper | FrankaHand) -> str:
    wait_until(lambda: gripper.read().fault != "", "the fault")
    return gripper.read().fault


def insist(gripper: RobotiqGripper | FrankaHand) -> None:
    """Ask for motion again and again, as a control loop would that does not look at faults."""
    for width in (OPEN, CLOSED, 0.02, OPEN):
        gripper.move(width)
        gripper.stop()
        gripper.move(width)
        time.sleep(0.04)


# Robotiq 2F-85


def test_a_silent_gripper_gets_no_command_before_recovery_and_keeps_its_hold(
    device: RobotiqDevice, robotiq: RobotiqGripper
) -> None:
    device.object_at = 120
    grip(robotiq)
    told = list(device.writes)
    device.is_silent = True
    assert "no answer for" in wait_for_fault(robotiq)
    insist(robotiq)
    with pytest.raises(RobotError, match="does not answer"):
        robotiq.recover()
    device.is_silent = False
    age_s = robotiq.read().received_monotonic_s
    wait_until(lambda: robotiq.read().received_monotonic_s > age_s, "a new state")
    insist(robotiq)
    assert robotiq.read().fault
    assert device.writes == told
    robotiq.recover()
    time.sleep(0.1)
    assert device.writes == told, "an active gripper was activated again, and what it held fell"
    assert robotiq.read().is_holding
    robotiq.move(OPEN)
    wait_until(lambda: device.position == device.open_end, "the opening")
    assert [(write.rACT, write.rGTO, write.rPR) for write in device.writes[len(told) :]] == [(1, 1, 0)]


def test_one_garbled_answer_is_nothing_and_many_are_silence(device: RobotiqDevice, robotiq: RobotiqGripper) -> None:
    device.garbled_answers = 1
    wait_until(lambda: device.garbled_answers == 0, "the garbled answer")
    robotiq.move(CLOSED)
    wait_until(lambda: device.position == device.closed_end, "the closing")
    assert robotiq.read().fault == ""
    told = list(device.writes)
    device.garbled_answers = 10**6
    wait_for_fault(robotiq)
    insist(robotiq)
    assert device.writes == told
    device.garbled_answers = 0
    robotiq.recover()
    assert device.writes == told


def test_a_command_whose_receipt_is_lost_is_sent_again(device: RobotiqDevice, robotiq: RobotiqGripper) -> None:
    for _ in range(3):  # sooner or later it hits the receipt and not a status
        device.garbled_answers = 2
        robotiq.move(CLOSED)
        wait_until(lambda: device.position == device.closed_end, "the closing")
        robotiq.move(OPEN)
        wait_until(lambda: device.position == device.open_end, "the opening")
    assert robotiq.read().fault == ""


@pytest.mark.parametrize("code", [8, 10, 11, 12, 13, 14, 15])
def test_a_fault_of_the_gripper_ends_its_commands_and_recovery_alone_activates(
    device: RobotiqDevice, robotiq: RobotiqGripper, code: int
) -> None:
    told = len(device.writes)
    device.inject_fault(code)
    assert f"0x{code:02X}" in wait_for_fault(robotiq)
    insist(robotiq)
    assert device.writes[told:] == []
    assert device.num_activations == 1
    if code == 8:  # gone when it has cooled down, and not before
        with pytest.raises(RobotError, match="hotter"):
            robotiq.recover()
        device.inject_fault(0)
    robotiq.recover()
    actions = [(write.rACT, write.rGTO) for write in device.writes[told:]]
    assert actions == ([] if code == 8 else [(0, 0), (1, 0)])
    assert robotiq.read().fault == ""
    robotiq.move(CLOSED)
    wait_until(lambda: device.position == device.closed_end, "the closing")


def test_an_overheated_gripper_does_not_go_on_by_itself_when_it_has_cooled(tmp_path: Path) -> None:
    device = RobotiqDevice(tmp_path, hurry=1.0)
    device.activate()
    robotiq = RobotiqGripper(GripperOptions(driver="robotiq", device=str(device.port), speed_m_s=0.02, calibrate=False))
    try:
        robotiq.connect()
        robotiq.move(CLOSED)
        wait_until(lambda: robotiq.read().width < 0.08, "the first millimetres")
        device.inject_fault(8)
        wait_for_fault(robotiq)
        wait_until(lambda: device.writes[-1].rGTO == 0, "the stop")
        device.inject_fault(0)
        position = device.position
        time.sleep(0.5)
        assert device.position == position
        assert device.writes[-1].rACT == 1
    finally:
        robotiq.close()
        device.close()


def test_a_fault_that_stays_is_not_recovered_from(device: RobotiqDevice, robotiq: RobotiqGripper) -> None:
    device.lasting_fault = 12
    device.inject_fault(12)
    wait_for_fault(robotiq)
    with pytest.raises(RobotError, match="0x0C"):
        robotiq.recover()
    assert robotiq.read().fault
    told = len(device.writes)
    insist(robotiq)
    assert device.writes[told:] == []


def test_an_unplugged_adapter_is_opened_again_and_only_listened_to(
    device: RobotiqDevice, robotiq: RobotiqGripper
) -> None:
    device.object_at = 120
    grip(robotiq)
    told = list(device.writes)
    device.unplug()
    assert "is gone" in wait_for_fault(robotiq)
    insist(robotiq)
    with pytest.raises(RobotError, match="does not exist"):
        robotiq.recover()
    device.replug()
    age_s = robotiq.read().received_monotonic_s
    wait_until(lambda: robotiq.read().received_monotonic_s > age_s, "a state through the new port")
    insist(robotiq)
    assert "is gone" in robotiq.read().fault
    robotiq.recover()
    assert device.writes == told
    assert robotiq.read().is_holding


def test_a_gripper_whose_power_came_back_is_not_activated_by_a_command(
    device: RobotiqDevice, robotiq: RobotiqGripper
) -> None:
    for _ in range(20):  # a stream of commands, as from a control loop, across the interruption
        robotiq.move(CLOSED)
        robotiq.move(0.04)
        time.sleep(0.005)
    told = len(device.writes)
    device.power_cycle()
    robotiq.move(OPEN)
    assert "activation" in wait_for_fault(robotiq)
    insist(robotiq)
    assert device.writes[told:] == []
    assert device.num_activations == 1
    robotiq.recover()
    assert device.num_activations == 2


def test_a_stop_in_mid_motion_leaves_the_fingers_there(tmp_path: Path) -> None:
    device = RobotiqDevice(tmp_path, hurry=1.0)
    device.activate()
    robotiq = RobotiqGripper(GripperOptions(driver="robotiq", device=str(device.port), speed_m_s=0.02, calibrate=False))
    try:
        robotiq.connect()
        robotiq.move(CLOSED)
        wait_until(lambda: robotiq.read().width < 0.08, "the first millimetres")
        robotiq.stop()
        wait_until(lambda: device.writes[-1].rGTO == 0, "the stop")
        wait_until(lambda: not robotiq.read().is_moving, "rest")
        position = device.position
        robotiq.stop()
        time.sleep(0.2)
        assert device.position == position < device.closed_end
        robotiq.move(CLOSED)
        wait_until(lambda: device.position > position, "the rest of the way")
    finally:
        robotiq.close()
        device.close()


def test_neither_reading_nor_moving_waits_for_a_silent_gripper(device: RobotiqDevice, robotiq: RobotiqGripper) -> None:
    device.is_silent = True
    begun_s = time.monotonic()
    for _ in range(1000):  # each of them would take 80 ms and more, if it waited for an answer
        robotiq.move(CLOSED)
        robotiq.move(OPEN)
        robotiq.read()
        robotiq.stop()
    assert time.monotonic() - begun_s < 20.0


def test_closing_does_not_wait_for_an_activation(device: RobotiqDevice, robotiq: RobotiqGripper) -> None:
    device.never_activates = True
    device.inject_fault(14)
    wait_for_fault(robotiq)
    errors: list[RobotError] = []

    def recover() -> None:
        try:
            robotiq.recover()
        except RobotError as error:
            errors.append(error)

    thread = threading.Thread(target=recover)
    thread.start()
    wait_until(lambda: device.num_activations == 2, "the activation")
    robotiq.close()
    thread.join(5.0)
    assert not thread.is_alive()
    assert "closed" in str(errors[0])


# Franka Hand


def test_a_silent_hand_gets_no_command_before_recovery(node: FrankaHandNode, hand: FrankaHand) -> None:
    node.object_width = 0.03
    grip(hand)
    told = list(node.received)
    node.is_silent = True
    assert "nothing from it" in wait_for_fault(hand)
    insist(hand)
    node.is_silent = False
    time.sleep(0.2)
    insist(hand)
    assert hand.read().fault
    hand.recover()
    time.sleep(0.2)
    assert node.received == told
    assert hand.read().is_holding


def test_a_hand_whose_process_ended_gets_no_command_from_before(node: FrankaHandNode, hand: FrankaHand) -> None:
    hand.move(CLOSED)
    node.kill()
    assert "ended" in wait_for_fault(hand)
    insist(hand)
    with pytest.raises(RobotError, match=r"auto_gripper\.sh"):
        hand.recover()
    told = len(node.received)
    node.start()
    time.sleep(0.5)
    insist(hand)
    assert "ended" in hand.read().fault
    hand.recover()
    time.sleep(0.3)
    assert node.received[told:] == []
    assert node.width == node.max_width


def test_garbled_states_are_dropped_and_too_many_are_silence(node: FrankaHandNode, hand: FrankaHand) -> None:
    node.garbled_states = 3
    wait_until(lambda: node.garbled_states == 0, "the garbled states")
    hand.move(0.05)
    wait_until(lambda: abs(hand.read().width - 0.05) < 0.001, "the move")
    assert hand.read().fault == ""
    node.garbled_states = 10**6
    assert "nothing from it" in wait_for_fault(hand)


def test_a_command_that_the_hands_process_forgot_is_sent_again(node: FrankaHandNode, hand: FrankaHand) -> None:
    node.loses_commands = 2
    hand.move(0.04)
    wait_until(lambda: abs(node.width - 0.04) < 0.001, "the move")
    wait_until(lambda: not hand.read().is_moving, "rest")
    assert [command.kind for command in node.received] == ["Move"] * 3


def test_a_hand_closed_in_steps_closes_all_the_way_and_grips_what_it_meets(
    node: FrankaHandNode, hand: FrankaHand
) -> None:
    for width in (0.06, 0.04, 0.02):
        hand.move(width)
        wait_until(lambda: not hand.read().is_moving, "rest")
        assert node.width == pytest.approx(width, abs=0.002)
        assert not hand.read().is_holding
    hand.move(0.08)
    wait_until(lambda: node.width == pytest.approx(0.08, abs=0.002) and not hand.read().is_moving, "the opening")
    node.object_width = 0.05
    hand.move(0.03)
    wait_until(lambda: hand.read().is_holding and not hand.read().is_moving, "the grip")
    assert [command.kind for command in node.received] == ["Move"] * 5 + ["Grasp"]
    assert node.received[-1].values["force"] == 30.0
    told = len(node.received)
    for width in (0.02, 0.0, 0.0495):
        hand.move(width)
        time.sleep(0.1)
    assert len(node.received) == told, "a hand that grips was told to move, which loosens its grip"


def test_a_stopped_hand_is_never_sent_deoxys_stop(node: FrankaHandNode, hand: FrankaHand) -> None:
    node.object_width = 0.03
    hand.move(CLOSED)
    wait_until(lambda: bool(node.received), "the command")
    hand.stop()
    wait_until(lambda: node.is_grasped, "the end of the motion that had begun")
    hand.stop()
    time.sleep(0.3)
    assert [command.kind for command in node.received] == ["Grasp"]
    assert node.num_homings == 1
    assert hand.read().is_holding


def test_a_port_that_another_client_has_is_named(node: FrankaHandNode, hand: FrankaHand) -> None:
    second = FrankaHand(GripperOptions(driver="franka_hand"), network=node.network)
    with pytest.raises(RobotError, match=str(node.network.gripper_command_port)):
        second.connect()


def test_a_hand_that_was_not_homed_is_refused(node: FrankaHandNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robot.grippers.franka_hand.CONNECT_TIMEOUT_S", 0.5)
    node.max_width = 0.0
    with pytest.raises(RobotError, match="not been homed"):
        FrankaHand(GripperOptions(driver="franka_hand"), network=node.network).connect()
