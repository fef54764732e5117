"""What a robot PC is set up with, its udev rules, and its preset."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("arguments", "extras"),
    [
        ("", "robot sim"),
        ("--task peg_in_hole --backend twin", "robot sim"),
        ("--backend deoxys --task peg_in_hole", "robot"),
        ("--backend=deoxys", "robot"),
        ("--preset franka_lab --learner deoxys:50051", "robot"),
        ("--preset=franka_lab", "robot"),
        ("--preset franka_lab --backend twin", "robot sim"),
        ("--preset paper_robot", "robot sim"),
        ("--preset paper_robot --backend deoxys", "robot"),
        ("--preset sim_quick --preset my.toml", "robot"),
        ("--preset nowhere.toml", "robot sim"),
        ("--learner deoxys", "robot sim"),
        ("--backend", "robot sim"),
    ],
)
def test_the_simulator_is_installed_unless_the_arm_is_real(arguments: str, extras: str, tmp_path: Path) -> None:
    launch = tmp_path / "launch"
    shutil.copytree(ROOT / "launch" / "presets", launch / "presets")
    shutil.copy(ROOT / "launch" / "robot_pc.sh", launch)
    setup = launch / "setup.sh"
    setup.write_text('#!/bin/sh\necho "$@"\n')
    setup.chmod(0o755)
    (tmp_path / "my.toml").write_text('[actor]\nbackend = "deoxys" # ours\n')
    command = [str(launch / "robot_pc.sh"), *arguments.split()]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (finished.stdout, finished.stderr, finished.returncode) == (extras + "\n", "", 0)


@pytest.mark.parametrize("name", ["actor", "record", "evaluate", "doctor"])
def test_every_program_at_the_robot_is_set_up_by_its_arguments(name: str) -> None:
    assert 'launch/robot_pc.sh "$@"' in (ROOT / "launch" / f"{name}.sh").read_text()
