"""Errors of robot drivers. Messages carry values, units, the limit, the likely cause and the remedy."""

import difflib
from collections.abc import Iterable


class RobotError(Exception):
    """Base of everything a robot driver raises."""


class RobotConfigError(RobotError):
    """A robot, scene or limit was configured with a value that makes no sense."""


class MissingDependencyError(RobotError):
    """An optional package that a driver needs is not installed."""


class InterruptionError(RobotError):
    """The robot cannot go on now, and nothing is broken for good. The arm has been told to hold."""


class RobotFaultError(InterruptionError):
    """The robot stopped for a reason that a person has to see first; it does not move again before `recover`."""


class OutageError(InterruptionError):
    """What is known of the robot or its surroundings is missing or too old to act on. It may come back by itself."""


class StaleStateError(OutageError):
    """The robot state is too old to act on."""

    def __init__(self, age_s: float, limit_s: float) -> None:
        self.age_s = age_s
        super().__init__(
            f"robot state is {age_s * 1e3:.0f} ms old (limit {limit_s * 1e3:.0f} ms). Is the robot's control process "
            "running and the arm unlocked? The arm has been told to hold."
        )


class CameraStaleError(OutageError):
    """A camera's newest frame is too old to act on."""

    def __init__(self, camera: str, age_s: float, limit_s: float) -> None:
        self.camera, self.age_s = camera, age_s
        super().__init__(
            f"camera {camera!r}: its newest image is {age_s * 1e3:.0f} ms old (limit {limit_s * 1e3:.0f} ms). Is its "
            "cable in, and nothing else using it? The arm has been told to hold."
        )


def unknown_name(kind: str, name: str, valid: Iterable[str]) -> RobotConfigError:
    """Return the error for a name that does not exist: the nearest one first, then all valid ones."""
    names = sorted(valid)
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return RobotConfigError(f"unknown {kind} {name!r}.{hint} Valid: {', '.join(names)}.")
