"""What can be set on an arm behind Deoxys."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from robot.errors import RobotConfigError
from robot.franka import JOINT_MAX, JOINT_MIN

_HOME_MARGIN = 0.1  # rad


@dataclass(frozen=True, kw_only=True)
class DeoxysOptions:
    """An arm behind Deoxys. Its addresses and gains stay in Deoxys' own YAML files, which this only reads."""

    interface: Literal["wire", "deoxys-control"] = "wire"
    """wire: our client of the controller on the NUC. deoxys-control: the installed FrankaInterface of a lab's fork."""
    network: Path = Path("lab/network.yml")
    """Deoxys' network file (its examples call it charmander.yml): addresses, ports and rates of PC, NUC and robot."""
    controller: Path | None = None
    """Deoxys' OSC_POSE controller file; none: Deoxys' defaults."""
    stale_after_s: float = 0.12
    """Robot state older than this, by the robot's own clock, is not acted on: the arm holds."""
    fault_after_s: float = 1.0
    """After this long without a new state the fault latches: Deoxys' controller has probably exited."""
    silent_after_s: float = 0.3
    """Without a new command for this long the arm is told to hold where it is."""
    home_q: tuple[float, float, float, float, float, float, float] = (0.0, -0.1, 0.0, -2.2, 0.0, 2.1, math.pi / 4)
    """Joint angles, rad, that resets go through: hand down, at (0.51, 0, 0.27) m with EE 0.16 m below the flange."""
    joint_reset_every: int = 20
    """Episodes between resets in joint space; those between go straight to their start pose."""
    lift_m: float = 0.10
    """A reset first moves straight up by this much, out of whatever the hand is in."""
    reset_speed_m_s: float = 0.10
    """Speed of the hand in a reset."""
    reset_max_force_n: float = 40.0
    """External force on the hand, in 3 states in a row of a reset, that stops the arm and latches a fault."""
    connect_within_s: float = 5.0
    """The NUC has this long to report a first state."""

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
        if not 0.0 < self.reset_max_force_n <= 100.0 or not 0.0 < self.connect_within_s <= 60.0:
            raise RobotConfigError(
                f"deoxys.reset_max_force_n = {self.reset_max_force_n} must be in (0, 100], where Deoxys lets the robot "
                f"stop itself; connect_within_s = {self.connect_within_s} in (0, 60]"
            )
        home_q = np.array(self.home_q)
        if ((home_q < JOINT_MIN + _HOME_MARGIN) | (home_q > JOINT_MAX - _HOME_MARGIN)).any():
            raise RobotConfigError(
                f"deoxys.home_q = {list(self.home_q)} must be {_HOME_MARGIN} rad inside the joint limits, "
                f"{JOINT_MIN.tolist()} to {JOINT_MAX.tolist()}: nearer to them Deoxys cuts the torque"
            )
