"""The robots this system can drive, by name. A backend is imported when it is chosen, and not before."""

from typing import cast

from robot.interface import RobotBackend
from robot.registry import resolve

BACKENDS = {
    "deoxys": "robot.backends.deoxys.backend:DeoxysBackend",
    "fake": "robot.backends.fake:FakeBackend",
    "twin": "robot.backends.twin.backend:TwinBackend",
}
SIMULATED_BACKENDS = ("fake", "twin")


def make_backend(name: str, scene: str, **options: object) -> RobotBackend:
    """Return the backend `name`, not yet connected, set up for `scene` (see robot/scenes.py).

    options go to the backend's constructor. A simulator also satisfies SimulatedBackend.
    Raises RobotConfigError for an unknown name or scene (it lists the valid ones) and MissingDependencyError, with
    the install command, when the backend's own packages are not installed.
    """
    extra = "sim" if name in SIMULATED_BACKENDS else "robot"
    driver_class = resolve("robot backend", BACKENDS, name, extra=extra)
    return cast(RobotBackend, driver_class(scene, **options))
