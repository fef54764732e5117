"""The robots this system can drive, by name. A backend is imported when it is chosen, and not before."""

import importlib
from typing import cast

from robot.errors import MissingDependencyError, unknown_name
from robot.interface import RobotBackend

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
    if name not in BACKENDS:
        raise unknown_name("robot backend", name, BACKENDS)
    module_name, _, class_name = BACKENDS[name].partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "robot":
            raise  # our own file is missing: a broken checkout, which no package can mend
        raise MissingDependencyError(
            f"backend {name!r} needs the Python package {error.name!r}, which is not installed. "
            "Install it from the project's folder: pip install -e '.[sim]' -c constraints.txt"
        ) from error
    return cast(RobotBackend, getattr(module, class_name)(scene, **options))
