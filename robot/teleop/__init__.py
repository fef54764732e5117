"""The input devices a person can drive with, by name. A driver is imported when it is chosen, and not before."""

import importlib
from typing import cast

from robot.errors import MissingDependencyError, unknown_name
from robot.interface import TeleopDevice

TELEOP_DEVICES = {
    "fake": "robot.teleop.fake:FakeDevice",
    "gamepad": "robot.teleop.gamepad:GamepadDevice",
    "keyboard": "robot.teleop.keyboard:KeyboardDevice",
    "replay": "robot.teleop.device_log:ReplayDevice",
}


def make_device(name: str, **options: object) -> TeleopDevice:
    """Return the device `name`, not yet connected; options go to its constructor.

    Raises RobotConfigError for an unknown name (it lists the valid ones) and MissingDependencyError, with the install
    command, when the device's own packages are not installed.
    """
    if name not in TELEOP_DEVICES:
        raise unknown_name("input device", name, TELEOP_DEVICES)
    module_name, _, class_name = TELEOP_DEVICES[name].partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "robot":
            raise  # our own file is missing: a broken checkout, which no package can mend
        raise MissingDependencyError(
            f"input device {name!r} needs the Python package {error.name!r}, which is not installed. "
            "Install it from the project's folder: pip install -e '.[robot]' -c constraints.txt"
        ) from error
    return cast(TeleopDevice, getattr(module, class_name)(**options))
