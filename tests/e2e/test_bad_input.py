"""What a person can get wrong with the commands: a clear message and the documented exit code."""

import socket
from pathlib import Path

import pytest

from policy.encoder_weights import DIRECTORY_VARIABLE, file_name
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
    assert "is corrupt" in again.output
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


DIGEST = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("content", "exit_code", "words"),
    [(None, EXIT_CONFIG, "are not here; looked for"), (b"not safetensors", EXIT_CORRUPT_FILE, "is not the encoder")],
)
def test_a_run_without_the_right_encoder_file_says_which_and_how_to_get_it(
    tmp_path: Path,
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes | None,
    exit_code: int,
    words: str,
) -> None:
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(tmp_path))
    if content is not None:
        (tmp_path / file_name(DIGEST)).write_bytes(content)
    run = start(
        "launch.sim", "--pixels", "--task", "reach", "--max-minutes", "1", "--out", str(tmp_path / "run"),
        "--set", f"encoder_weights={DIGEST}", "backend=fake",
    )  # fmt: skip
    assert run.finish() == exit_code, run.output
    for text in (words, DIGEST, "curl -LO https://", "policy.convert_encoder", str(tmp_path / file_name(DIGEST))):
        assert text in run.output
    for output in (run.output, *(path.read_text() for path in (tmp_path / "run").glob("*.log"))):
        assert "Traceback" not in output


def test_pixels_with_a_preset_without_an_encoder_start_nothing(tmp_path: Path, start: Start) -> None:
    run = start("launch.sim", "--pixels", "--preset", "sim_quick", "--out", str(tmp_path / "run"))
    assert run.finish() == EXIT_CONFIG, run.output
    assert "choose the preset sim_pixels" in run.output
    assert not (tmp_path / "run").exists()


PIXELS = ("--preset", "sim_pixels", "--backend", "fake", "--task", "reach", "--learner", "127.0.0.1:1")


def test_a_crop_outside_the_frame(tmp_path: Path, start: Start) -> None:
    actor = start("actor", *PIXELS, "--run-dir", str(tmp_path), "--cameras.wrist.crop", "600", "0", "200", "200")
    assert actor.finish() == EXIT_CONFIG, actor.output
    assert "cameras.wrist.crop = [600, 0, 200, 200]" in actor.output
    assert "outside the camera's frame of 672 x 376 px" in actor.output
    assert "Traceback" not in actor.output


def test_a_camera_of_another_size(tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that announces 672 x 376 and delivers 640 x 480, as after another program changed its resolution."""
    (tmp_path / "changed_camera.py").write_text(
        "import sys\n"
        "from actor.__main__ import main\n"
        "from policy.cli import run_main\n"
        "from robot.cameras.fake import FakeCamera\n"
        "draw = FakeCamera._draw\n"
        "def other(self, sequence):\n"
        "    self.size_px = (640, 480)\n"
        "    return draw(self, sequence)\n"
        "FakeCamera._draw = other\n"
        "sys.exit(run_main(main))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    actor = start("changed_camera", *PIXELS, "--run-dir", str(tmp_path / "actor"))
    assert actor.finish() == 1, actor.output
    assert "camera 'wrist' delivered a frame of shape (480, 640, 3)" in actor.output
    assert "expected (376, 672, 3)" in actor.output
    assert "Traceback" not in actor.output
