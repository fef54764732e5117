"""Judges an arm by what it reports, and latches what a person has to see. Pure: the time comes in as an argument."""

import numpy as np

from robot.backends.deoxys.messages import ArmState, RobotMode

_LEGAL_MODES = (RobotMode.IDLE, RobotMode.MOVE)
_MODE_REMEDIES = {
    RobotMode.OTHER: "the robot is not ready: unlock its joints and activate FCI in Desk",
    RobotMode.GUIDING: "somebody guides it by hand: release the buttons at its wrist",
    RobotMode.REFLEX: "it stopped itself on a collision or a limit: free the arm",
    RobotMode.USER_STOPPED: "its stop button is pressed: release it when the workspace is clear",
    RobotMode.AUTOMATIC_ERROR_RECOVERY: "it is recovering from an error: wait until it has",
}


class StateWatch:
    """The newest state of an arm, how old it is, and why nothing may move the arm any more.

    Age is judged by the robot's own time, which must advance: arrival and message counter go on while Deoxys repeats an
    old state. Without a controller Deoxys always repeats an old one, so `is_controlled` says whether that is expected.
    """

    def __init__(self, *, fault_after_s: float) -> None:
        self.state: ArmState | None = None
        self.fault = ""  # reason and remedy; empty while all is well
        self.is_controlled = False  # a controller is meant to be running on the NUC
        self._fault_after_s = fault_after_s
        self._arrived_s = self._advanced_s = -np.inf

    def observe(self, state: ArmState, now_s: float) -> None:
        """Take in one message, in the order of arrival. A latched fault is kept; later messages do not change it."""
        before, self.state = self.state, state
        self._arrived_s = now_s
        if before is None or state.robot_time_s != before.robot_time_s:
            self._advanced_s = now_s
        if before is not None and state.frame < before.frame:
            self.latch(
                f"Deoxys' control process on the NUC started again (its message counter went from {before.frame} to "
                f"{state.frame}): it ended on an error, an emergency stop or a lost network. Its console says which."
            )
        elif before is not None and state.robot_time_s < before.robot_time_s:
            self.latch(
                f"the robot's clock went back from {before.robot_time_s:.3f} to {state.robot_time_s:.3f} s: the robot "
                "was restarted."
            )
        elif self.is_controlled:
            self.latch(complaint(state))

    def check(self, now_s: float) -> None:
        """Latch when nothing new has come for too long."""
        if self.state is None:
            return
        silence_s, age_s, limit_s = self.silence_s(now_s), self.age_s(now_s), self._fault_after_s
        if silence_s <= limit_s and not (self.is_controlled and age_s > limit_s):
            return
        if silence_s > 0.5 * limit_s:
            self.latch(
                f"nothing has come from the NUC for {silence_s:.2f} s (limit {limit_s} s): Deoxys' control process has "
                "ended, or the network is down. Was the emergency stop pressed? Is auto_arm.sh running?"
            )
        else:
            self.latch(
                f"the robot's state has stood still for {age_s:.2f} s (limit {limit_s} s), though messages come: the "
                "controller on the NUC no longer runs. Start Deoxys' control process again."
            )

    def age_s(self, now_s: float) -> float:
        """Return how long ago a state with a new robot time came; infinite before the first."""
        return now_s - self._advanced_s

    def silence_s(self, now_s: float) -> float:
        """Return how long ago anything came; infinite before the first."""
        return now_s - self._arrived_s

    def latch(self, reason: str) -> None:
        """Keep `reason` as the fault unless it is empty or there is one already."""
        self.fault = self.fault or reason

    def clear(self) -> None:
        """Forget the fault: a person has seen why."""
        self.fault = ""


def complaint(state: ArmState) -> str:
    """Return why an arm in this state must not be moved, with the remedy; empty when it may."""
    values = (state.O_T_EE, state.F_T_EE, state.q, state.dq, state.tau_J, state.O_F_ext_hat_K)
    if not all(np.isfinite(value).all() for value in values):
        return "the robot's state holds values that are not finite. Restart Deoxys' control process."
    if not state.O_T_EE[:3].any():
        return "the robot's state is all zeros: Deoxys' control process has not read the robot yet. Is FCI activated?"
    rotation = state.O_T_EE[:3, :3]
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-3:
        return f"the robot's O_T_EE is not a pose: {np.round(state.O_T_EE, 4).tolist()}. Restart Deoxys."
    if state.robot_mode not in _LEGAL_MODES:
        return f"robot_mode is {state.robot_mode.name}: {_MODE_REMEDIES[state.robot_mode]}."
    if state.current_errors:
        return (
            f"the robot reports {', '.join(state.current_errors)}. See the arm and Desk for the cause, then restart "
            "Deoxys' control process, which clears errors when it starts."
        )
    return ""
