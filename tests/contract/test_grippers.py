"""What every gripper promises: robot.interface.Gripper. Each driver works on a model of its device."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from robot.errors import RobotConfigError, RobotError
from robot.grippers import GRIPPERS, make_gripper
from robot.grippers.fake import FakeGripper
from robot.grippers.franka_hand import FrankaHand
from robot.grippers.options import GripperOptions
from robot.grippers.robotiq import RobotiqGripper
from robot.interface import Gripper
from tests.franka_hand_node import FrankaHandNode
from tests.robotiq_device import RobotiqDevice, wait_until

TOLERANCE_M = 0.002


@dataclass
class Attached:
    """A gripper and what happens to it: an object comes between the fingers, it breaks, and it is mended."""

    gripper: Gripper
    put: Callable[[float], None]  # an object of this width, m
    width: Callable[[], float]  # where the fingers really are, m
    commands: Callable[[], int]  # how many it got that move the fingers
    fail: Callable[[], None]
    mend: Callable[[], None]
    detach: Callable[[], None]


def attach_fake(tmp_path: Path) -> Attached:
    gripper = FakeGripper(GripperOptions(speed_m_s=1.0))

    def fail() -> None:
        gripper.fault, gripper.recovery_error = "it is broken. Mend it.", "it is still broken"

    def mend() -> None:
        gripper.recovery_error = ""

    return Attached(
        gripper,
        lambda width: setattr(gripper, "object_width", width),
        lambda: gripper.read().width,
        lambda: len(gripper.widths),
        fail,
        mend,
        gripper.close,
    )


def attach_robotiq(tmp_path: Path) -> Attached:
    device = RobotiqDevice(tmp_path, open_end=6, closed_end=229, hurry=20.0)

    def put(width: float) -> None:
        device.object_at = round(229 - width / 0.085 * 223)

    return Attached(
        RobotiqGripper(GripperOptions(driver="robotiq", device=str(device.port))),
        put,
        lambda: (229 - device.position) / 223 * 0.085,
        lambda: sum(write.rGTO for write in device.writes) + device.num_activations,
        lambda: setattr(device, "is_silent", True),
        lambda: setattr(device, "is_silent", False),
        device.close,
    )


def attach_franka_hand(tmp_path: Path) -> Attached:
    node = FrankaHandNode(tmp_path)
    return Attached(
        FrankaHand(GripperOptions(driver="franka_hand"), network=node.network),
        lambda width: setattr(node, "object_width", width),
        lambda: node.width,
        lambda: len(node.received),
        lambda: setattr(node, "is_silent", True),
        lambda: setattr(node, "is_silent", False),
        node.close,
    )


ATTACH = {"fake": attach_fake, "franka_hand": attach_franka_hand, "robotiq": attach_robotiq}


def test_every_gripper_is_tested() -> None:
    assert set(ATTACH) == set(GRIPPERS)


@pytest.fixture(params=sorted(ATTACH))
def unconnected(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Attached]:
    monkeypatch.setattr("robot.grippers.franka_hand._RECOVERY_TIMEOUT_S", 0.3)
    monkeypatch.setattr("robot.grippers.franka_hand._STILL_AFTER_S", 0.08)  # the model hurries
    monkeypatch.setattr("robot.grippers.franka_hand._REPEAT_S", 0.12)
    attached = ATTACH[request.param](tmp_path)
    yield attached
    attached.gripper.close()
    attached.detach()


@pytest.fixture
def attached(unconnected: Attached) -> Attached:
    unconnected.gripper.connect()
    return unconnected


def go(attached: Attached, width: float) -> None:
    """Move there and wait for the end."""
    attached.gripper.move(width)
    wait_until(lambda: not attached.gripper.read().is_moving, f"the end of a move to {width} m")


def test_the_interface_is_satisfied(unconnected: Attached) -> None:
    gripper: Gripper = unconnected.gripper
    assert 0.05 < gripper.max_width < 0.1


def test_before_connect_there_is_nothing_to_read_or_move(unconnected: Attached) -> None:
    for use in (unconnected.gripper.read, lambda: unconnected.gripper.move(0.0), unconnected.gripper.recover):
        with pytest.raises(RobotError, match="not connected"):
            use()
    unconnected.gripper.stop()
    unconnected.gripper.close()


def test_a_connected_gripper_is_at_rest_and_its_state_fresh(attached: Attached) -> None:
    first = attached.gripper.read()
    assert first.fault == ""
    assert not first.is_moving
    assert not first.is_holding
    assert first.width == pytest.approx(attached.width(), abs=TOLERANCE_M)
    wait_until(
        lambda: attached.gripper.read().received_monotonic_s > first.received_monotonic_s, "a newer state", limit_s=5.0
    )


def test_it_goes_to_the_width_in_metres(attached: Attached) -> None:
    largest = attached.gripper.max_width
    for width in (0.0, largest / 2, largest / 4, largest):
        go(attached, width)
        assert attached.gripper.read().width == pytest.approx(width, abs=TOLERANCE_M)
        assert attached.width() == pytest.approx(width, abs=TOLERANCE_M)
    assert not attached.gripper.read().is_holding


def test_a_width_beyond_its_stroke_means_the_end_of_it(attached: Attached) -> None:
    go(attached, -0.5)
    assert attached.width() == pytest.approx(0.0, abs=TOLERANCE_M)
    go(attached, 0.5)
    assert attached.width() == pytest.approx(attached.gripper.max_width, abs=TOLERANCE_M)


@pytest.mark.parametrize("width", [float("nan"), float("inf"), float("-inf")])
def test_a_width_that_is_no_number_is_refused(attached: Attached, width: float) -> None:
    before = attached.commands()
    with pytest.raises(RobotError, match="finite"):
        attached.gripper.move(width)
    time.sleep(0.1)
    assert attached.commands() == before


def test_the_newest_width_wins(attached: Attached) -> None:
    for width in (0.0, 0.02, 0.06, 0.01, 0.05):
        attached.gripper.move(width)
    wait_until(lambda: not attached.gripper.read().is_moving, "the end of the moves")
    assert attached.width() == pytest.approx(0.05, abs=TOLERANCE_M)


@pytest.mark.parametrize("unconnected", ["franka_hand", "robotiq"], indirect=True)  # the fake has nothing behind it
def test_the_same_width_again_is_not_commanded_again(attached: Attached) -> None:
    go(attached, 0.03)
    before = attached.commands()
    for _ in range(20):
        attached.gripper.move(0.03)
        time.sleep(0.01)
    assert attached.commands() == before


def test_it_grips_what_is_in_between_and_lets_go(attached: Attached) -> None:
    attached.put(0.04)
    go(attached, 0.0)
    state = attached.gripper.read()
    assert state.is_holding
    assert state.width == pytest.approx(0.04, abs=TOLERANCE_M)
    go(attached, attached.gripper.max_width)
    state = attached.gripper.read()
    assert not state.is_holding
    assert state.width == pytest.approx(attached.gripper.max_width, abs=TOLERANCE_M)


def test_stopping_does_not_let_go(attached: Attached) -> None:
    attached.put(0.04)
    go(attached, 0.0)
    before = attached.commands()
    attached.gripper.stop()
    from_another_thread = threading.Thread(target=attached.gripper.stop)
    from_another_thread.start()
    from_another_thread.join()
    time.sleep(0.2)
    assert attached.commands() == before
    assert attached.gripper.read().is_holding
    assert attached.width() == pytest.approx(0.04, abs=TOLERANCE_M)
    go(attached, attached.gripper.max_width)
    assert attached.width() == pytest.approx(attached.gripper.max_width, abs=TOLERANCE_M)


def test_a_fault_latches_until_it_is_recovered_from(attached: Attached) -> None:
    gripper = attached.gripper
    go(attached, 0.05)
    before = attached.commands()
    attached.fail()
    wait_until(lambda: gripper.read().fault != "", "the fault")
    gripper.move(0.0)
    gripper.stop()
    with pytest.raises(RobotError):
        gripper.recover()
    gripper.move(0.0)
    attached.mend()
    time.sleep(0.2)
    gripper.move(0.0)
    assert gripper.read().fault, "it went away by itself"
    gripper.recover()
    assert gripper.read().fault == ""
    time.sleep(0.2)
    assert attached.commands() == before, "a width of before the recovery was commanded"
    assert attached.width() == pytest.approx(0.05, abs=TOLERANCE_M)
    go(attached, 0.03)
    assert attached.width() == pytest.approx(0.03, abs=TOLERANCE_M)


def test_recovering_from_nothing_does_nothing(attached: Attached) -> None:
    before = attached.commands()
    attached.gripper.recover()
    time.sleep(0.1)
    assert attached.commands() == before


def test_closed_twice_it_leaves_no_thread_and_connects_again(attached: Attached) -> None:
    names = {thread.name for thread in threading.enumerate()}
    assert isinstance(attached.gripper, FakeGripper) or names & {"Robotiq gripper", "Franka Hand"}
    attached.gripper.close()
    attached.gripper.close()
    assert not {thread.name for thread in threading.enumerate()} & {"Robotiq gripper", "Franka Hand"}
    with pytest.raises(RobotError, match="not connected"):
        attached.gripper.read()
    attached.gripper.connect()
    go(attached, 0.03)
    assert attached.width() == pytest.approx(0.03, abs=TOLERANCE_M)


def test_grippers_are_made_by_name(tmp_path: Path) -> None:
    assert make_gripper(GripperOptions(driver="none")) is None
    assert isinstance(make_gripper(GripperOptions(driver="robotiq"), network=None), RobotiqGripper)
    with pytest.raises(RobotConfigError, match=r"Did you mean 'robotiq'\?"):
        make_gripper(GripperOptions(driver="robotik"))
    with pytest.raises(RobotConfigError, match="Deoxys"):
        make_gripper(GripperOptions(driver="franka_hand"))
