"""The simulated arm as libfranka shows a real one: modes, errors, an emergency stop, control that may be refused."""

import math

import numpy as np

from robot.backends.deoxys.messages import ArmState, RobotMode
from robot.backends.twin.model import PHYSICS_STEP_S
from robot.backends.twin.nuc_motion import JointMotion, PoseMotion
from robot.backends.twin.simulation import Simulation
from robot.errors import RobotError
from robot.interface import Array

COLLISION_FORCE_N = COLLISION_TORQUE_NM = 100.0  # Deoxys sets both; libfranka's own are 20 N and 10 N m
_WRENCH_SMOOTHING_S = 0.03  # the robot reports a filtered wrench
_WRENCH_STEPS = 5  # physics steps that one sample of the wrench averages over


class ControlRefusedError(RobotError):
    """The robot does not accept control: a reflex, or its emergency stop."""


class Robot:
    """Arm, brakes and clock. Without a motion, and after any fault, it holds the joints where they are."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.mode = RobotMode.IDLE
        self.errors: tuple[str, ...] = ()
        self.last_errors: tuple[str, ...] = ()
        self._F_T_EE = simulation.F_T_EE()
        self._motion: PoseMotion | JointMotion | None = None
        self._q_held = simulation.q.copy()
        self._lost_s = 0.0  # by which the clock has gone on without physics
        self._wrench = np.zeros(6)
        self._steps = 0

    @property
    def time_s(self) -> float:
        """The robot's own clock. It never stands still, whatever the control process does."""
        return self.simulation.time_s + self._lost_s

    @property
    def motion(self) -> PoseMotion | JointMotion | None:
        """What it follows now."""
        return self._motion

    @property
    def q_desired(self) -> Array:
        """Joint angles (7,) that the robot's own controller is at, rad."""
        if isinstance(self._motion, JointMotion):
            return self._motion.at(self.time_s)[0]
        return self._q_held.copy() if self._motion is None else self.simulation.q.copy()

    def skip(self, seconds: float) -> None:
        """Let time pass without physics: the process was held up for too long to make up for it."""
        self._lost_s += seconds

    def control(self, motion: PoseMotion | JointMotion) -> None:
        """Follow a motion. Raises ControlRefusedError in a reflex and while the emergency stop is pressed."""
        if self.mode in (RobotMode.REFLEX, RobotMode.USER_STOPPED):
            raise ControlRefusedError(f"the robot is in the mode {self.mode.name}")
        self.mode = RobotMode.MOVE
        self._motion = motion

    def hold(self) -> None:
        """End control: stop, and hold the joints where they are."""
        if self.mode is RobotMode.MOVE:
            self.mode = RobotMode.IDLE
        if self._motion is not None:
            self._motion, self._q_held = None, self.simulation.q.copy()

    def reflex(self, error: str) -> None:
        """Stop by itself. error: libfranka's name for it."""
        self.hold()
        if self.mode is not RobotMode.USER_STOPPED:
            self.mode = RobotMode.REFLEX
        self.errors = self.last_errors = (error,)

    def press_stop(self) -> None:
        """Press the emergency stop."""
        self.hold()
        self.mode = RobotMode.USER_STOPPED

    def release_stop(self) -> None:
        """Release the emergency stop; without it being pressed nothing happens."""
        if self.mode is RobotMode.USER_STOPPED:
            self.mode = RobotMode.IDLE

    def recover(self) -> None:
        """Leave errors behind. Raises ControlRefusedError while the emergency stop is pressed."""
        if self.mode is RobotMode.USER_STOPPED:
            raise ControlRefusedError("the emergency stop is pressed")
        self.errors = ()
        if self.mode is RobotMode.REFLEX:
            self.mode = RobotMode.IDLE

    def step(self) -> None:
        """Let one physics step pass."""
        motion = self._motion
        if isinstance(motion, PoseMotion):
            self.simulation.step(motion.at(self.time_s))
        elif isinstance(motion, JointMotion):
            self.simulation.step_joints(*motion.at(self.time_s + PHYSICS_STEP_S))
        else:
            self.simulation.step_joints(self._q_held, np.zeros(7))
        self._steps += 1
        if self._steps % _WRENCH_STEPS == 0:
            self._feel()

    def state(self, frame: int) -> ArmState:
        """Return what the robot reports now. libfranka's wrench is the one that the robot exerts: minus ours."""
        simulation = self.simulation
        O_T_EE = simulation.O_T_EE()
        motion = self._motion
        rotation_to_K = O_T_EE[:3, :3].T  # the stiffness frame K is EE
        return ArmState(
            O_T_EE=O_T_EE,
            O_T_EE_d=motion.at(self.time_s) if isinstance(motion, PoseMotion) else O_T_EE,
            F_T_EE=self._F_T_EE,
            q=simulation.q.copy(),
            q_d=self.q_desired,
            dq=simulation.dq.copy(),
            tau_J=simulation.tau.copy(),
            O_F_ext_hat_K=-self._wrench,
            K_F_ext_hat_K=-np.concatenate([rotation_to_K @ self._wrench[:3], rotation_to_K @ self._wrench[3:]]),
            current_errors=self.errors,
            last_motion_errors=self.last_errors,
            control_command_success_rate=1.0 if self.mode is RobotMode.MOVE else 0.0,
            robot_mode=self.mode,
            robot_time_s=self.time_s,
            frame=frame,
        )

    def _feel(self) -> None:
        """Update the external wrench; a reflex when it is beyond the collision thresholds."""
        wrench = self.simulation.external_wrench()
        self.simulation.start_wrench_average()
        share = 1.0 - math.exp(-_WRENCH_STEPS * PHYSICS_STEP_S / _WRENCH_SMOOTHING_S)
        self._wrench += share * (wrench - self._wrench)
        strongest_N, strongest_Nm = np.abs(self._wrench[:3]).max(), np.abs(self._wrench[3:]).max()
        if self.mode is RobotMode.MOVE and (strongest_N > COLLISION_FORCE_N or strongest_Nm > COLLISION_TORQUE_NM):
            self.reflex("cartesian_reflex")
