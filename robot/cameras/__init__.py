"""The cameras this system can read, by driver. A driver is imported when it is chosen, and not before."""

import inspect
from typing import cast

from robot.errors import RobotConfigError
from robot.interface import Camera, RobotBackend
from robot.registry import resolve

CAMERAS = {
    "fake": "robot.cameras.fake:FakeCamera",
    "opencv": "robot.cameras.opencv:OpenCvCamera",
    "realsense": "robot.cameras.realsense:RealSenseCamera",
    "room": "robot.cameras.room:RoomCamera",
    "twin": "robot.cameras.twin:TwinCamera",
    "zed_sdk": "robot.cameras.zed_sdk:ZedSdkCamera",
    "zed_uvc": "robot.cameras.zed_uvc:ZedUvcCamera",
}


def make_camera(
    driver: str, name: str, *, device: str = "", backend: RobotBackend | None = None, **options: object
) -> Camera:
    """Return the camera `name` ("wrist" or "third_person") read by `driver`, not yet connected.

    device: which one, as the driver names it (serial number, path); empty for its only one. backend: the robot, which a
    simulated camera is part of; others ignore it. options go to the driver's constructor.
    Raises RobotConfigError for an unknown driver or name (it lists the valid ones), an option that the driver does not
    have, or a backend that it cannot see through, and MissingDependencyError, with the install command, when the
    driver's own packages are not installed.
    """
    driver_class = resolve("camera driver", CAMERAS, driver, extra="robot")
    valid = set(inspect.signature(driver_class).parameters) - {"name", "device", "backend"}
    for option in options:
        if option not in valid:
            raise RobotConfigError(
                f"the camera driver {driver!r} has no {option}. It has: {', '.join(sorted(valid)) or 'no options'}."
            )
    return cast(Camera, driver_class(name, device=device, backend=backend, **options))
