"""Command lines: preset under flags, helpful help, one message and a documented exit code for each error."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from learner.config import LearnerConfig
from policy import errors
from policy.cli import parse_config, run_main
from policy.files import replace_durably

PRESET = """
[policy]
num_critics = 3

[learner]
seed = 5
port = 6000

[learner.cgpo.guidance]
rate = 0.25

[actor]
demonstrations = 7
"""


@pytest.fixture
def preset(tmp_path: Path) -> str:
    path = tmp_path / "mine.toml"
    path.write_text(PRESET)
    return str(path)


def parse(*argv: str, default_preset: str = "") -> LearnerConfig:
    return parse_config(LearnerConfig, "learner", argv, "Learn.", example="example", default_preset=default_preset)


def test_flags_override_the_preset_and_the_preset_the_defaults(preset: str) -> None:
    config = parse("--seed", "8", "--policy.num-quantiles", "9", "--preset", preset, "--cgpo.target_update_rate", "0.5")
    assert (config.seed, config.port, config.host) == (8, 6000, LearnerConfig().host)
    assert (config.policy.num_critics, config.policy.num_quantiles) == (3, 9)
    assert (config.cgpo.guidance.rate, config.cgpo.target_update_rate) == (0.25, 0.5)


def test_a_preset_on_the_command_line_replaces_the_default_one(preset: str) -> None:
    assert parse(default_preset=preset).seed == 5
    assert parse("--preset=sim_quick", default_preset=preset).seed == LearnerConfig().seed


def test_help_shows_groups_the_presets_values_and_exit_codes(
    preset: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as exit_info:
        parse("--preset", preset, "--help")
    assert exit_info.value.code == 0
    shown = capsys.readouterr().out
    assert "cgpo.guidance options" in shown
    assert re.search(r"--seed INT[\s│]+Seed of networks[^(]*\(default: 5\)", shown)
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    documented = {int(code) for code in re.findall(r"^ +(\d+)  ", shown, re.MULTILINE)}
    assert documented == codes | {1}


def test_an_unknown_flag_exits_with_2_and_shows_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        parse("--cgpo.guidence.rate", "0.5")
    assert exit_info.value.code == errors.EXIT_CONFIG
    assert "--cgpo.guidance.rate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[lerner]\nseed = 1", "unknown preset table 'lerner'.*Did you mean 'learner'"),
        ("[learner]\nsed = 1", "unknown configuration key 'learner.sed'.*Did you mean 'learner.seed'"),
        ("[policy]\nnum_critcs = 1", "Did you mean 'policy.num_critics'"),
        ("[learner.policy]\nnum_critics = 1", r"\[learner.policy\].*write the table \[policy\]"),
        ("[learner.cgpo]\ndiscount = 2.0", r"discount = 2.0 is outside \(0, 1\)"),
    ],
)
def test_a_preset_with_a_mistake_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(errors.ConfigError, match=message):
        parse("--preset", str(path))


def test_an_error_for_the_operator_is_one_message_and_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        raise errors.PortInUseError("port 1 is taken; choose another")

    assert run_main(main) == errors.EXIT_PORT_IN_USE
    assert capsys.readouterr().err == "error: port 1 is taken; choose another\n"


def test_debug_shows_where_the_error_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    def main() -> int:
        raise errors.WeightsError("corrupt")

    monkeypatch.setattr(sys, "argv", ["program", "--debug"])
    with pytest.raises(errors.WeightsError):
        run_main(main)


def test_an_error_that_is_not_meant_for_the_operator_keeps_its_traceback() -> None:
    def main() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_main(main)


def test_a_full_disk_is_said_with_the_file_and_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert run_main(lambda: replace_durably(tmp_path / "config.json", b"{}")) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: cannot write {tmp_path}/config.tmp: No space left on device.")
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_leaves_early_causes_no_traceback() -> None:
    program = subprocess.Popen(
        [sys.executable, "-m", "learner", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    program.stdout.close()
    _, complaint = program.communicate(timeout=120)
    assert complaint == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["learner", "--preset", "sim_quik"], "unknown preset 'sim_quik'. Did you mean 'sim_quick'?"),
        (["learner", "--algorithm", "cpgo"], "unknown algorithm 'cpgo'. Did you mean 'cgpo'?"),
        (["learner", "--policy.denoising-steps", "1"], "denoising_steps = 1"),
        (["learner", "--port", "70000"], "learner.port = 70000 is outside 0 to 65535"),
        (["learner", "--cgpo.discount", "1.5"], "discount = 1.5 is outside (0, 1)"),
        (["learner", "--policy.behavior-candidates", "1"], "Set cgpo.entropy_reduction = 'mean'"),
        (["actor", "--task", "peg_in_hol"], "unknown task 'peg_in_hol'. Did you mean 'peg_in_hole'?"),
        (["actor", "--backend", "twinn"], "unknown robot backend 'twinn'. Did you mean 'twin'?"),
        (["launch.sim", "--set", "guidence.type=none"], "Did you mean 'learner.cgpo.guidance.type'?"),
        (["launch.sim", "--set", "seed=1"], "it could be learner.seed or actor.seed"),
        (["launch.sim", "--set", "learner.port=fast"], "learner.port = 'fast': expected int"),
        (["launch.sim", "--preset", "robot"], "unknown preset 'robot'"),
        (["launch.sim", "--out", "/dev/null/run"], "cannot use /dev/null/run as a folder"),
        (["learner", "--run-dir", "/dev/null"], "cannot use /dev/null as a folder"),
        (["actor", "--backend", "fake", "--run-dir", "/dev/null", "--pace", "1"], "cannot use /dev/null as a folder"),
        (["launch.sim", "--task", "reech"], "unknown task 'reech'. Did you mean 'reach'?"),
        (["launch.sim", "--set", "backend=deoxis"], "Did you mean 'deoxys'? Valid: deoxys, fake, twin."),
    ],
)
def test_programs_exit_with_2_for_a_configuration_error(arguments: list[str], message: str, tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert (finished.returncode, message in finished.stderr) == (errors.EXIT_CONFIG, True), finished.stderr
    assert "Traceback" not in finished.stderr
    assert list(tmp_path.iterdir()) == []  # nothing was started or written
