"""The doctor's frame: no check hangs it or crashes it, each bad line has its remedy, and both outputs say the same."""

import io
import json
import logging
import os
import pty
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actor.config import ActorConfig
from actor.doctor import __main__ as doctor
from actor.doctor.check import Check, Finding, Percentiles, Result, Runner, Status, failed, judged, ok, skipped, warning
from actor.doctor.devices import check_hidraw, check_udev_rule, judge_frames
from actor.doctor.link import check_clock_offset, check_protocol, check_same_commit, check_throughput
from actor.doctor.output import Page, to_json
from policy.grpc_options import PROTOCOL_VERSION
from robot.interface import CameraFrame

FINDINGS = [
    Finding(group="system", name="disk", result=ok("50 GB free", limit="10 GB", detail="only in JSON")),
    Finding(group="system", name="clock", result=warning("adrift", limit="in step", fix="set it")),
    Finding(group="arm", name="state", result=failed("nothing comes", fix="ssh nuc auto_arm.sh", detail="why\nwhy")),
    Finding(group="arm", name="ports", result=skipped("no network file")),
]


def run(*checks: Check) -> list[Result]:
    return [finding.result for finding in Runner().run(checks)]


def check(body: Any, timeout_s: float = 30.0) -> Check:
    return Check(group="g", name="n", run=body, timeout_s=timeout_s)


def test_a_crash_is_a_failed_line_and_the_rest_goes_on() -> None:
    def crash() -> Result:
        raise ZeroDivisionError("a driver's bug")

    first, second = run(check(crash), check(lambda: ok("fine")))
    assert first.status is Status.FAILED
    assert "ZeroDivisionError: a driver's bug" in first.measured
    assert first.fix
    assert second.measured == "fine"


def test_a_check_that_leaves_its_thread_is_a_failed_line() -> None:
    def leave() -> Result:
        raise SystemExit(3)

    (result,) = run(check(leave))
    assert result.status is Status.FAILED


def test_a_check_that_hangs_is_given_up_and_the_rest_goes_on() -> None:
    released = threading.Event()

    def hang() -> Result:
        released.wait(60.0)
        return ok("too late")

    runner = Runner()
    first, second = runner.run([check(hang, timeout_s=0.05), check(lambda: ok("fine"))])
    released.set()
    assert first.result.status is Status.FAILED
    assert first.result.fix
    assert runner.hung == 1
    assert second.result.measured == "fine"


def test_ctrl_c_lets_what_moves_come_to_its_end() -> None:
    runner = Runner()
    ended: list[str] = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, where tests run in the background

    def move() -> Result:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        while not runner.is_stopping:
            time.sleep(0.01)
        time.sleep(0.2)
        ended.append("the arm was let go of")
        return ok("stopped")

    try:
        with pytest.raises(KeyboardInterrupt):
            list(runner.run([check(move)]))
    finally:
        signal.signal(signal.SIGINT, before)
    runner.stop()
    assert ended


def test_what_a_driver_warns_of_is_a_detail_of_its_check() -> None:
    def warn() -> Result:
        logging.getLogger("robot.cameras.realsense").warning("the RealSense is on USB 2")
        return ok("30 frames/s")

    handlers = list(logging.getLogger().handlers)
    first, second = run(check(warn), check(lambda: ok("fine")))
    assert "USB 2" in first.detail
    assert second.detail == ""
    assert logging.getLogger().handlers == handlers


@pytest.mark.parametrize("status", [Status.WARNING, Status.FAILED])
def test_a_bad_line_without_a_remedy_cannot_be_made(status: Status) -> None:
    with pytest.raises(ValueError, match="fix"):
        Result(status=status, measured="broken")


@pytest.mark.parametrize(
    ("value", "is_low_bad", "expected"),
    [
        (5.0, False, Status.OK),
        (5.1, False, Status.WARNING),
        (10.0, False, Status.WARNING),
        (10.1, False, Status.FAILED),
        (float("nan"), False, Status.FAILED),
        (float("inf"), False, Status.FAILED),
        (-5.0, True, Status.OK),
        (-5.1, True, Status.WARNING),
        (-10.1, True, Status.FAILED),
    ],
)
def test_values_are_judged_by_two_limits(value: float, is_low_bad: bool, expected: Status) -> None:
    sign = -1.0 if is_low_bad else 1.0
    result = judged(value, "m", warn=5.0 * sign, fail=10.0 * sign, limit="l", fix="f", is_low_bad=is_low_bad)
    assert result.status is expected


def test_percentiles_are_values_that_were_measured() -> None:
    figures = Percentiles.of([index * 1e-3 for index in range(100, 0, -1)])
    assert (figures.p50, figures.p99, figures.highest) == pytest.approx((50.0, 99.0, 100.0))
    alone = Percentiles.of([0.002])
    assert (alone.p50, alone.p99, alone.highest) == pytest.approx((2.0, 2.0, 2.0))


def plain_page() -> list[str]:
    stream = io.StringIO()
    page = Page(stream)
    page.begin("actor", "robot-pc", "0123456789abcdef-dirty")
    for finding in FINDINGS:
        page.show(finding)
    page.end(FINDINGS)
    return stream.getvalue().splitlines()


def test_the_learners_words_do_not_command_the_terminal() -> None:
    stream = io.StringIO()
    words = "\x1b[2J\x1b]0;title\a"
    Page(stream).show(Finding(group="link", name="reply", result=failed(words, fix=words, detail=words)))
    assert stream.getvalue().replace("\n", "").isprintable()
    assert stream.getvalue().count(r"\x1b[2J\x1b]0;title\x07") == 3


def test_the_page_has_a_line_for_each_check_and_its_remedy_below() -> None:
    lines = plain_page()
    assert lines[0] == "actor on robot-pc, 0123456789ab with changes"
    assert not any("\x1b" in line for line in lines), "no colours where nobody sees them"
    (failing,) = [index for index, line in enumerate(lines) if "nothing comes" in line]
    assert lines[failing].split()[:2] == ["FAILED", "state"]
    assert lines[failing + 1 : failing + 4] == [" " * 11 + text for text in ("why", "why", "fix: ssh nuc auto_arm.sh")]
    assert any("adrift" in line and "in step" in line for line in lines)
    assert "           fix: set it" in lines
    assert "  ok       disk               50 GB free  (limit: 10 GB)" in lines
    assert not any("only in JSON" in line for line in lines), "what is in order is one line"
    assert lines[-2] == "1 ok, 1 warning, 1 skipped"
    assert lines[-1] == "1 failed (arm: state)"


def test_json_says_the_same() -> None:
    said = json.loads(to_json("actor", "robot-pc", "0123", PROTOCOL_VERSION, FINDINGS))
    assert list(said) == ["schema_version", "role", "host", "commit", "protocol_version", "failed", "checks"]
    assert said["schema_version"] == 1
    assert said["failed"] == 1
    assert said["checks"][2] == {
        "group": "arm",
        "name": "state",
        "status": "failed",
        "measured": "nothing comes",
        "limit": "",
        "detail": "why\nwhy",
        "fix": "ssh nuc auto_arm.sh",
    }
    assert [entry["status"] for entry in said["checks"]] == ["ok", "warning", "failed", "skipped"]


class ScriptedLink:
    """Answers pings as told."""

    address, _host, _port = "learner:1", "learner", 1

    def __init__(self, offsets_s: list[float], round_trips_s: list[float], **reply: Any) -> None:
        self._pongs = list(zip(offsets_s, round_trips_s, strict=True))
        self._reply = reply

    def ping(self, payload_bytes: int = 0, reply_bytes: int = 0) -> Any:
        from cgpo_proto import link_pb2

        from actor.doctor.link import _Pong

        offset_s, round_trip_s = self._pongs.pop(0) if len(self._pongs) > 1 else self._pongs[0]
        reply = link_pb2.PingReply(wall_time_s=1000.0 + offset_s + 0.5 * round_trip_s, **self._reply)
        return _Pong(1000.0, round_trip_s, reply)


@pytest.mark.parametrize(("offset_s", "expected"), [(0.049, Status.OK), (0.051, Status.WARNING), (-2, Status.WARNING)])
def test_the_clock_is_judged_by_the_quickest_ping(offset_s: float, expected: Status) -> None:
    # The slow ones were held up on one way only, which looks like an offset of half of that.
    link: Any = ScriptedLink([9.0, 9.0, offset_s, 9.0, 9.0], [18.0, 18.0, 0.001, 18.0, 18.0])
    result = check_clock_offset(link)
    assert result.status is expected
    assert f"{offset_s * 1e3:+.3g} ms" in result.measured


def test_other_code_at_the_learner_is_named() -> None:
    link: Any = ScriptedLink([0.0], [0.001], protocol_version=PROTOCOL_VERSION + 1, commit="b" * 40)
    assert check_protocol(link).status is Status.FAILED
    assert f"{PROTOCOL_VERSION} here, {PROTOCOL_VERSION + 1} at the learner" in check_protocol(link).measured
    assert check_same_commit(link, "b" * 40).status is Status.OK
    other = check_same_commit(link, "a" * 40)
    assert other.status is Status.WARNING
    assert "a" * 40 in other.fix
    assert check_same_commit(link, "").status is Status.WARNING


def test_equal_commits_with_changes_may_differ() -> None:
    link: Any = ScriptedLink([0.0], [0.001], commit="c" * 40 + "-dirty")
    assert check_same_commit(link, "c" * 40 + "-dirty").status is Status.WARNING


@pytest.mark.parametrize(("needed", "expected"), [(1e-9, Status.OK), (1e12, Status.FAILED)])
def test_throughput_is_judged_by_what_the_task_needs(
    needed: float, expected: Status, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actor.doctor.link._LOAD_S", 0.01)
    link: Any = ScriptedLink([0.0], [0.001])
    assert check_throughput(link, needed).status is expected


def frames(count: int, rate_hz: float, is_frozen: bool = False) -> list[CameraFrame]:
    return [
        CameraFrame(
            image=np.full((6, 8, 3), 100 + (0 if is_frozen else index), np.uint8),
            sequence=index,
            received_monotonic_s=index / rate_hz,
        )
        for index in range(count)
    ]


@pytest.mark.parametrize(
    ("taken", "expected", "word"),
    [
        (frames(30, 30.0), Status.OK, "8 x 6 px, 30.0 frames/s"),
        (frames(30, 24.0), Status.WARNING, "24.0 frames/s"),
        (frames(30, 10.0), Status.FAILED, "10.0 frames/s"),
        (frames(12, 30.0), Status.FAILED, "12 of 30"),
        (frames(30, 30.0, is_frozen=True), Status.FAILED, "29 of 30 identical"),
    ],
)
def test_cameras_are_judged_by_rate_and_change(taken: list[CameraFrame], expected: Status, word: str) -> None:
    result = judge_frames(taken, "realsense 123", 30)
    assert result.status is expected
    assert word in result.measured


def test_a_covered_lens_is_told() -> None:
    black = [
        CameraFrame(image=np.full((6, 8, 3), i % 2, np.uint8), sequence=i, received_monotonic_s=i / 30)
        for i in range(30)
    ]
    assert judge_frames(black, "realsense", 30).status is Status.WARNING


def make_hidraw(folder: Path, hid_id: str) -> None:
    device = folder / "sys" / "hidraw3" / "device"
    device.mkdir(parents=True)
    (device / "uevent").write_text(f"DRIVER=hid-generic\nHID_ID={hid_id}\nHID_NAME=x\n")
    (folder / "dev").mkdir()
    (folder / "dev" / "hidraw3").touch()


@pytest.mark.parametrize("hid_id", ["0003:0000256F:0000C635", "0003:0000046D:0000C62B"])
def test_a_space_mouse_is_found_by_its_ids_and_its_permissions_are_told(
    hid_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_hidraw(tmp_path, hid_id)
    assert check_hidraw(tmp_path / "sys", tmp_path / "dev").status is Status.OK
    monkeypatch.setattr("os.access", lambda path, mode: False)
    denied = check_hidraw(tmp_path / "sys", tmp_path / "dev")
    assert denied.status is Status.FAILED
    assert "hidraw3" in denied.measured
    assert "udevadm" in denied.fix


def test_another_mouse_is_none(tmp_path: Path) -> None:
    make_hidraw(tmp_path, "0003:0000046D:0000C077")
    assert check_hidraw(tmp_path / "sys", tmp_path / "dev").status is Status.FAILED


def test_the_udev_rule_is_looked_for_in_all_files(tmp_path: Path) -> None:
    (tmp_path / "50-other.rules").write_text('# 256f\nKERNEL=="hidraw*", ATTRS{idVendor}=="046d"\n')
    assert check_udev_rule((str(tmp_path),)).status is Status.WARNING
    (tmp_path / "99-mouse.rules").write_text('KERNEL=="hidraw*", ATTRS{idVendor}=="256F", MODE="0660"\n')
    assert check_udev_rule((str(tmp_path),)).measured.endswith("99-mouse.rules")


def test_a_gripper_is_left_alone_without_consent(monkeypatch: pytest.MonkeyPatch) -> None:
    from actor.doctor.devices import check_gripper
    from robot.errors import RobotError
    from robot.grippers.options import GripperOptions

    opened: list[bool] = []

    def build(config: ActorConfig) -> Any:
        opened.append(config.hand.calibrate)
        raise RobotError("there is no port. Plug it in.")

    monkeypatch.setattr("actor.doctor.devices.configured_gripper", build)
    robotiq = ActorConfig(backend="deoxys", hand=GripperOptions(driver="robotiq"))
    assert check_gripper(robotiq, lambda question: False).fix == "Plug it in."
    assert check_gripper(robotiq, lambda question: True).status is Status.FAILED
    assert opened == [False, True], "fingers move only when a person said so"
    hand = ActorConfig(backend="deoxys", hand=GripperOptions(driver="franka_hand"))
    assert check_gripper(hand, lambda question: False).status is Status.SKIPPED
    assert len(opened) == 2


@pytest.mark.parametrize(
    ("typed", "flags", "expected"),
    [
        ("y\n", {}, True),
        ("yes\n", {}, True),
        ("n\n", {}, False),
        ("\n", {}, False),
        ("", {}, False),  # nobody answers
        ("y\n", {"json": True}, False),  # nobody is asked
        ("", {"yes": True}, True),
        ("", {"yes": True, "json": True}, True),
    ],
)
def test_only_a_yes_lets_things_move(
    typed: str, flags: dict[str, Any], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    master, slave = pty.openpty()
    os.write(master, typed.encode())
    monkeypatch.setattr(doctor, "CONSENT_S", 0.1)
    with open(slave) as terminal:
        monkeypatch.setattr("sys.stdin", terminal)
        assert doctor._make_consent(doctor.DoctorConfig(**flags))("Move? ") is expected
    os.close(master)


def test_nobody_is_asked_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert not doctor._make_consent(doctor.DoctorConfig())("Move? ")
