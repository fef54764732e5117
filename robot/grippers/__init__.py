"""The grippers this system can drive, by name. A driver is imported when it is chosen, and not before."""

from typing import cast

from robot.grippers.options import GripperOptions
from robot.interface import Gripper
from robot.registry import resolve

GRIPPERS = {
    "fake": "robot.grippers.fake:FakeGripper",
    "franka_hand": "robot.grippers.franka_hand:FrankaHand",
    "robotiq": "robot.grippers.robotiq:RobotiqGripper",
}


def make_gripper(options: GripperOptions, **context: object) -> Gripper | None:
    """Return the gripper that `options` names, not yet connected; None for "none".

    context: what a gripper behind the arm's own controller needs of it; the others ignore it.
    Raises RobotConfigError for an unknown name (it lists the valid ones) and MissingDependencyError, with the install
    command, when the driver's own packages are not installed.
    """
    if options.driver == "none":
        return None
    driver_class = resolve("gripper", {**GRIPPERS, "none": ""}, options.driver, extra="robot")
    return cast(Gripper, driver_class(options, **context))
