"""The input devices a person can drive with, by name. A driver is imported when it is chosen, and not before."""

from typing import cast

from robot.interface import TeleopDevice
from robot.registry import resolve

TELEOP_DEVICES = {
    "fake": "robot.teleop.fake:FakeDevice",
    "gamepad": "robot.teleop.gamepad:GamepadDevice",
    "keyboard": "robot.teleop.keyboard:KeyboardDevice",
    "replay": "robot.teleop.device_log:ReplayDevice",
    "spacemouse": "robot.teleop.spacemouse:SpaceMouseDevice",
}


def make_device(name: str, **options: object) -> TeleopDevice:
    """Return the device `name`, not yet connected; options go to its constructor.

    Raises RobotConfigError for an unknown name (it lists the valid ones) and MissingDependencyError, with the install
    command, when the device's own packages are not installed.
    """
    driver_class = resolve("input device", TELEOP_DEVICES, name, extra="robot")
    return cast(TeleopDevice, driver_class(**options))
