"""The MuJoCo benchmark's command: what it runs, what it skips, how it ends and is continued, what it refuses."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.mujoco import __main__ as command
from benchmarks.mujoco import training
from benchmarks.mujoco.run_folder import WALL_CLOCK_COLUMNS
from benchmarks.mujoco.settings import default_preset, parse_seeds, variant_name
from benchmarks.mujoco.sweep import make_run
from learner.cluster import SweepRun
from learner.tensor_replay import TensorReplay
from policy.errors import EXIT_CONFIG, EXIT_INTERRUPTED, ConfigError, DivergedError

TASK = "InvertedPendulum-v4"
ARGUMENTS = [
    "--task",
    "InvertedPendulum",
    "--seeds",
    "3",
    "--steps",
    "30",
    "--evaluation-every",
    "15",
    "--episodes",
    "1",
]
TINY = [
    *("--set", "policy.denoising_steps=3", "denoiser_hidden=[8]", "critic_hidden=[8]", "num_critics=2"),
    *("--set", "training_starts=20", "batch_size=4", "guidance.steps=1"),
]


def test_the_command_runs_a_task_and_skips_it_when_it_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*ARGUMENTS, *TINY, "--out", str(tmp_path)]
    assert command.main(arguments) == 0
    (folder,) = tmp_path.glob("InvertedPendulum-v4/cgpo/paper_mujoco,*/seed_3")
    header = (folder / "curve.csv").read_text().splitlines()[0]
    assert [count in header for count in ("_k4", "_k1,", "_k32")] == [True] * 3
    config = json.loads((folder / "config.json").read_text())
    assert config["starts"][0]["command"][:3] == ["python", "-m", "benchmarks.mujoco"]
    assert config["learner"]["seed"] == 3
    shown = capsys.readouterr().out
    assert "step 15 of 30" in shown
    assert "left" in shown
    monkeypatch.setattr(training, "train", lambda *_, **__: pytest.fail("it was started again"))
    assert command.main(arguments) == 0
    assert "finished already" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"protocol\.evaluation_every was 15, is 10"):
        command.main([*arguments, "--evaluation-every", "10"])


def test_a_run_that_learns_no_more_says_so_and_the_next_seed_is_still_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "_HOPELESS", 5)
    add = TensorReplay.add

    def add_nothing_finite(self: Any, observation: Any, action: Any, reward: Any, *others: Any) -> None:
        is_first_seed = not list(tmp_path.rglob("seed_1"))
        add(self, observation, action, reward * (float("nan") if is_first_seed else 1), *others)

    monkeypatch.setattr(TensorReplay, "add", add_nothing_finite)
    with pytest.raises(DivergedError, match="seed_0: training has diverged: critic_optimiser took none of its last"):
        command.main([*ARGUMENTS, *TINY, "--seeds", "0-1", "--out", str(tmp_path)])
    states = {path.parent.name: json.loads(path.read_text())["state"] for path in tmp_path.rglob("status.json")}
    assert states == {"seed_0": "diverged", "seed_1": "finished"}
    assert "seed_0: training has diverged" in capsys.readouterr().out


def test_a_sweep_does_not_take_another_run_for_its_own(tmp_path: Path) -> None:
    def run(*more: str) -> SweepRun:
        return make_run(task=TASK, preset="paper_mujoco", algorithm="cgpo", seed=0, steps=30, out=tmp_path, more=more)

    folder = tmp_path / TASK / "cgpo" / "paper_mujoco" / "seed_0"
    folder.mkdir(parents=True)
    ((settings,),) = command.settings_of([*run().command[3:]])
    (folder / "config.json").write_text(json.dumps({**settings.to_dict(), "starts": []}))
    (folder / "summary.json").write_text('{"env_step": 30}')
    assert run().is_finished()
    with pytest.raises(ConfigError, match=r"protocol\.episodes was 10, is 3"):
        run("--episodes", "3")


def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['gymnasium'] = None\n"
        "from benchmarks.mujoco.__main__ import main\n"
        "from policy.cli import run_main\n"
        "sys.exit(run_main(main))\n"
    )
    arguments = [*ARGUMENTS, "--out", str(tmp_path / "runs")]
    ended = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=100, check=False
    )
    assert ended.returncode == EXIT_CONFIG
    assert "gymnasium is not installed. Run launch/setup.sh sim" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.e2e
def test_a_process_that_is_interrupted_and_then_killed_is_continued_by_the_next(tmp_path: Path) -> None:
    arguments = [*ARGUMENTS, *TINY, "--steps", "120", "--checkpoint-minutes", "0.001", "--more-candidates", ""]
    interrupted, whole = tmp_path / "interrupted", tmp_path / "whole"
    code, shown = _signalled([*arguments, "--out", str(interrupted)], "step 30 of", signal.SIGINT)
    assert code == EXIT_INTERRUPTED
    assert "--resume" in shown, "it says how to go on"
    code, _ = _signalled([*arguments, "--out", str(interrupted), "--resume"], "step 60 of", signal.SIGKILL)
    assert code == -signal.SIGKILL
    for out in (interrupted, whole):
        assert command.main([*arguments, "--out", str(out), "--resume"]) == 0
    names = [next(out.rglob("curve.csv")) for out in (interrupted, whole)]
    one, other = ([row[: -len(WALL_CLOCK_COLUMNS)] for row in csv.reader(name.open())] for name in names)
    assert one == other
    assert len(one) == 1 + 120 // 15


@pytest.mark.e2e
def test_a_signal_to_all_processes_of_a_population_ends_it_with_a_checkpoint(tmp_path: Path) -> None:
    """As a service manager, a batch system and a terminal send it: to the workers too."""
    arguments = [*ARGUMENTS, *TINY, "--seeds", "0-1", "--population", "--steps", "100000", "--more-candidates", ""]
    arguments += ["--out", str(tmp_path), "--checkpoint-minutes", "1000"]
    code, shown = _signalled(arguments, "seed 1: step 30 of", signal.SIGTERM, to_all=True)
    assert code == EXIT_INTERRUPTED
    assert "--resume" in shown
    for path in tmp_path.rglob("status.json"):
        status = json.loads(path.read_text())
        assert status["state"] == "stopped"
        assert status["env_step"] >= 30


def _signalled(arguments: list[str], awaited: str, number: int, *, to_all: bool = False) -> tuple[int, str]:
    """Start the command and send it, or all its processes, a signal after the line with `awaited`.

    Returns exit code and the output after. Its output is a pipe, which Python buffers, as it does a sweep's log.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.mujoco", *arguments], stdout=subprocess.PIPE, text=True,
        start_new_session=True, env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
    )  # fmt: skip
    assert process.stdout is not None
    while awaited not in (line := process.stdout.readline()):
        assert line, "it ended before the signal"
    (os.killpg if to_all else os.kill)(process.pid, number)
    rest, _ = process.communicate(timeout=100)
    return process.returncode, rest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "Hoper-v4"], "unknown task"),
        (["--algorithm", "scao"], "unknown algorithm 'scao'"),
        (["--seeds", "0-"], "not like 0-4"),
        (["--set", "learner_rate=1"], "learner_rate"),
        (["--preset", "paper_mujoco", "--reduced"], "leave --reduced out"),
        (["--preset", "paper_mujoco", "--algorithm", "dipo"], "for algorithm 'cgpo', not 'dipo'"),
        (["--candidates", "4,x"], "not like 4 or 1,32"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(arguments: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        command.main([*ARGUMENTS, *arguments, "--out", str(tmp_path / "runs")])
    assert not (tmp_path / "runs").exists()


def test_names_follow_from_what_is_asked_for() -> None:
    assert parse_seeds("0-2,7") == (0, 1, 2, 7)
    assert default_preset("cgpo", is_reduced=False) == "paper_mujoco"
    assert default_preset("qvpo", is_reduced=True) == "reduced_mujoco_qvpo"
    one, other = ["guidance.type=none", "critic.ddqn = false"], ["critic.ddqn=false", "guidance.type=none"]
    assert variant_name("reduced_mujoco", one) == variant_name("reduced_mujoco", other)
    long = [f"cgpo.entropy_weight={'0' * 300}{end}" for end in "12"]
    assert len(variant_name("reduced_mujoco", long[:1])) <= 120
    assert variant_name("reduced_mujoco", long[:1]) != variant_name("reduced_mujoco", long[1:])
