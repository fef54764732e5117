"""python -m actor.doctor: check everything that this actor would use, and say what to do about what is not in order.

No check hangs, crashes or moves anything unasked. The learner's machine is checked with --role learner, which needs
nothing of the robot's.
"""

import contextlib
import os
import select
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from actor.address import parse_address
from actor.config import ActorConfig
from actor.doctor.check import CONSENT_S, Check, Consent, Finding, Runner, Status, failed, skipped
from actor.doctor.output import Page, to_json
from actor.doctor.system import system_checks
from actor.tasks import TASKS
from actor.tasks.base import Task
from policy.cli import parse_config, run_main
from policy.errors import EXIT_INTERRUPTED, EXIT_OK, unknown_name
from policy.grpc_options import PROTOCOL_VERSION
from policy.revision import read_revision
from robot.backends import BACKENDS, SIMULATED_BACKENDS
from robot.cameras import CAMERAS
from robot.grippers import GRIPPERS
from robot.safety import SafetyConfig
from robot.teleop import TELEOP_DEVICES

EXIT_FAILED = 1


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(ActorConfig):
    """The actor's own configuration, and how to check it."""

    role: Literal["actor", "learner"] = "actor"
    """Which machine this is: the robot PC, or the workstation that trains. That one is to listen on --learner."""
    learner_dir: Path = Path("runs/learner")
    """With the role learner: its run folder."""
    learner_credentials: Path | None = None
    """With the role learner: its credentials folder."""
    json: bool = False
    """Write one JSON object to the standard output instead of lines; nobody is asked anything."""
    yes: bool = False
    """Move what a check has to move without asking: the arm by 10 mm, the gripper's fingers. Stand by."""


def main() -> int:
    config = parse_config(
        DoctorConfig,
        "actor",
        sys.argv[1:],
        "The doctor: checks everything that the actor with the same options would use, one line each, with what to do "
        "below those that are not in order. Exit code 1: at least one has failed.",
        example="python -m actor.doctor --preset franka_lab",
        default_preset="paper_robot",
        program="actor.doctor",
    )
    _check_names(config)
    revision, host = read_revision(), socket.gethostname()
    findings: list[Finding] = []
    runner = Runner()
    with contextlib.ExitStack() as closing:
        checks = _all_checks(config, revision, runner, closing)
        page = None if config.json else Page(sys.stdout)
        if page is not None:
            page.begin(config.role, host, revision)
        try:
            for finding in runner.run(checks):
                findings.append(finding)
                if page is not None:
                    page.show(finding)
        except KeyboardInterrupt:
            runner.stop()
            sys.stderr.write("stopped\n")
            os._exit(EXIT_INTERRUPTED)
    if page is not None:
        page.end(findings)
    else:
        sys.stdout.write(to_json(config.role, host, revision, PROTOCOL_VERSION, findings) + "\n")
    code = EXIT_FAILED if any(finding.result.status is Status.FAILED for finding in findings) else EXIT_OK
    if runner.hung:  # a thread stuck in a driver may not let the interpreter end
        sys.stdout.flush()
        os._exit(code)
    return code


def _check_names(config: DoctorConfig) -> None:
    """Raise ConfigError for a name that does not exist: the actor would not start either."""
    cameras = [config.cameras.wrist.driver, config.cameras.third_person.driver]
    for kind, name, valid in (
        ("robot backend", config.backend, [*BACKENDS]),
        ("task", config.task, [*TASKS]),
        ("gripper", config.hand.driver, [*GRIPPERS, "none"]),
        ("input device", config.teleop.device, [*TELEOP_DEVICES, "scripted"]),
        *(("camera driver", camera, [*CAMERAS]) for camera in cameras if camera),
    ):
        if name not in valid:
            raise unknown_name(kind, name, valid)


def _all_checks(config: DoctorConfig, revision: str, runner: Runner, closing: contextlib.ExitStack) -> list[Check]:
    """Return the checks in order. Opens nothing yet. Raises ConfigError for a configuration that cannot work."""
    parse_address(config.learner)
    if config.role == "learner":
        checks = system_checks(["learner"], config.learner_dir, revision)
        return checks + _group("learner", lambda: _learner_group(config))
    checks = system_checks(_extras(config), config.run_dir, revision)
    try:
        from actor.workcell import configured_task

        task = configured_task(config)
    except ImportError as error:
        return [*checks, _unbuilt("actor", error)]
    safety = config.limits.applied_to(task.safety)
    consent = _make_consent(config)
    checks += _group("control", lambda: _control_group(config, task))
    checks += _group("link", lambda: _link_group(config, task, revision, closing))
    checks += _group("robot", lambda: _robot_group(config, task, consent, lambda: runner.is_stopping))
    return checks + _group("devices", lambda: _device_groups(config, task, safety, consent))


def _extras(config: DoctorConfig) -> list[str]:
    return ["robot", "sim"] if config.backend == "twin" or config.room else ["robot"]


def _group(name: str, build: Callable[[], list[Check]]) -> list[Check]:
    """Return a group's checks, which import what they need; or a line that fails, where that is not installed."""
    try:
        return build()
    except ImportError as error:
        return [_unbuilt(name, error)]


def _unbuilt(group: str, error: ImportError) -> Check:
    result = failed(f"cannot be checked: {error}", fix="rm -f .venv/setup.stamp; launch/setup.sh robot sim")
    return Check(group=group, name="packages", run=lambda: result)


def _learner_group(config: DoctorConfig) -> list[Check]:
    from actor.doctor.learner import learner_checks

    return learner_checks(config.learner, config.learner_dir, config.learner_credentials)


def _control_group(config: DoctorConfig, task: Task) -> list[Check]:
    from actor.doctor.loop import loop_checks

    return loop_checks(task, config)


def _link_group(config: DoctorConfig, task: Task, revision: str, closing: contextlib.ExitStack) -> list[Check]:
    from actor.doctor.link import link_checks
    from actor.doctor.loop import coded_bytes

    def needed_mb_s() -> float:
        return task.control_rate_hz * coded_bytes(task, config) / 1e6

    return link_checks(
        config.learner, revision, needed_mb_s, closing, credentials=config.credentials, actor_id=config.actor_id
    )


def _robot_group(config: DoctorConfig, task: Task, consent: Consent, should_stop: Callable[[], bool]) -> list[Check]:
    if config.backend in SIMULATED_BACKENDS:
        from actor.doctor.simulation import simulation_checks

        return simulation_checks(config, task)
    from actor.doctor.arm import arm_checks

    checks = arm_checks(config, task, consent, should_stop)
    if config.room:
        from actor.doctor.simulation import room_checks

        checks += room_checks(config.room, task)
    return checks


def _device_groups(config: DoctorConfig, task: Task, safety: SafetyConfig, consent: Consent) -> list[Check]:
    """Gripper, input device and cameras; what is not configured is said to be skipped, so that nobody misses it."""
    from actor.doctor.devices import camera_checks, gripper_checks, teleop_checks

    if config.backend != "deoxys":
        checks = [_skipped("gripper", "gripper", f"backend {config.backend} brings its own")]
    elif config.hand.driver == "none":
        checks = [_skipped("gripper", "gripper", "hand.driver is none")]
    else:
        checks = gripper_checks(config, safety, consent)
    if config.teleop.device == "scripted":
        checks.append(_skipped("input device", "input device", "teleop.device is scripted"))
    else:
        checks += teleop_checks(config.teleop, is_interactive=_is_interactive(config))
    cameras = camera_checks(config, task)
    if not cameras:
        why = "pictures are checked above" if config.pixels else "pixels is off: the policy sees poses"
        cameras = [_skipped("cameras", "cameras", why)]
    return checks + cameras


def _skipped(group: str, name: str, why: str) -> Check:
    return Check(group=group, name=name, run=lambda: skipped(why))


def _is_interactive(config: DoctorConfig) -> bool:
    return not config.json and sys.stdin.isatty()


def _make_consent(config: DoctorConfig) -> Consent:
    def ask(question: str) -> bool:
        if config.yes:
            return True
        if not _is_interactive(config):
            return False
        sys.stderr.write(question)
        sys.stderr.flush()
        ready, _, _ = select.select([sys.stdin], [], [], CONSENT_S)
        if not ready:
            sys.stderr.write("no answer: not moved\n")
            return False
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    return ask


if __name__ == "__main__":
    sys.exit(run_main(main))
