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
    """Speed of the width. Robotiq 2F-85: 0.02 to 0.15 m/s; Franka Hand: up to 0.1 m/s."""

    def __post_init__(self) -> None:
        for name in ("force_n", "speed_m_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0.0):
                raise RobotConfigError(f"gripper.{name} = {value} must be positive and finite")
