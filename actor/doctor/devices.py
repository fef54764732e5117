"""The doctor's checks of what is around the arm: gripper, input device, cameras, and the simulated robots."""

import glob
import itertools
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from actor.camera_rig import CameraRig
from actor.config import ActorConfig, CameraConfig, CamerasConfig
from actor.device_driver import configured_device
from actor.doctor.check import (
    CONSENT_S,
    Check,
    Consent,
    Result,
    failed,
    judged,
    ok,
    refused,
    unasked,
    wait_for,
    warning,
)
from actor.env import configured_gripper
from actor.intervention_config import TeleopConfig
from actor.tasks.base import Task
from policy.errors import ConfigError
from robot.cameras import CAMERAS, make_camera
from robot.errors import RobotConfigError, RobotError
from robot.interface import Camera, CameraFrame, TeleopDevice
from robot.safety import SafetyConfig, check_gripper_force

_FRAMES = 30
_FRAMES_TIMEOUT_S = 10.0
_DEFAULT_FPS = 30
_WARN_FPS, _FAIL_FPS = 0.9, 0.5  # of what was asked for
_DARK = 3.0  # mean grey level of a covered lens
_DEFLECTION = 0.3
_PUSH_S = 10.0
_SETTLE_S = 0.5
UDEV_FIX = "sudo cp launch/udev/*.rules /etc/udev/rules.d/ && sudo udevadm control --reload && sudo udevadm trigger"
_UDEV_FOLDERS = ("/etc/udev/rules.d", "/lib/udev/rules.d", "/usr/lib/udev/rules.d", "/run/udev/rules.d")
_SPACEMOUSE_IDS = ("0000256F", "0000046D:0000C62")  # 3Dconnexion; Logitech, which sold them before


def gripper_checks(config: ActorConfig, safety: SafetyConfig, consent: Consent) -> list[Check]:
    """A gripper moves its fingers when it is activated, so a person is asked first."""

    def run() -> Result:
        try:
            check_gripper_force(safety, config.hand.force_n)
        except RobotConfigError as error:
            return refused(error, fix=f"--hand.force-n {safety.max_gripper_force_n:g}, or less")
        return check_gripper(config, consent)

    return [Check(group="gripper", name=config.hand.driver, run=run, timeout_s=CONSENT_S + 75.0)]


def check_gripper(config: ActorConfig, consent: Consent) -> Result:
    options = config.hand
    question = f"The {options.driver} gripper may open and close. Is nothing between the fingers? [y/N] "
    may_move = consent(question)
    if not may_move:
        if options.driver != "robotiq":
            return unasked("fingers")
        options = replace(options, calibrate=False)  # then connecting leaves the fingers alone
    try:
        gripper = configured_gripper(replace(config, hand=options))
        assert gripper is not None
        try:
            gripper.connect()
            time.sleep(_SETTLE_S)  # of its thread at work
            state = gripper.read()
        finally:
            gripper.close()
    except RobotError as error:
        return refused(error)
    measured = f"{state.width * 1e3:.1f} of {gripper.max_width * 1e3:.0f} mm open"
    if state.fault:
        return refused(RobotError(state.fault))
    if state.is_holding:
        return warning(f"{measured}, holding something", fix="take out what is between the fingers")
    return ok(measured + ("" if may_move else ", not moved"))


def teleop_checks(config: TeleopConfig, is_interactive: bool) -> list[Check]:
    """is_interactive: somebody is there to push the device."""

    def check(name: str, run: Callable[[], Result], timeout_s: float = 10.0) -> Check:
        return Check(group="input device", name=name, run=run, timeout_s=timeout_s)

    if config.device == "keyboard":
        return [check("keyboard", check_keyboard)]
    checks = [check(config.device, lambda: check_device(config, is_interactive), _PUSH_S + 20.0)]
    if config.device == "spacemouse":
        checks.insert(0, check("permissions", lambda: check_hidraw(Path("/sys/class/hidraw"), Path("/dev"))))
        checks.insert(1, check("udev rule", lambda: check_udev_rule(_UDEV_FOLDERS)))
    return checks


def check_keyboard() -> Result:
    if sys.stdin.isatty():
        return ok("the standard input is a terminal")
    return failed("the standard input is no terminal", fix="run it in a terminal, or choose another --teleop.device")


def check_hidraw(devices: Path, dev: Path) -> Result:
    """Find SpaceMice among the kernel's raw HID devices: sysfs tells their ids, and /dev whether we may open them."""
    found = []
    for device in sorted(devices.glob("hidraw*")):
        try:
            uevent = (device / "device" / "uevent").read_text()
        except OSError:
            continue
        if any(known in uevent.upper() for known in _SPACEMOUSE_IDS):
            found.append(dev / device.name)
    if not found:
        fix = "plug the SpaceMouse in, then: lsusb -d 256f: (older ones: lsusb -d 046d:)"
        return failed("no SpaceMouse among the kernel's HID devices", fix=fix)
    allowed = [path for path in found if os.access(path, os.R_OK | os.W_OK)]
    names = ", ".join(map(str, found))
    if allowed:
        return ok(f"{', '.join(map(str, allowed))} may be read and written")
    return failed(f"no permission for {names}", fix=f"{UDEV_FIX}; sudo usermod -aG plugdev $USER, then log in again")


def check_udev_rule(folders: tuple[str, ...]) -> Result:
    from robot.teleop.spacemouse import UDEV_RULE

    rules = [path for folder in folders for path in glob.glob(f"{folder}/*.rules")]
    for path in rules:
        try:
            text = Path(path).read_text(errors="replace")
        except OSError:
            continue
        if any("hidraw" in line and "256f" in line for line in text.lower().splitlines()):
            return ok(path)
    return warning("no rule lets a user open a SpaceMouse", detail=UDEV_RULE, fix=UDEV_FIX)


def check_device(config: TeleopConfig, is_interactive: bool) -> Result:
    try:
        device = configured_device(config)
        try:
            device.connect()
            return _watch_device(device, is_interactive and config.device != "replay")
        finally:
            device.close()
    except (RobotError, ConfigError) as error:
        return refused(error)


def _watch_device(device: TeleopDevice, is_interactive: bool) -> Result:
    time.sleep(_SETTLE_S)
    state = device.read()
    if not state.is_connected:
        return failed(
            "it was lost just after it was opened", fix="plug it in again, into a port of the computer itself"
        )
    resting = float(np.abs(state.twist).max())
    measured = f"connected, {device.num_buttons} buttons, rests at {resting:.2f} of its way"
    if resting > _DEFLECTION:
        return warning(measured, limit=f"{_DEFLECTION}", fix="let go of it; plug it in again while nobody touches it")
    if not is_interactive:
        return ok(measured + "; not pushed: nobody to ask")
    sys.stderr.write(f"Push the device forward, away from you (within {_PUSH_S:.0f} s) ... ")
    sys.stderr.flush()
    is_pushed = wait_for(lambda: float(np.abs(device.read().twist).max()) > _DEFLECTION, _PUSH_S)
    twist = device.read().twist
    sys.stderr.write("\n")
    if not is_pushed:
        fix = "push it farther; end spacenavd if it runs: sudo systemctl stop spacenavd"
        return failed(f"{measured}; no push seen in {_PUSH_S:.0f} s", limit=f"{_DEFLECTION} of its way", fix=fix)
    axis = int(np.abs(twist).argmax())
    name = ("x", "y", "z", "about x", "about y", "about z")[axis]
    moved = f"{measured}; pushed: {name} {twist[axis]:+.2f}"
    if axis == 0 and twist[0] > 0:
        return ok(moved)
    return warning(
        moved, limit="x +", fix="turn the device, so that its cable points away from you, or --teleop.yaw-deg"
    )


def camera_checks(config: ActorConfig, task: Task) -> list[Check]:
    """One line for each camera of the task that is not part of a simulated robot."""
    checks = []
    for image in task.observation_spec.images:
        camera: CameraConfig = getattr(config.cameras, image.name)
        driver = camera.driver or config.backend

        def run(name: str = image.name, driver: str = driver) -> Result:
            return check_camera(name, config.cameras, driver)

        if driver != "twin":  # drawn by the robot's own group
            checks.append(Check(group="cameras", name=image.name, run=run, timeout_s=45.0))
    return checks


def check_camera(name: str, cameras: CamerasConfig, driver: str) -> Result:
    config: CameraConfig = getattr(cameras, name)
    if driver not in CAMERAS:
        fix = f"--cameras.{name.replace('_', '-')}.driver realsense (or zed_uvc, zed_sdk, opencv), .device SERIAL"
        return failed(f"no driver is chosen, and the backend {driver} has no cameras of its own", fix=fix)
    options: dict[str, Any] = config.options()
    try:
        camera = make_camera(driver, name, device=config.device, **options)
        try:
            CameraRig({name: camera}, cameras)  # judges the crop
            camera.connect()
            frames = _collect(camera)
        finally:
            camera.close()
    except (RobotError, ConfigError) as error:
        return refused(error)
    which = f"{driver} {config.device}".strip()
    return judge_frames(frames, which, config.fps or _DEFAULT_FPS, has_own_rate=driver not in ("room", "fake"))


def _collect(camera: Camera) -> list[CameraFrame]:
    """Return up to 30 frames in a row."""
    frames: list[CameraFrame] = []
    end_s = time.monotonic() + _FRAMES_TIMEOUT_S
    while len(frames) < _FRAMES and time.monotonic() < end_s:
        frame = camera.read()
        if not frames or frame.sequence != frames[-1].sequence:
            frames.append(frame)
        time.sleep(0.002)
    return frames


def judge_frames(frames: list[CameraFrame], which: str, fps: int, *, has_own_rate: bool = True) -> Result:
    """fps: asked for. has_own_rate: it is the camera's to keep; what a simulation draws comes as fast as it can."""
    if len(frames) < _FRAMES:
        return failed(
            f"{which}: {len(frames)} of {_FRAMES} frames in {_FRAMES_TIMEOUT_S:.0f} s",
            fix="plug it in again, into a USB 3 port of the computer itself; lsusb -t shows at which speed it runs",
        )
    elapsed_s = frames[-1].received_monotonic_s - frames[0].received_monotonic_s
    rate_hz = (len(frames) - 1) / max(elapsed_s, 1e-6)
    identical = sum(np.array_equal(one.image, other.image) for one, other in itertools.pairwise(frames))
    height, width = frames[-1].image.shape[:2]
    measured = f"{which}: {width} x {height} px, {rate_hz:.1f} frames/s, {identical} of {_FRAMES} identical"
    fix = "give it more light or a shorter --cameras.*.exposure-us; lsusb -t shows at which speed its port runs"
    if has_own_rate and identical > _FRAMES // 2:
        return failed(measured, limit="none identical", fix="take the cap off the lens; plug it in again")
    if float(frames[-1].image.mean()) < _DARK:
        return warning(measured, detail="The image is black.", fix="take the cap off the lens, switch on the light")
    if not has_own_rate:
        return ok(measured)
    return judged(
        rate_hz,
        measured,
        warn=_WARN_FPS * fps,
        fail=_FAIL_FPS * fps,
        is_low_bad=True,
        limit=f"{fps} frames/s",
        fix=fix,
    )
