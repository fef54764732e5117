"""The robots this system can drive, by name. A backend is imported when it is chosen, and not before."""

from typing import cast

from robot.interface import RobotBackend
from robot.registry import resolve

BACKENDS = {
    "fake": "robot.backends.fake:FakeBackend",
    "twin": "robot.backends.twin.backend:TwinBackend",
}


def make_backend(name: str, scene: str, **options: object) -> RobotBackend:
    """Return the backend `name`, not yet connected, set up for `scene` (see robot/scenes.py).

    options go to the backend's constructor. A simulator also satisfies SimulatedBackend.
    Raises RobotConfigError for an unknown name or scene (it lists the valid ones) and MissingDependencyError, with
    the install command, when the backend's own packages are not installed.
    """
    driver_class = resolve("robot backend", BACKENDS, name, extra="sim")
    return cast(RobotBackend, driver_class(scene, **options))
