"""What can be set on an arm behind Deoxys."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from robot.errors import RobotConfigError


@dataclass(frozen=True, kw_only=True)
class DeoxysOptions:
    """An arm behind Deoxys. Its addresses and gains stay in Deoxys' own YAML files, which this only reads."""

    interface: Literal["wire", "deoxys-control"] = "wire"
    """wire: our client of the controller on the NUC. deoxys-control: the installed FrankaInterface of a lab's fork."""
    network: Path = Path("deoxys/network.yml")
    """Deoxys' network file (its examples call it charmander.yml): addresses, ports and rates of PC, NUC and robot."""
    controller: Path | None = None
    """Deoxys' OSC_POSE controller file; none: Deoxys' defaults."""
    stale_after_s: float = 0.12
    """Robot state older than this, by the robot's own clock, is not acted on: the arm holds."""
    fault_after_s: float = 1.0
    """After this long without a new state the fault latches: Deoxys' controller has probably exited."""
    silent_after_s: float = 0.3
    """Without a new command for this long the arm is told to hold where it is."""
    home_q: tuple[float, float, float, float, float, float, float] = (0.0, 0.2, 0.0, -2.2, 0.0, 2.4, 0.7853981633974483)
    """Joint angles, rad, that resets go through."""
    joint_reset_every: int = 20
    """Episodes between resets in joint space; those between go straight to their start pose."""
    lift_m: float = 0.10
    """A reset first moves straight up by this much, out of whatever the hand is in."""
    reset_speed_m_s: float = 0.10
    """Speed of the hand in a reset."""

    def __post_init__(self) -> None:
        if not 0.0 < self.stale_after_s <= 0.15:
            raise RobotConfigError(
                f"deoxys.stale_after_s = {self.stale_after_s} must be above 0 and at most 0.15: an arm at 0.25 m/s "
                "goes 4 cm in that time"
            )
        if not self.stale_after_s < self.fault_after_s or self.silent_after_s <= 0.0 or self.joint_reset_every < 1:
            raise RobotConfigError(
                f"deoxys.fault_after_s = {self.fault_after_s} must exceed stale_after_s = {self.stale_after_s}, "
                f"silent_after_s = {self.silent_after_s} must be above 0 and joint_reset_every = "
                f"{self.joint_reset_every} at least 1"
            )
        if not 0.0 < self.reset_speed_m_s <= 0.25 or not 0.0 <= self.lift_m <= 0.3:
            raise RobotConfigError(
                f"deoxys.reset_speed_m_s = {self.reset_speed_m_s} must be in (0, 0.25], lift_m = {self.lift_m} in "
                "[0, 0.3]"
            )
