"""A Franka arm behind Deoxys' controller, unmodified, on the NUC beside it."""

import logging
import time
from collections.abc import Callable

from robot.backends.deoxys.client import POLL_S, ArmClient
from robot.backends.deoxys.config import Network, load_network, load_osc_gains
from robot.backends.deoxys.link import ArmLink, WireLink
from robot.backends.deoxys.messages import ArmState
from robot.backends.deoxys.options import DeoxysOptions
from robot.backends.deoxys.reset import ResetMotion
from robot.errors import InterruptionError, RobotError, RobotFaultError, StaleStateError
from robot.franka import jacobian
from robot.geometry import PEG_RADIUS_M
from robot.interface import Array, Gripper, RobotCommand, RobotState, ScenePlacement
from robot.pose import apply_delta
from robot.scenes import check_scene

_log = logging.getLogger(__name__)

_OPEN_WITHIN_S = 2.0


class DeoxysBackend:
    """Satisfies RobotBackend. Time passes by itself: `advance` returns at once, and objects are not ours to place.

    Goals go out as absolute poses: a step from the pose that `read_state` returned last, which is the target that the
    safety gate judged. A goal that is sent twice, or arrives late, is still that pose. The goal is repeated as often as
    the NUC looks for one, so that pauses, resets and loading weights do not end its control process; without a new
    command for `silent_after_s` the arm is told to hold where it is.

    A fault latches: the control process on the NUC is ended, once, and nothing is sent any more before `recover`. The
    control process starts again by itself and clears the robot's errors; that does not end the fault.
    """

    def __init__(
        self,
        scene: str,
        options: DeoxysOptions | None = None,
        gripper: Gripper | None = None,
        *,
        should_stop: Callable[[], bool] = lambda: False,
        link: ArmLink | None = None,
    ) -> None:
        """Read Deoxys' files; open nothing.

        gripper: opened and closed with the arm. should_stop() ends a reset, with the arm held. link: for tests.
        """
        self._should_stop = should_stop
        check_scene(scene)
        self._scene = scene
        self._options = options or DeoxysOptions()
        self._gripper = gripper
        self._is_gripper_connected = False
        network = load_network(self._options.network)
        gains = load_osc_gains(self._options.controller)
        self._client = ArmClient(
            link or _make_link(self._options, network),
            self._options,
            gains,
            network.policy_rate_hz,
            find_fault=self._gripper_fault,
        )
        self._read: tuple[ArmState, float] | None = None  # what read_state returned last, and when that came
        self._commanded_width: float | None = None
        self._resets_since_home: int | None = None  # None: not been there yet

    @property
    def garbled_states(self) -> int:
        """How many messages from the NUC could not be read."""
        return self._client.garbled

    def connect(self) -> None:
        """Open everything and hold the arm where it is, under pose control. Blocks for some seconds."""
        self.close()
        try:
            if self._gripper is not None:
                self._gripper.connect()
                self._is_gripper_connected = True
            self._client.open(self._options.connect_within_s)
            self._client.start_pose_control()
        except BaseException:
            self.close()
            raise

    def reset(self, placement: ScenePlacement) -> RobotState:
        """Bring the arm to placement.O_T_EE: up, now and then through home_q, straight there. Blocks for seconds.

        Raises RobotError, with the values, when the arm does not arrive, RobotFaultError when it had to stop, and
        OutageError when a stop was asked for.
        """
        motion = ResetMotion(self._client, self._options, _twist, self._should_stop)
        motion.fresh_state()  # before anything moves
        self._open_gripper()
        motion.lift()
        is_home_due = self._resets_since_home is None or self._resets_since_home + 1 >= self._options.joint_reset_every
        if not is_home_due:
            try:
                motion.move_to(placement.O_T_EE)
            except InterruptionError:
                raise
            except RobotError as error:
                _log.warning("going through the home joint angles: %s", error)
                is_home_due = True
        if is_home_due:
            motion.move_home()
            motion.move_to(placement.O_T_EE)
        self._resets_since_home = 0 if is_home_due else (self._resets_since_home or 0) + 1
        motion.fresh_state()
        return self.read_state()

    def read_state(self) -> RobotState:
        """Return the newest state. Raises StaleStateError and RobotFaultError; does not block."""
        state, received_s = self._client.state()
        self._read = state, received_s
        return RobotState(
            O_T_EE=state.O_T_EE.copy(),
            O_twist_EE=_twist(state),
            q=state.q.copy(),
            dq=state.dq.copy(),
            tau_J=state.tau_J.copy(),
            O_F_ext_hat_K=-state.O_F_ext_hat_K,  # libfranka reports what the robot exerts: its issue 26
            gripper_width=self._gripper_width(),
            robot_time_s=state.robot_time_s,
            received_monotonic_s=received_s,
        )

    def send_command(self, command: RobotCommand) -> None:
        """Send the goal pose, and the width to the gripper if it is a new one. Raises as `read_state`."""
        newest, received_s = self._client.state()
        O_T_EE = newest.O_T_EE
        if self._read is not None:
            age_s = received_s - self._read[1]
            if age_s >= self._options.stale_after_s:  # the gate judged a target that is no longer a step away
                raise StaleStateError(age_s, self._options.stale_after_s)
            O_T_EE = self._read[0].O_T_EE
        self._client.command(apply_delta(O_T_EE, command.delta_position, command.delta_rotation))
        self._command_width(command.gripper_width)

    def advance(self, period_s: float) -> None:
        """Return at once: the arm moves by itself."""

    def stop(self) -> None:
        """Hold the pose that is measured now. In a fault nothing is sent."""
        self._client.hold()

    def recover(self) -> None:
        """Leave a fault behind, of the arm or of the gripper, and hold where the arm is. Blocks for about 3 s."""
        if not self._client.fault:
            self._client.hold(anew=True)  # a person may have moved the arm since it was told to hold
            return
        if self._gripper is not None and self._gripper_fault():
            try:
                self._gripper.recover()
            except RobotError as error:
                raise RobotFaultError(f"the gripper cannot go on yet: {error}") from error
            self._commanded_width = None
        self._client.recover()
        self._read = None

    def close(self) -> None:
        """End the control process on the NUC, so that nothing holds the arm, and release everything."""
        self._client.close()
        self._read, self._commanded_width = None, None
        if self._gripper is not None and self._is_gripper_connected:
            self._is_gripper_connected = False
            self._gripper.close()

    def _gripper_fault(self) -> str:
        if self._gripper is None or not self._is_gripper_connected:
            return ""
        fault = self._gripper.read().fault
        return f"gripper: {fault}" if fault else ""

    def _gripper_width(self) -> float:
        if self._gripper is not None:
            return self._gripper.read().width
        # Fingers that nobody moves hold the peg, where there is one.
        return 2.0 * PEG_RADIUS_M if self._scene == "peg_in_hole" else 0.0

    def _command_width(self, width: float | None) -> None:
        if self._gripper is not None and width is not None and width != self._commanded_width:
            self._commanded_width = width
            self._gripper.move(width)

    def _open_gripper(self) -> None:
        """Let go of what an episode has left in the hand; a peg stays there."""
        if self._gripper is None or self._scene == "peg_in_hole":
            return
        self._command_width(self._gripper.max_width)
        deadline_s = time.monotonic() + _OPEN_WITHIN_S
        while self._gripper.read().width < 0.9 * self._gripper.max_width and time.monotonic() < deadline_s:
            time.sleep(POLL_S)


def _make_link(options: DeoxysOptions, network: Network) -> ArmLink:
    if options.interface == "wire":
        return WireLink(network)
    from robot.backends.deoxys.franka_interface import InterfaceLink  # Deoxys is imported only where it is asked for

    return InterfaceLink(network)


def _twist(state: ArmState) -> Array:
    twist: Array = jacobian(state.q, state.F_T_EE) @ state.dq
    return twist
