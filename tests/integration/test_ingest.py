"""The ingest process: how it starts, stops and says why it cannot."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from policy.errors import EXIT_CONFIG, EXIT_PORT_IN_USE
from tests.link_ends import HANG_LIMIT_S, Actor, Ingest


def test_ingest_stops_cleanly_and_says_that_it_is_healthy_before(ingest: Ingest, connect: Callable[..., Actor]) -> None:
    robot = connect(ingest.address)
    robot.offer(range(3))
    robot.drain()
    with grpc.insecure_channel(ingest.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        answer = health.Check(health_pb2.HealthCheckRequest(service="cgpo.v1.Link"), timeout=HANG_LIMIT_S)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert "robot connected" in ingest.stop()
    assert ingest.process is not None
    assert ingest.process.returncode == 0
    assert not (ingest.run_dir / "ingest.json").exists()


def run_to_end(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG_LIMIT_S, check=False)


def test_a_port_in_use_is_named_with_its_remedy(ingest: Ingest, tmp_path: Path) -> None:
    ended = run_to_end(Ingest(tmp_path / "second").command(port=ingest.address.rpartition(":")[2]))
    assert ended.returncode == EXIT_PORT_IN_USE
    assert f"another process listens on {ingest.address}" in ended.stderr
    assert "choose another --port" in ended.stderr


def test_a_run_folder_in_use_is_left_alone(ingest: Ingest) -> None:
    ended = run_to_end(ingest.command(port="0"))
    assert ended.returncode == EXIT_CONFIG
    assert f"another learner works on {ingest.run_dir}" in ended.stderr
    assert (ingest.run_dir / "ingest.json").exists()


@pytest.mark.parametrize(
    ("host", "message"), [("0.0.0.0", "--insecure-lab-network"), ("127.0.0.256", "cannot listen on"), ("::", "ssh -L")]
)
def test_an_address_beyond_this_machine_is_refused(host: str, message: str, tmp_path: Path) -> None:
    flags = ["--insecure-lab-network"] if "256" in host else []
    ended = run_to_end(Ingest(tmp_path / "run").command(*flags, host=host))
    assert ended.returncode == EXIT_CONFIG
    assert message in ended.stderr
