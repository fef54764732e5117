"""launch/sim.sh with stand-ins for learner and actor: supervision, Ctrl-C, failures, and what a run leaves behind.

The stand-ins are programs named learner and actor in the current folder; `python -m` finds them first.
"""

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from actor.tasks import make_task
from benchmarks import first_run
from launch import report, sim
from launch.processes import wait_for
from launch.progress import JsonLines, Progress, figures_table, stage_text
from policy.config import load_preset
from policy.episode_log import EpisodeLog
from policy.errors import EXIT_INTERRUPTED, EXIT_PORT_IN_USE, ConfigError
from policy.transition import RecordId
from tests.transitions import make_transition

HANG_LIMIT_S = 30.0

COMMON = """
import json, os, pathlib, signal, sys, time, tomllib
tables = tomllib.loads(pathlib.Path(sys.argv[2]).read_text())
folder = pathlib.Path(tables[NAME]["run_dir"])
folder.mkdir(parents=True)
stopped = []
signal.signal(signal.SIGINT, lambda *_: stopped.append(1))
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
def write(name, content): (folder / name).write_text(json.dumps(content))
def note(what):
    with open("order.txt", "a") as file: file.write(what + "\\n")
"""

LEARNER = (
    'NAME = "learner"'
    + COMMON
    + """
write("ingest.json", {"address": f"127.0.0.1:{tables['learner']['port']}", "pid": os.getpid()})
with (folder / "metrics.jsonl").open("w") as file:
    for step in range(50, 500, 50):
        row = {"updates": step, "env_steps": step, "q_mean": 0.01 * step, "target_advantage_mean": 1.0, "wall_s": step}
        file.write(json.dumps(row) + "\\n")
while not stopped: time.sleep(0.01)
note("learner")
write("learner_summary.json", {"algorithm": "cgpo", "updates": 450, "updates_per_s": 9.5})
"""
)

EPISODE = {
    "kind": "training",
    "is_success": True,
    "length": 40,
    "episode_return": 1.0,
    "duration_s": 0.5,
    "robot_s": 4.0,
    "human_s": 0.0,
    "interventions": 0,
    "intervention_steps": 0,
    "human_steps": 0,
    "clipped_steps": 0,
    "stale_image_steps": 0,
    "weights_version": 3,
    "weights_age_s": 1.5,
    "backlog": 0,
    "stage": None,
    "reward_source": "task",
    "stopped": False,
    "is_discarded": False,
    "is_aborted": False,
}
EVALUATION = {
    "kind": "final",
    "requested_episodes": 50,
    "episodes": 50,
    "successes": 46,
    "success_rate": 0.92,
    "wilson_low": 0.812,
    "wilson_high": 0.968,
    "mean_return": 0.92,
    "mean_length": 33.5,
}

ACTOR_EPISODES = (
    'NAME = "actor"'
    + COMMON
    + f"""
episode, evaluation = {EPISODE!r}, {EVALUATION!r}
with (folder / "episodes.jsonl").open("w") as file:
    for number in range(12):
        kind = "demonstration" if number < 2 else "training"
        human = 20 if number == 5 else 0
        human_s = 4.0 if number < 2 else human / 10
        row = {{**episode, "episode": number, "kind": kind, "intervention_steps": human, "human_s": human_s}}
        file.write(json.dumps(row) + "\\n")
        print(f"ep {{number:03d}} SUCCESS")
"""
)

# All succeeded, and the interval's end is rounded below its middle.
INTERIM = {"kind": "interim", "env_steps": 200, "weights_version": 2, "success_rate": 1.0, "wilson_high": 1 - 1e-16}

ACTOR_SUMMARY = (
    f"""
INTERIM = {INTERIM!r}"""
    + """
interrupted = bool(stopped)
with (folder / "evaluations.jsonl").open("w") as file:
    file.write(json.dumps({**evaluation, **INTERIM}) + "\\n")
    if not interrupted:
        file.write(json.dumps({**evaluation, "env_steps": 400, "weights_version": 3}) + "\\n")
summary = {
    "env_steps": 480, "episodes": 12, "interrupted": interrupted,
    "control": {"period_ms": {"p50": 100.0, "p99": 101.0, "max": 104.0}, "overruns": 0},
    "link": {"sent": 480, "acked": 480, "offered": 480, "pending": 0, "bytes_per_transition": 300.0},
    "weights": {"version": 3, "staleness_s": {"p50": 1.0, "p95": 2.0}},
    "intervention": {"steps": 20, "fraction": 0.05},
    "eval": None if interrupted else {key: evaluation[key] for key in (
        "episodes", "successes", "success_rate", "wilson_low", "wilson_high", "mean_return", "mean_length")},
}
write("actor_summary.json", summary)
(folder / "videos").mkdir()
(folder / "videos" / "final_00_success.mp4").write_bytes(b"film")
note("actor")
"""
)

WAIT_FOR_STOP = "\nwhile not stopped: time.sleep(0.01)\n"

FACTS = report.RunFacts(
    title="", task="", preset="", algorithm="", seed=0, command="", wall_s=1.0, interrupted=False, failure=""
)

SUMMARY_KEYS = {
    "task": None,
    "preset": None,
    "algorithm": None,
    "seed": None,
    "wall_s": None,
    "env_steps": None,
    "episodes": None,
    "updates": None,
    "updates_per_s": None,
    "control": {"period_ms": {"p50", "p99", "max"}, "overruns": None},
    "link": {"sent", "acked", "lost", "duplicated", "bytes_per_transition"},
    "weights": {"version": None, "staleness_s": {"p50", "p95"}},
    "intervention": {"steps", "fraction"},
    "eval": {"episodes", "successes", "success_rate", "wilson_low", "wilson_high", "mean_return", "mean_length"},
}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def run_sim(monkeypatch: pytest.MonkeyPatch, learner: str, actor: str, *arguments: str) -> int:
    Path("learner.py").write_text(learner)
    Path("actor.py").write_text(actor)
    monkeypatch.setattr(sys, "argv", ["sim", "--out", "run", *arguments])
    return sim.main()


def read_summary() -> dict[str, Any]:
    summary: dict[str, Any] = json.loads(Path("run/summary.json").read_text())
    return summary


def assert_has_keys(summary: Any, keys: Any) -> None:
    assert set(keys) <= set(summary)
    for key in keys:
        if isinstance(keys, dict) and keys[key]:
            assert_has_keys(summary[key], keys[key])


def press_ctrl_c(when: Path, count: int = 1) -> None:
    """Send SIGINT to this process once `when` exists, `count` times."""

    def press() -> None:
        wait_for(when.exists, HANG_LIMIT_S)
        for _ in range(count):
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()


def test_a_finished_run_leaves_its_summary_report_curve_videos_and_configuration(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run_sim(monkeypatch, LEARNER, ACTOR_EPISODES + ACTOR_SUMMARY, "--seed", "4", "--set", "guidance.type=none")
    assert code == 0
    assert Path("order.txt").read_text().split() == ["actor", "learner"]  # the learner saw the actor's last steps
    shown = capsys.readouterr().out
    assert "ep 000 SUCCESS\n" in shown
    assert "46 of 50" in shown

    summary = read_summary()
    assert_has_keys(summary, SUMMARY_KEYS)
    assert (summary["task"], summary["preset"], summary["algorithm"], summary["seed"]) == (
        "peg_in_hole",
        "sim_quick",
        "cgpo",
        4,
    )
    assert (summary["updates"], summary["env_steps"]) == (450, 480)
    assert summary["eval"]["successes"] == 46
    assert summary["unknown"] == ["link.lost", "link.duplicated"]  # this learner kept no log

    text = Path("run/report.md").read_text()
    assert "46 of 50 unassisted evaluation episodes succeeded, 92 % (95 % interval 81 % to 97 %)" in text.split("\n")[0]
    assert "12, 2 of them demonstrations" in text
    assert "`link.lost`" in text
    assert "--set guidance.type=none" in text
    assert "| 280 | 2 | 46 of 50 |" in text  # 200 training steps after 80 of demonstration
    assert Path("run/videos/final_00_success.mp4").read_bytes() == b"film"
    assert Path("run/learning_curve.png").read_bytes().startswith(b"\x89PNG")
    tables = load_preset("run/config.toml")
    assert tables["learner"]["cgpo"]["guidance"]["type"] == "none"
    assert tables["learner"]["seed"] == tables["actor"]["seed"] == 4
    assert tables["actor"]["learner"] == f"127.0.0.1:{tables['learner']['port']}"


STATE_BASED = ("pixels=false", "encoder=none")


@pytest.mark.parametrize(
    ("options", "preset", "pixels", "encoder", "stages"),
    [
        ({}, "sim_quick", False, "none", False),
        ({"pixels": True}, "sim_pixels", True, "resnet10", True),
        ({"preset": "paper_robot"}, "paper_robot", True, "resnet10", True),
        ({"preset": "paper_robot", "overrides": (STATE_BASED,)}, "paper_robot", False, "none", True),
        (
            {"preset": "sim_quick", "pixels": True, "overrides": (("encoder=resnet10", "encoder_weights=random"),)},
            "sim_quick",
            True,
            "resnet10",
            False,
        ),
    ],
)
def test_what_is_observed_and_who_helps_by_preset_and_option(
    options: dict[str, Any], preset: str, pixels: bool, encoder: str, stages: bool
) -> None:
    run = sim.resolve(sim.Options(out="run", **options))
    assert (run.preset, run.actor.pixels, run.actor.stages.enabled) == (preset, pixels, stages)
    assert run.learner.policy == run.actor.policy
    assert run.actor.policy.encoder == encoder
    is_random = run.actor.policy.encoder_weights == "random"
    assert any("Random image encoder" in note for note in sim.notes(run)) == (pixels and is_random)


@pytest.mark.parametrize("line", first_run.LINES, ids=lambda line: line.name)
def test_the_published_commands_are_still_understood(line: first_run.Line) -> None:
    run = sim.resolve(sim.Options(out="run", overrides=(line.settings,)))
    assert run.actor.stages.enabled is False  # as in the table: only the fading help is switched off there


def test_paper_robot_is_table_3() -> None:
    run = sim.resolve(sim.Options(out="run", preset="paper_robot"))
    replay, cgpo = run.learner.replay, run.learner.cgpo
    assert (replay.batch_size, replay.demonstration_fraction, replay.capacity) == (256, 0.5, 20_000)
    assert (cgpo.cta_ratio, cgpo.discount, run.learner.steps_per_update) == (2, 0.98, 50)
    assert all(make_task(name).max_episode_steps == 100 for name in ("peg_in_hole", "cube_stacking"))


def test_a_folder_that_holds_a_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("run").mkdir()
    Path("run/config.toml").write_text("")
    with pytest.raises(ConfigError, match=r"run already holds a run.*--out"):
        run_sim(monkeypatch, LEARNER, ACTOR_EPISODES)


def test_ctrl_c_lets_both_finish_and_still_writes_a_valid_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    press_ctrl_c(Path("run/actor/episodes.jsonl"))
    code = run_sim(monkeypatch, LEARNER, ACTOR_EPISODES + WAIT_FOR_STOP + ACTOR_SUMMARY)
    assert code == EXIT_INTERRUPTED
    assert Path("order.txt").read_text().split() == ["actor", "learner"]
    summary = read_summary()
    assert_has_keys(summary, SUMMARY_KEYS)
    assert summary["interrupted"] is True
    assert summary["eval"]["success_rate"] is None
    assert summary["env_steps"] == 480
    text = Path("run/report.md").read_text()
    assert "no final evaluation, the run was interrupted after 480 environment steps" in text
    assert summary["unknown"] == ["link.lost", "link.duplicated", "eval"]
    assert "`eval`: the run was stopped before they were measured" in text


def test_a_second_ctrl_c_ends_an_actor_that_does_not_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    press_ctrl_c(Path("run/actor/episodes.jsonl"), count=2)
    deaf = ACTOR_EPISODES + "\nwhile True: time.sleep(0.01)\n"
    assert run_sim(monkeypatch, LEARNER, deaf) == EXIT_INTERRUPTED
    summary = read_summary()  # from the episode lines, as the actor wrote none
    assert (summary["env_steps"], summary["episodes"]) == (480, 12)
    assert summary["intervention"] == {"steps": 20, "fraction": 0.05}
    assert summary["control"]["overruns"] is None


def test_an_actor_that_dies_ends_the_run_with_its_code_and_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    dying = ACTOR_EPISODES + '\nsys.stderr.write("error: the arm is unplugged\\n")\nsys.exit(7)\n'
    with pytest.raises(
        sim.ChildFailedError, match=r"actor ended with exit code 7(.*\n)+error: the arm is unplugged"
    ) as error:
        run_sim(monkeypatch, LEARNER, dying)
    assert error.value.exit_code == 7
    assert read_summary()["updates"] == 450  # the learner was ended in good order
    assert "the actor ended with exit code 7" in Path("run/report.md").read_text()


def test_a_learner_that_cannot_start_ends_the_run_before_the_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(sim.ChildFailedError, match="learner ended with exit code 69") as error:
        run_sim(monkeypatch, f"import sys; sys.exit({EXIT_PORT_IN_USE})", ACTOR_EPISODES + ACTOR_SUMMARY)
    assert error.value.exit_code == EXIT_PORT_IN_USE
    assert not Path("order.txt").exists()
    assert read_summary()["episodes"] == 0


def test_a_learner_that_dies_stops_the_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    dying = LEARNER.replace("while not stopped:", "while not pathlib.Path('run/actor/episodes.jsonl').exists():")
    with pytest.raises(sim.ChildFailedError, match="learner ended with exit code 0 before the actor was done"):
        run_sim(monkeypatch, dying, ACTOR_EPISODES + WAIT_FOR_STOP + ACTOR_SUMMARY)
    assert read_summary()["env_steps"] == 480  # the actor was asked to finish and did


def test_children_do_not_outlive_a_killed_launcher() -> None:
    Path("learner.py").write_text(LEARNER)
    Path("actor.py").write_text(ACTOR_EPISODES + WAIT_FOR_STOP + ACTOR_SUMMARY)
    command = [sys.executable, "-P", "-m", "launch.sim", "--out", "run"]  # -P: the launcher itself sees no stand-ins
    launcher = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert wait_for(Path("run/actor/episodes.jsonl").exists, HANG_LIMIT_S)
    launcher.kill()
    launcher.wait()
    # Each was sent SIGTERM by the kernel, on which it finishes and notes its name.
    assert wait_for(
        lambda: Path("order.txt").exists() and len(Path("order.txt").read_text().split()) == 2, HANG_LIMIT_S
    )


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_stages_and_human_time_are_shown_and_reported(tmp_path: Path) -> None:
    # 10 Hz: 300 steps are half a minute. A demonstration, two episodes alone, one corrected, a demonstration again.
    demonstration = {"kind": "demonstration", "length": 300, "robot_s": 30.0, "human_s": 30.0}
    alone = {"length": 600, "robot_s": 60.0, "is_success": False, "stage": "exploration"}
    corrected = {"length": 600, "robot_s": 60.0, "human_s": 15.0, "intervention_steps": 150, "stage": "correction"}
    episodes = [
        {"stage": "guidance", **demonstration},
        alone,
        alone,
        corrected,
        {"stage": "demonstration", **demonstration},
    ]
    write_lines(
        tmp_path / "actor" / "episodes.jsonl",
        [{**EPISODE, "reward_source": "classifier", **row, "episode": i} for i, row in enumerate(episodes)],
    )
    change = {"episode": 2, "env_steps": 1500, "from": "exploration", "to": "correction", "reason": "2 of 2 failed"}
    last = {"episode": 3, "env_steps": 2100, "from": "correction", "to": "demonstration", "reason": "failure persists"}
    write_lines(tmp_path / "actor" / "stages.jsonl", [change, last])
    write_lines(tmp_path / "actor" / "evaluations.jsonl", [{**EVALUATION, "env_steps": 1200, "weights_version": 1}])
    progress = Progress(tmp_path)
    progress.update()
    assert [row["env_steps"] for row in progress.evaluations] == [1500]  # the later demonstration comes after it

    stage = stage_text(progress)
    assert stage is not None
    assert "DEMONSTRATION" in stage.plain
    assert "failure persists" in stage.plain
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(figures_table(progress))
    panel = console.export_text()
    assert re.search(r"human drove, min +1:15 of 4:00 +episodes judged by +classifier 5", panel)

    facts = replace(FACTS, notes=("The encoder is a random one.",))
    summary = report.write_report(tmp_path, facts)
    assert summary["human_time"]["human_s"] == 75.0
    assert summary["reward_sources"] == {"classifier": 5}
    text = (tmp_path / "report.md").read_text()
    assert "- The encoder is a random one." in text
    assert "A human drove 1.2 of 4.0 min on the robot (31%)" in text
    assert "| exploration | 2 | 0 of 2 | 2.0 | 0.0 | 0.0 | 0% |" in text
    assert "| correction | 1 | - | 1.0 | 0.0 | 0.2 | 25% |" in text
    assert "| 3 | 2,100 | correction | demonstration | failure persists |" in text
    assert "Share of human steps in each 10 training episodes: 8%." in text  # 150 of 1,800


@pytest.mark.parametrize(("overruns", "pace", "is_noted"), [(24, 1.0, True), (23, 1.0, False), (400, 2.0, False)])
def test_a_control_loop_in_real_time_that_is_often_late_is_noted(
    tmp_path: Path, overruns: int, pace: float, is_noted: bool
) -> None:
    (tmp_path / "actor").mkdir()
    figures = {"env_steps": 480, "control": {"period_ms": {"p50": 1.0, "p99": 1.0, "max": 1.0}, "overruns": overruns}}
    (tmp_path / "actor" / "actor_summary.json").write_text(json.dumps(figures))
    report.write_report(tmp_path, replace(FACTS, pace=pace))
    assert (f"{overruns} of 480 control periods (5%) were late" in (tmp_path / "report.md").read_text()) is is_noted


NO_EVALUATION = dict.fromkeys(EVALUATION)
PARTIAL = {**EVALUATION, "episodes": 12, "successes": 11, "success_rate": 11 / 12}


@pytest.mark.parametrize(
    ("ending", "evaluation", "words"),
    [
        ({"interrupted": True}, NO_EVALUATION, "no final evaluation, the run was interrupted after 480"),
        ({"failure": "the actor ended"}, NO_EVALUATION, "no final evaluation, the run ended early after 480"),
        ({"stopped": True}, NO_EVALUATION, "no final evaluation, the run ended early after 480"),
        ({}, NO_EVALUATION, "no final evaluation, as none was asked for, after 480"),
        ({}, EVALUATION, "46 of 50 unassisted evaluation episodes succeeded, 92 % (95 % interval 81 % to 97 %)"),
        ({"interrupted": True}, PARTIAL, "97 %), stopped before all 50 were done"),
    ],
)
def test_the_verdict_is_true_of_every_ending(ending: dict[str, Any], evaluation: dict[str, Any], words: str) -> None:
    summary = {"task": "reach", "algorithm": "bc", "seed": 1, "env_steps": 480, "eval": evaluation}
    line = report.verdict({**summary, "interrupted": False, "failure": "", "stopped": False, **ending})
    assert line.startswith("reach, bc, seed 1: ")
    assert line.endswith(words) or line.endswith(f"{words} environment steps")


@pytest.mark.parametrize(("offered", "pending", "lost"), [(3, 0, 0), (5, 2, 0), (5, 3, 0), (5, 1, 1)])
def test_what_the_log_holds_before_its_acknowledgement_makes_up_for_no_loss(
    tmp_path: Path, offered: int, pending: int, lost: int
) -> None:
    log = EpisodeLog(tmp_path / "learner" / "log.sqlite")
    log.append((RecordId("robot", "incarnation", number), make_transition(number)) for number in range(3))
    log.close()
    (tmp_path / "actor").mkdir()
    figures = {"link": {"offered": offered, "pending": pending}}
    (tmp_path / "actor" / "actor_summary.json").write_text(json.dumps(figures))
    link = report.summarise(tmp_path, FACTS, Progress(tmp_path))["link"]
    assert (link["lost"], link["duplicated"]) == (lost, 0)


@pytest.mark.parametrize("actors", [("left",), ("left", "right")])
def test_what_came_of_each_actor_is_shown_where_there_are_several(tmp_path: Path, actors: tuple[str, ...]) -> None:
    log = EpisodeLog(tmp_path / "learner" / "log.sqlite")
    for actor in actors:
        count = 2 if actor == "left" else 3
        log.append((RecordId(actor, "incarnation", number), make_transition(number)) for number in range(count))
    log.close()
    counts = {actor: 1000 * len(actor) for actor in actors}
    summary_path = tmp_path / "learner" / "learner_summary.json"
    summary_path.write_text("")  # as in the middle of a write
    progress = Progress(tmp_path)
    progress.update()
    summary_path.write_text(json.dumps({"transitions_by_actor": counts}))
    progress.update()
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(figures_table(progress))
    summary = report.write_report(tmp_path, FACTS)
    assert summary["link"]["records_by_actor"] == {actor: 2 if actor == "left" else 3 for actor in actors}
    assert ("left 4,000, right 5,000" in console.export_text()) is (len(actors) > 1)
    assert ("| records of each actor | left 2, right 3 |" in (tmp_path / "report.md").read_text()) is (len(actors) > 1)


def test_a_line_that_is_still_being_written_is_read_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = JsonLines(path)
    lines.update()
    path.write_bytes(b'{"a": 1}\n{"a"')
    lines.update()
    assert lines.rows == [{"a": 1}]
    with path.open("ab") as file:
        file.write(b": 2}\n")
    lines.update()
    assert lines.rows == [{"a": 1}, {"a": 2}]
