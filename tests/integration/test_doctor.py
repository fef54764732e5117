"""The doctor as it is started: with nothing attached, with a learner, and with an arm that it asks before moving."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from cgpo_proto import link_pb2, link_pb2_grpc

from actor.config import ActorConfig
from actor.doctor.arm import arm_checks
from actor.doctor.check import Finding, Result, Runner, Status
from actor.doctor.link import link_checks
from actor.workcell import configured_task
from policy.errors import EXIT_CONFIG
from policy.grpc_options import MAX_PING_BYTES, PROTOCOL_VERSION
from policy.revision import read_revision
from robot.backends.deoxys.options import DeoxysOptions
from tests.deoxys_arm import wait_until
from tests.deoxys_fake import FakeNuc, schema
from tests.link_ends import HANG_LIMIT_S, Ingest

ROOT = Path(__file__).resolve().parents[2]
PROCESS_LIMIT_S = 180.0
ENTRY_FIELDS = {"group", "name", "status", "measured", "limit", "detail", "fix"}


def doctor(*flags: str, program: str = "import runpy; runpy.run_module('actor.doctor', run_name='__main__')") -> Any:
    """Run the doctor's process to its end, with no terminal."""
    return subprocess.run(
        [sys.executable, "-c", program, *flags],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PROCESS_LIMIT_S,
        check=False,
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_with_nothing_attached_each_missing_thing_is_a_line_with_its_remedy(tmp_path: Path) -> None:
    ended = doctor(
        "--preset", "sim_pixels", "--backend", "deoxys", "--deoxys.network", str(tmp_path / "network.yml"),
        "--hand.driver", "robotiq", "--hand.device", str(tmp_path / "ttyUSB0"), "--teleop.device", "spacemouse",
        "--cameras.wrist.driver", "zed_uvc", "--cameras.wrist.device", str(tmp_path / "video"),
        "--cameras.third-person.driver", "realsense", "--cameras.third-person.device", "123",
        "--learner", f"127.0.0.1:{free_port()}", "--run-dir", str(tmp_path / "run"), "--json",
    )  # fmt: skip
    said = json.loads(ended.stdout)
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
    assert (said["schema_version"], said["role"], said["host"]) == (1, "actor", socket.gethostname())
    assert said["protocol_version"] == PROTOCOL_VERSION
    assert said["commit"] == read_revision() or "dirty" in said["commit"] + read_revision()
    failed = {(entry["group"], entry["name"]) for entry in said["checks"] if entry["status"] == "failed"}
    assert failed >= {
        ("link", "reachable"),
        ("arm", "Deoxys' files"),
        ("gripper", "robotiq"),
        ("input device", "spacemouse"),
        ("cameras", "wrist"),
        ("cameras", "third_person"),
    }
    assert said["failed"] == len(failed)
    for entry in said["checks"]:
        assert set(entry) == ENTRY_FIELDS
        assert all(isinstance(text, str) for text in entry.values())
        assert "the check itself failed" not in entry["detail"].lower(), entry
        assert entry["status"] in ("ok", "warning", "failed", "skipped")
        assert bool(entry["fix"]) == (entry["status"] in ("warning", "failed")), entry
        assert entry["measured"] or entry["detail"], entry
    assert not (tmp_path / "run").exists(), "a check leaves nothing behind"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--backend", "deoxis"], "Did you mean 'deoxys'"),
        (["--learner", "nowhere"], "HOST:PORT"),
        (["--cameras.wrist.driver", "realsens"], "Did you mean 'realsense'"),
        (["--role", "nurse"], "nurse"),
        (["--preset", "no_such_preset"], "no_such_preset"),
    ],
)
def test_wrong_usage_ends_before_any_check(flags: list[str], message: str) -> None:
    ended = doctor(*flags)
    assert ended.returncode == EXIT_CONFIG
    assert message in ended.stderr
    assert ended.stdout == ""


def test_the_learner_s_machine_needs_nothing_of_the_robot_s(ingest: Ingest) -> None:
    absent = "yaml zmq gymnasium evdev mujoco serial pymodbus pyspacemouse pyrealsense2"
    program = f"""
import runpy, sys
for name in {absent!r}.split():
    sys.modules[name] = None
runpy.run_module("actor.doctor", run_name="__main__")
"""
    flags = ["--role", "learner", "--learner", ingest.address, "--learner-dir", str(ingest.run_dir)]
    ended = doctor(*flags, program=program)
    assert "Traceback" not in ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[-1] == "0 failed", ended.stdout
    assert ended.returncode == 0
    (port,) = (line for line in lines if line.split()[1:2] == ["port"])
    assert "a learner of" in port
    assert f"pid {ingest.process.pid}" in port if ingest.process else False
    assert any("0 records" in line for line in lines)


def link(address: str, revision: str, needed_mb_s: float = 0.1) -> dict[str, Result]:
    with contextlib.ExitStack() as closing:
        findings = list(
            Runner().run(
                link_checks(address, revision, lambda: needed_mb_s, closing, credentials=None, actor_id="robot")
            )
        )
    return {finding.name: finding.result for finding in findings}


def test_the_link_is_measured_against_a_live_learner(ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actor.doctor.link._LOAD_S", 0.1)
    found = link(ingest.address, read_revision())
    assert {name for name, result in found.items() if result.status is Status.FAILED} == set()
    assert found["reachable"].measured.startswith(ingest.address)
    assert "50 pings" in found["round trip"].measured
    assert "MB/s up" in found["throughput"].measured
    assert found["clock offset"].status is Status.OK
    assert found["protocol"].measured == f"version {PROTOCOL_VERSION} on both machines"
    assert link(ingest.address, "0" * 40)["same commit"].status is Status.WARNING
    assert ingest.stop().count("refused") == 0, "a doctor's visit is no trouble to the learner"
    assert not (ingest.run_dir / "specs.json").exists(), "and fixes nothing of its run"


def test_a_ping_is_bounded(stub: link_pb2_grpc.LinkStub) -> None:
    reply = stub.Ping(link_pb2.PingRequest(payload=bytes(MAX_PING_BYTES), reply_bytes=5), timeout=HANG_LIMIT_S)
    assert reply.payload == bytes(5)
    assert abs(reply.wall_time_s - time.time()) < HANG_LIMIT_S
    with pytest.raises(grpc.RpcError) as refused:
        stub.Ping(link_pb2.PingRequest(reply_bytes=MAX_PING_BYTES + 1), timeout=HANG_LIMIT_S)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_frozen_learner_is_a_line_and_no_hang(ingest: Ingest) -> None:
    assert ingest.process is not None
    ingest.process.send_signal(signal.SIGSTOP)
    try:
        found = link(ingest.address, "")
    finally:
        ingest.process.send_signal(signal.SIGCONT)
    assert found["reachable"].status is Status.FAILED
    assert "does not answer" in found["reachable"].measured
    assert found["round trip"].status is Status.SKIPPED


@pytest.fixture
def nuc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNuc]:
    monkeypatch.setattr("actor.doctor.arm._LISTEN_S", 0.6)
    schema()  # compiled before, so that it does not hold up the fake's thread
    fake = FakeNuc(tmp_path)
    yield fake
    fake.close()


def examine(nuc: FakeNuc, may_move: bool = True, **options: Any) -> dict[str, Finding]:
    config = ActorConfig(
        backend="deoxys", task="reach", control_rate_hz=20.0, deoxys=DeoxysOptions(network=nuc.network, **options)
    )
    checks = arm_checks(config, configured_task(config), lambda question: may_move)
    return {finding.name: finding for finding in Runner().run(checks)}


def statuses(found: dict[str, Finding], *names: str) -> list[Status]:
    return [found[name].result.status for name in names]


def test_without_consent_the_arm_is_only_listened_to(nuc: FakeNuc) -> None:
    found = examine(nuc, may_move=False)
    assert nuc.sent == []
    assert {name for name, finding in found.items() if finding.result.status is Status.FAILED} == set(), found
    assert statuses(found, "10 mm up and back", "state age") == [Status.SKIPPED] * 2


def test_with_consent_the_arm_goes_up_by_10_mm_and_back(nuc: FakeNuc) -> None:
    before = nuc.O_T_EE[:3, 3].copy()
    found = examine(nuc)
    assert found["10 mm up and back"].result.status is Status.OK, found["10 mm up and back"]
    assert found["state age"].result.status is not Status.SKIPPED  # how old states are is the machine's affair
    goals = [sent.O_T_EE[:3, 3] - before for sent in nuc.sent if sent.controller == "OSC_POSE" and not sent.is_delta]
    assert max(goal[2] for goal in goals) == pytest.approx(0.010, abs=1e-3)
    assert max(np.linalg.norm(goal) for goal in goals) < 0.012, "and no farther"
    np.testing.assert_allclose(nuc.O_T_EE[:3, 3], before, atol=1e-3)
    wait_until(lambda: nuc.sent[-1].termination, "letting go of the arm afterwards")
    assert nuc.violations == []


def test_a_stopped_robot_is_not_moved(nuc: FakeNuc) -> None:
    nuc.mode = "UserStopped"
    found = examine(nuc)
    assert found["robot mode"].result.status is Status.FAILED
    assert found["10 mm up and back"].result.status is Status.SKIPPED
    assert nuc.sent == []


def test_a_silent_or_garbled_nuc_leaves_nothing_to_check(nuc: FakeNuc) -> None:
    nuc.garbles_states = True
    found = examine(nuc)
    assert "unreadable" in found["state"].result.measured
    nuc.garbles_states, nuc.drops_states = False, True
    found = examine(nuc)
    assert found["state"].result.status is Status.FAILED
    assert statuses(found, "robot mode", "10 mm up and back") == [Status.SKIPPED] * 2
    assert nuc.sent == []


def test_a_port_that_another_program_holds_is_told(nuc: FakeNuc) -> None:
    with socket.create_server(("", nuc.command_port)):
        found = examine(nuc)
    assert found["ports"].result.status is Status.FAILED
    assert f"pid {os.getpid()}" in found["ports"].result.measured
    assert found["state"].result.status is Status.FAILED
