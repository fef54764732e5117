"""What a person can get wrong with the learner command: a clear message and the documented exit code."""

import socket
from pathlib import Path

import pytest

from policy.errors import EXIT_CONFIG, EXIT_CORRUPT_FILE, EXIT_PORT_IN_USE
from tests.e2e.conftest import Start, ready_address, wait_until
from tests.e2e.test_learning import actor_arguments, learner_arguments

pytestmark = pytest.mark.e2e


def test_port_in_use(tmp_path: Path, start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        learner = start(*learner_arguments(tmp_path, port=str(port)))
        assert learner.finish() == EXIT_PORT_IN_USE, learner.output
    assert f"127.0.0.1:{port}" in learner.output
    assert "--port" in learner.output
    assert "Traceback" not in learner.output


def test_a_learner_with_only_corrupt_checkpoints_does_not_start_over(tmp_path: Path, start: Start) -> None:
    run_dir = tmp_path / "learner"
    learner = start(*learner_arguments(run_dir))
    actor = start(*actor_arguments(tmp_path / "actor", ready_address(run_dir), demonstrations=1, max_env_steps=1))
    wait_until((run_dir / "weights" / "latest.json").exists, "the trainer")
    actor.process.kill()
    assert learner.stop() == 0, learner.output
    for state in run_dir.glob("checkpoints/*/state.safetensors"):
        state.write_bytes(state.read_bytes()[:-1])

    again = start(*learner_arguments(run_dir))
    assert again.finish() == EXIT_CORRUPT_FILE, again.output
    assert "corrupt" in again.output
    assert "episode log is intact" in again.output
    assert "Traceback" not in again.output


def test_a_second_learner_leaves_the_folder_of_the_first_alone(tmp_path: Path, start: Start) -> None:
    start(*learner_arguments(tmp_path))
    ready_address(tmp_path)
    kept = {name: (tmp_path / name).read_bytes() for name in ("config.json", "policy.json", "ingest.json")}

    second = start(*learner_arguments(tmp_path), "--cgpo.discount", "0.5")
    assert second.finish() == EXIT_CONFIG, second.output
    assert f"another learner works on {tmp_path}" in second.output
    assert {name: (tmp_path / name).read_bytes() for name in kept} == kept
