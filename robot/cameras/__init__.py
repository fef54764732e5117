"""The cameras this system can read, by driver. A driver is imported when it is chosen, and not before."""

import importlib
from typing import cast

from robot.errors import MissingDependencyError, unknown_name
from robot.interface import Camera, RobotBackend

CAMERAS = {
    "fake": "robot.cameras.fake:FakeCamera",
    "twin": "robot.cameras.twin:TwinCamera",
}


def make_camera(
    driver: str, name: str, *, device: str = "", backend: RobotBackend | None = None, **options: object
) -> Camera:
    """Return the camera `name` ("wrist" or "third_person") read by `driver`, not yet connected.

    device: which one, as the driver names it (serial number, path); empty for its only one. backend: the robot, which a
    simulated camera is part of; others ignore it. options go to the driver's constructor.
    Raises RobotConfigError for an unknown driver or name (it lists the valid ones) or a backend that the driver cannot
    see through, and MissingDependencyError, with the install command, when the driver's own packages are not installed.
    """
    if driver not in CAMERAS:
        raise unknown_name("camera driver", driver, CAMERAS)
    module_name, _, class_name = CAMERAS[driver].partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "robot":
            raise  # our own file is missing: a broken checkout, which no package can mend
        raise MissingDependencyError(
            f"camera driver {driver!r} needs the Python package {error.name!r}, which is not installed. "
            "Install it from the project's folder: pip install -e '.[robot]' -c constraints.txt"
        ) from error
    return cast(Camera, getattr(module, class_name)(name, device=device, backend=backend, **options))
