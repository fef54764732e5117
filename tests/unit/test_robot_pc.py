"""What a robot PC is set up with, its udev rules, and its preset."""

import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pytest

from actor.config import ActorConfig, RecorderConfig
from actor.doctor.__main__ import DoctorConfig
from actor.workcell import configured_task
from learner.config import LearnerConfig
from policy.cli import parse_config
from robot.franka import forward_kinematics
from robot.pose import O_R_DOWN, make_pose, rotation_from_rotvec
from robot.teleop.spacemouse import UDEV_RULE

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


def test_the_labs_preset_trains_as_the_papers_does() -> None:
    lab, paper = (
        tomllib.loads((ROOT / "launch" / "presets" / f"{name}.toml").read_text())
        for name in ("franka_lab", "paper_robot")
    )
    where = {"host": "0.0.0.0", "credentials": "credentials/learner"}
    assert lab["policy"] == paper["policy"]
    assert lab["learner"] == paper["learner"] | where
    same = {"pixels", "demonstrations", "pace", "eval_pace", "stages"}
    assert {name: lab["actor"][name] for name in same} == {name: paper["actor"][name] for name in same}


def test_the_labs_arm_is_at_home_inside_its_box_pointing_down() -> None:
    config = parse_config(ActorConfig, "actor", ["--preset", "franka_lab"], "", example="")
    safety = config.limits.applied_to(configured_task(config).safety)
    F_T_EE = make_pose(rotation_from_rotvec([0.0, 0.0, -np.pi / 4]), [0.0, 0.0, 0.16])
    O_T_EE = forward_kinematics(np.array(config.deoxys.home_q), F_T_EE)
    np.testing.assert_allclose(O_T_EE[:3, :3], O_R_DOWN, atol=1e-6)
    assert (safety.workspace_min_m < O_T_EE[:3, 3]).all()
    assert (O_T_EE[:3, 3] < safety.workspace_max_m).all()
    assert O_T_EE[2, 3] > 0.2, "a peg in the hand stays above what stands on the table"


def test_each_udev_rule_names_a_device_and_what_becomes_of_it() -> None:
    rules = [
        line
        for path in sorted((ROOT / "launch" / "udev").glob("*.rules"))
        for line in path.read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert UDEV_RULE in rules, "what an error message shows is what is installed"
    for rule in rules:
        parts = [re.fullmatch(r'([A-Z_]+)(\{\w+\})?(==|=|\+=)"[^"]+"', part) for part in rule.split(", ")]
        assert all(parts), rule
        operators = [part[3] for part in parts if part]
        assert "==" in operators, rule
        assert set(operators) - {"=="}, rule


def launcher_commands() -> list[list[str]]:
    text = (ROOT / "docs" / "robot_setup.md").read_text().replace("\\\n", " ")
    fenced = [line for block in re.findall(r"```\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    commands = [
        shlex.split(command, comments=True) for command in fenced + inline if re.match(r"launch/\w+\.sh", command)
    ]
    assert len(commands) > 8
    return commands


@pytest.mark.parametrize("command", launcher_commands(), ids=" ".join)
def test_the_commands_of_the_set_up_exist_and_take_their_options(command: list[str]) -> None:
    programs = {
        "actor": (ActorConfig, "actor"),
        "doctor": (DoctorConfig, "actor"),
        "learner": (LearnerConfig, "learner"),
        "record": (RecorderConfig, "actor"),
    }
    script = ROOT / command[0]
    assert script.is_file()
    if script.stem in programs:
        cls, section = programs[script.stem]
        parse_config(cls, section, command[1:], "", example="")
