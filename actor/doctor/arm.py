"""The doctor's checks of an arm behind Deoxys. All but one only listen; that one moves the arm, when it may."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from actor.config import ActorConfig
from actor.doctor.check import (
    CONSENT_S,
    Check,
    Consent,
    Percentiles,
    Result,
    failed,
    judged,
    ok,
    refused,
    skipped,
    unasked,
    warning,
)
from actor.doctor.ports import is_port_free, port_holder
from actor.tasks.base import Task
from robot.backends import make_backend
from robot.backends.deoxys.config import Network, load_network, load_osc_gains
from robot.backends.deoxys.link import WireLink
from robot.backends.deoxys.messages import ArmState
from robot.backends.deoxys.watch import complaint
from robot.errors import MissingDependencyError, RobotError
from robot.franka import JOINT_MAX, JOINT_MIN, forward_kinematics
from robot.guard import Guard
from robot.interface import Array, RobotCommand
from robot.pose import pose_difference

_LISTEN_S = 1.5
_RATE_SHARE = 0.8  # of Deoxys' STATE_PUBLISHER_RATE
_GARBLED_SHARE = 0.01
_MAX_MOUNT_M = 0.35  # from the flange to EE; a 2F-85 with its coupling ends at 0.16, a Franka Hand at 0.1034
_KINEMATICS_M, _KINEMATICS_RAD = 0.002, 0.01
_WARN_MARGIN_RAD, _FAIL_MARGIN_RAD = 0.25, 0.1  # where Deoxys' controller pushes back, and where it cuts the torque
_WARN_FORCE_N, _FAIL_FORCE_N = 5.0, 15.0
_STEP_M, _RAMP_S, _SETTLE_S = 0.010, 0.5, 1.0
_WARN_STEP_M, _FAIL_STEP_M = 0.005, 0.008
_MOVE_TIMEOUT_S = CONSENT_S + 30.0


@dataclass
class _Arm:
    """What the checks of this group learn from one another."""

    network: Network | None = None
    states: list[ArmState] = field(default_factory=list)
    ages_s: list[float] = field(default_factory=list)  # of the states that were acted on


def arm_checks(
    config: ActorConfig, task: Task, consent: Consent, should_stop: Callable[[], bool] = lambda: False
) -> list[Check]:
    """Checks of the group "arm"; each but the first is skipped where one before it leaves nothing to check.

    should_stop: a person wants the arm to stop now.
    """
    arm = _Arm()
    options = config.deoxys

    def with_network(run: Callable[[Network], Result]) -> Callable[[], Result]:
        return lambda: run(arm.network) if arm.network else skipped("the network file is not readable")

    def with_state(run: Callable[[ArmState], Result]) -> Callable[[], Result]:
        return lambda: run(arm.states[-1]) if arm.states else skipped("no state has come")

    def check(name: str, run: Callable[[], Result], timeout_s: float = 10.0) -> Check:
        return Check(group="arm", name=name, run=run, timeout_s=timeout_s)

    def move() -> Result:
        if not arm.states:
            return skipped("no state has come")
        if complaint(arm.states[-1]):
            return skipped("the robot may not be moved, see its mode")
        return check_step(config, task, consent, arm.ages_s, should_stop)

    return [
        check("Deoxys' files", lambda: _check_files(config, arm)),
        check("client", lambda: check_client(options.interface)),
        check("ports", with_network(check_ports)),
        check("state", with_network(lambda network: check_state(network, arm.states))),
        check("robot mode", with_state(check_mode)),
        check("hand's mount", with_state(check_mount)),
        check("joint limits", with_state(check_joints)),
        check("force at rest", with_state(check_force)),
        check("10 mm up and back", move, _MOVE_TIMEOUT_S),
        check("state age", lambda: check_ages(arm.ages_s, options.stale_after_s)),
    ]


def _check_files(config: ActorConfig, arm: _Arm) -> Result:
    options = config.deoxys
    try:
        network = load_network(options.network)
        load_osc_gains(options.controller)
    except RobotError as error:
        fix = f"copy Deoxys' config/charmander.yml, as the NUC has it, to {options.network}, or --deoxys.network FILE"
        return refused(error, fix=fix)
    arm.network = network
    controller = options.controller or "Deoxys' own defaults"
    return ok(
        f"{options.network}: NUC {network.nuc_ip}, commands {network.command_port}, states {network.state_port}, "
        f"{network.policy_rate_hz:g} Hz; gains: {controller}"
    )


def check_client(interface: str) -> Result:
    if interface == "wire":
        return ok("our own, nothing to install")
    from robot.backends.deoxys.franka_interface import find_interface_class

    try:
        found = find_interface_class()
    except MissingDependencyError as error:
        return refused(error, fix="pip install -e YOUR_DEOXYS_CHECKOUT/deoxys, or --deoxys.interface wire")
    return ok(f"{found.__module__}.{found.__name__}")


def check_ports(network: Network) -> Result:
    ports = (network.command_port, network.gripper_command_port)
    taken = [port for port in ports if not is_port_free(port)]
    if not taken:
        return ok(f"{' and '.join(map(str, ports))} are free")
    holders = ", ".join(f"{port}: {port_holder(port) or 'a process of another user'}" for port in taken)
    fix = f"ss -ltnp 'sport = :{taken[0]}' names it: end that actor or Deoxys client"
    return failed(f"in use: {holders}", limit="free: the NUC connects to them", fix=fix)


def check_state(network: Network, states: list[ArmState]) -> Result:
    """Listen; command nothing. Fills `states`."""
    link = WireLink(network)
    arrivals_s: list[float] = []
    try:
        link.open()
        end_s = time.monotonic() + _LISTEN_S
        while (now_s := time.monotonic()) < end_s or (not states and now_s < end_s + _LISTEN_S):
            for state in link.receive(0.02):
                states.append(state)
                arrivals_s.append(time.monotonic())
                end_s = max(end_s, arrivals_s[0] + _LISTEN_S)
    except RobotError as error:
        return refused(error, fix=f"ss -ltnp 'sport = :{network.command_port}' names what holds the port")
    finally:
        garbled = link.garbled
        link.close()
    address = f"{network.nuc_ip}:{network.state_port}"
    if garbled > max(1.0, _GARBLED_SHARE * len(states)):  # one: the first of a control process that has just started
        fix = f"set NUC.PUB_PORT in {network.path} to the arm's port (not the gripper's), or restart auto_arm.sh"
        return failed(
            f"{garbled} unreadable messages from {address}, {len(states)} states",
            limit=f"{_GARBLED_SHARE:.0%}",
            fix=fix,
        )
    start = "on the NUC: ./auto_scripts/auto_arm.sh config/charmander.yml"
    if len(states) < 2:
        return failed(
            f"nothing from {address} in {2 * _LISTEN_S:.0f} s",
            limit=f"{network.state_rate_hz:g} Hz",
            fix=f"ping -c 3 {network.nuc_ip}; {start}; FCI must be active in Desk",
        )
    rate_hz = (len(states) - 1) / (arrivals_s[-1] - arrivals_s[0])
    gap_ms = 1e3 * float(np.diff(arrivals_s).max())
    is_controlled = states[-1].robot_time_s > states[0].robot_time_s
    return judged(
        rate_hz,
        f"{rate_hz:.0f} Hz, longest gap {gap_ms:.0f} ms, {'fresh' if is_controlled else 'from before'}",
        warn=_RATE_SHARE * network.state_rate_hz,
        fail=0.5 * network.state_rate_hz,
        is_low_bad=True,
        limit=f"{_RATE_SHARE * network.state_rate_hz:.0f} Hz",
        detail="" if is_controlled else "Nothing controls the arm: Deoxys then repeats the last state it had.",
        fix=f"ping -i 0.01 -c 500 {network.nuc_ip} shows a bad network; on the NUC: ./communication_test ROBOT_IP",
    )


def check_mode(state: ArmState) -> Result:
    problem = complaint(state)
    if problem:
        return refused(RobotError(problem), fix="see the arm and Desk; unlock it and activate FCI; restart auto_arm.sh")
    if state.last_motion_errors:
        return warning(
            f"{state.robot_mode.name}, last motion ended with {', '.join(state.last_motion_errors)}",
            fix="see the arm; auto_arm.sh clears errors when it starts",
        )
    return ok(f"{state.robot_mode.name}, no errors")


def check_mount(state: ArmState) -> Result:
    """Judge F_T_EE by itself, and against where the robot says that EE is."""
    F_T_EE = state.F_T_EE
    fix = "Desk, Settings, End Effector: set the flange-to-EE transform of your hand"
    distance_m = float(np.linalg.norm(F_T_EE[:3, 3]))
    measured = f"EE {distance_m * 1e3:.0f} mm from the flange"
    rotation = F_T_EE[:3, :3]
    is_rotation = np.abs(rotation @ rotation.T - np.eye(3)).max() < 1e-3 and np.linalg.det(rotation) > 0.0
    if not is_rotation or distance_m > _MAX_MOUNT_M:
        return failed(measured, limit=f"a pose within {_MAX_MOUNT_M * 1e3:.0f} mm", fix=fix)
    missed, turned = pose_difference(forward_kinematics(state.q, F_T_EE), state.O_T_EE)
    missed_m, turned_rad = float(np.linalg.norm(missed)), float(np.linalg.norm(turned))
    measured += f", kinematics agree within {missed_m * 1e3:.2f} mm and {turned_rad:.3f} rad"
    limit = f"{_KINEMATICS_M * 1e3:.0f} mm and {_KINEMATICS_RAD} rad"
    if missed_m > _KINEMATICS_M or turned_rad > _KINEMATICS_RAD:
        detail = "The arm is no Panda, or its state mixes two moments."
        return failed(measured, limit=limit, fix="restart auto_arm.sh on the NUC; only a Panda fits", detail=detail)
    if distance_m < 1e-3:
        return warning(measured, limit=limit, fix=fix, detail="Desk knows of no hand: the policy sees the flange.")
    return ok(measured, limit=limit)


def check_joints(state: ArmState) -> Result:
    margins = np.minimum(state.q - JOINT_MIN, JOINT_MAX - state.q)
    joint = int(margins.argmin())
    return judged(
        float(margins[joint]),
        f"joint {joint + 1} nearest, {margins[joint]:.2f} rad from its limit",
        warn=_WARN_MARGIN_RAD,
        fail=_FAIL_MARGIN_RAD,
        is_low_bad=True,
        limit=f"{_WARN_MARGIN_RAD} rad, where Deoxys pushes back",
        fix=f"guide joint {joint + 1} away from its limit by hand (press both buttons at the wrist)",
    )


def check_force(state: ArmState) -> Result:
    force_n = float(np.linalg.norm(state.O_F_ext_hat_K[:3]))
    x, y, z = state.O_F_ext_hat_K[:3]
    return judged(
        force_n,
        f"{force_n:.1f} N ({x:.1f}, {y:.1f}, {z:.1f}) in the base frame",
        warn=_WARN_FORCE_N,
        fail=_FAIL_FORCE_N,
        limit=f"{_WARN_FORCE_N:.0f} N with nothing touching the arm",
        fix="Desk, Settings, End Effector: set mass and centre of mass of your hand; free cables that pull",
    )


def check_step(
    config: ActorConfig,
    task: Task,
    consent: Consent,
    ages_s: list[float],
    should_stop: Callable[[], bool] = lambda: False,
) -> Result:
    """Move EE by 10 mm up and back through the safety gate, and compare. Fills ages_s."""
    question = (
        "The arm will move 10 mm up and back, through the safety gate. Is it clear, and a hand at the stop? [y/N] "
    )
    if not consent(question):
        return unasked("arm")
    backend = make_backend(config.backend, task.scene, options=config.deoxys)
    period_s = 1.0 / task.control_rate_hz
    try:
        backend.connect()
        guard = Guard(backend, config.limits.applied_to(task.safety), period_s)
        start = guard.read_state().O_T_EE
        above = start.copy()
        above[2, 3] += _STEP_M
        reasons = _go(guard, start, above, period_s, ages_s, should_stop)
        reached = guard.read_state().O_T_EE[:3, 3] - start[:3, 3]
        reasons |= _go(guard, above, start, period_s, ages_s, should_stop)
        left_m = float(np.linalg.norm(guard.read_state().O_T_EE[:3, 3] - start[:3, 3]))
    except RobotError as error:
        return refused(error)
    finally:
        backend.close()
    return _judge_step(reached, left_m, reasons, start[:3, 3])


def _go(
    guard: Guard, start: Array, goal: Array, period_s: float, ages_s: list[float], should_stop: Callable[[], bool]
) -> set[str]:
    """Lead the arm from start to goal and let it settle; return which limits the gate named."""
    named: set[str] = set()
    begun_s = next_s = time.monotonic()
    while (elapsed_s := time.monotonic() - begun_s) < _RAMP_S + _SETTLE_S:
        if should_stop():
            raise RobotError("the arm was told to stop. Start the doctor again.")
        state = guard.read_state()
        ages_s.append(time.monotonic() - state.received_monotonic_s)
        reference = goal.copy()
        reference[:3, 3] = start[:3, 3] + min(1.0, elapsed_s / _RAMP_S) * (goal[:3, 3] - start[:3, 3])
        way, turn = pose_difference(state.O_T_EE, reference)
        result = guard.act(RobotCommand(delta_position=way, delta_rotation=turn))
        named |= {reason.partition(":")[0] for reason in result.reasons}
        next_s += period_s
        time.sleep(max(0.0, next_s - time.monotonic()))
    return named


def _judge_step(reached: Array, left_m: float, named: set[str], start: Array) -> Result:
    error_m = float(np.linalg.norm(reached - (0.0, 0.0, _STEP_M)))
    x, y, z = (reached * 1e3).tolist()
    measured = (
        f"commanded (0, 0, {_STEP_M * 1e3:.0f}) mm, reached ({x:.1f}, {y:.1f}, {z:.1f}) mm, back within "
        f"{left_m * 1e3:.1f} mm"
    )
    limit = f"{_WARN_STEP_M * 1e3:.0f} mm"
    if "workspace" in named:
        return failed(
            measured,
            limit=limit,
            detail=f"The gate cut the step: from {np.round(start, 3).tolist()} m it leaves the task's workspace.",
            fix="guide the hand to above the workpiece, and run the doctor again",
        )
    return judged(
        max(error_m, left_m),
        measured,
        warn=_WARN_STEP_M,
        fail=_FAIL_STEP_M,
        limit=limit,
        detail=f"The gate named: {', '.join(sorted(named))}." if named else "",
        fix="Desk: set the hand's mass; or raise Kp.translation in the file of --deoxys.controller",
    )


def check_ages(ages_s: list[float], stale_after_s: float) -> Result:
    if not ages_s:
        return skipped("is known once the arm has been controlled")
    figures = Percentiles.of(ages_s)
    return judged(
        figures.highest,
        f"{figures}, oldest {figures.highest:.3g} ms ({len(ages_s)} states acted on)",
        warn=500.0 * stale_after_s,
        fail=1000.0 * stale_after_s,
        limit=f"{1e3 * stale_after_s:.0f} ms: older ones make the arm hold",
        fix="connect the NUC by cable, not through a switch that others use; on the NUC: ./communication_test ROBOT_IP",
    )
