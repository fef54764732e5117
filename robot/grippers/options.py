"""What can be set on a gripper."""

import math
from dataclasses import dataclass

from robot.errors import RobotConfigError


@dataclass(frozen=True, kw_only=True)
class GripperOptions:
    """The gripper of a robot whose arm does not bring its own."""

    driver: str = "none"
    """Name in robot.grippers: robotiq, franka_hand or fake; none: no gripper, or one that nobody moves."""
    device: str = ""
    """Serial port of a Robotiq, such as /dev/serial/by-id/usb-FTDI_...; empty: the only one that fits."""
    force_n: float = 30.0
    """Largest grip force. Robotiq 2F-85: 20 to 235 N; Franka Hand: up to 70 N."""
    speed_m_s: float = 0.15
    """Speed of the width. Robotiq 2F-85: 0.02 to 0.15 m/s; Franka Hand: up to 0.1 m/s, and slower for more."""
    calibrate: bool = True
    """Robotiq: activate it when it is not, and close and open it fully to measure its ends, unless it says that it
    holds something. False: connecting does not move the fingers, so that a hand keeps what is in it; the gripper must
    have been activated since its power came on, and the next two are its ends."""
    open_position: int = 3
    """Robotiq: where its fingers stop when open, 0 to 255, if not measured. Differs by unit; a calibration logs it."""
    closed_position: int = 228
    """Robotiq: where they stop when closed."""

    def __post_init__(self) -> None:
        for name in ("force_n", "speed_m_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0.0):
                raise RobotConfigError(f"hand.{name} = {value} must be positive and finite")
        if not 0 <= self.open_position < self.closed_position <= 255:
            raise RobotConfigError(
                f"hand.open_position = {self.open_position} and hand.closed_position = {self.closed_position} "
                "must be within 0 to 255, and the open one smaller"
            )
