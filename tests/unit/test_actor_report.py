"""Episode lines, the run folder's episode log, and the summary's figures."""

import dataclasses
import json
from pathlib import Path

import pytest

from actor.protocol_stages import Stage
from actor.report import (
    EpisodeReport,
    append_json_line,
    episode_line,
    intervention_figures,
    percentiles,
    read_episodes,
    typical_duration_s,
    write_json,
)
from policy.errors import ConfigError

REPORT = EpisodeReport(
    episode=42,
    kind="training",
    stage=None,
    is_success=True,
    reward_source="task",
    length=113,
    episode_return=1.0,
    duration_s=2.5,
    robot_s=11.3,
    human_s=2.0,
    interventions=2,
    intervention_steps=20,
    human_steps=20,
    clipped_steps=0,
    stale_image_steps=0,
    weights_version=317,
    weights_age_s=1.5,
    weights_lag_steps=40,
    backlog=7,
    stopped=False,
    is_discarded=False,
    is_aborted=False,
)


def test_episode_line() -> None:
    assert episode_line(REPORT, loop_p99_ms=52.4) == (
        "ep 042 SUCCESS 11.3 s  interv 2 (18 %)  return 1.0  policy v317 (1.5 s, 40 steps old)  loop p99 52 ms  "
        "backlog 7"
    )
    untrained = dataclasses.replace(REPORT, weights_version=0, weights_age_s=0.0, weights_lag_steps=0)
    assert "  policy v0  loop" in episode_line(untrained, 52.4)
    demonstration = dataclasses.replace(REPORT, kind="demonstration", is_success=False, intervention_steps=0)
    assert episode_line(demonstration, 52.4).startswith("demo 042 FAILURE 11.3 s")
    for changed, verdict in (
        (dataclasses.replace(REPORT, is_success=False, stopped=True), "STOPPED"),
        (dataclasses.replace(REPORT, is_success=False, is_aborted=True), "ABORTED"),
        (dataclasses.replace(REPORT, is_discarded=True), "DISCARDED"),
    ):
        assert episode_line(changed, 52.4).startswith(f"ep 042 {verdict} ")
        assert not changed.is_counted
    staged = dataclasses.replace(REPORT, stage=Stage.CORRECTION, stale_image_steps=3)
    assert episode_line(staged, 52.4).startswith("ep 042 SUCCESS 11.3 s  correction  interv 2")
    assert episode_line(staged, 52.4).endswith("  stale images 3")


def test_episodes_survive_a_restart_and_a_torn_last_line(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    assert read_episodes(path) == []
    append_json_line(path, REPORT)
    with path.open("a") as file:
        file.write('{"episode": 43, "ki')  # killed while writing
    assert read_episodes(path) == [REPORT]
    append_json_line(path, dataclasses.replace(REPORT, episode=43))
    assert [report.episode for report in read_episodes(path)] == [42, 43]


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    path.write_text('{"episode": 1}\n')
    with pytest.raises(ConfigError, match=r"episodes.jsonl is not the episode list"):
        read_episodes(path)


def test_interventions_are_counted_over_training_steps_only() -> None:
    demonstration = dataclasses.replace(REPORT, kind="demonstration", intervention_steps=0, length=1000)
    policy_alone = dataclasses.replace(REPORT, intervention_steps=0, length=87)
    assert intervention_figures([demonstration, REPORT, policy_alone]) == {"steps": 20, "fraction": 0.1}
    assert intervention_figures([]) == {"steps": 0, "fraction": 0.0}


def test_percentiles_of_nothing_are_zero() -> None:
    assert percentiles([]) == {"p50": 0.0, "p95": 0.0}
    assert percentiles([1.0, 2.0, 3.0]) == {"p50": 2.0, "p95": 2.9}


def test_json_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"a": 1})
    write_json(path, {"b": [2.0]})
    assert json.loads(path.read_text()) == {"b": [2.0]}
    assert list(tmp_path.iterdir()) == [path]


def test_the_typical_duration_is_that_of_the_policy_alone() -> None:
    demonstration = dataclasses.replace(REPORT, kind="demonstration", duration_s=1.0, intervention_steps=0)
    helped = dataclasses.replace(REPORT, kind="training", duration_s=3.0, intervention_steps=5)
    alone = [
        dataclasses.replace(REPORT, kind="training", duration_s=float(i), intervention_steps=0) for i in range(1, 31)
    ]
    assert typical_duration_s([], 0.0, 0.0) == 0.0
    assert typical_duration_s([demonstration], 0.0, 0.0) == 1.0
    assert typical_duration_s([demonstration, helped], 0.0, 0.0) == 3.0
    assert typical_duration_s([demonstration, *alone, helped], 0.0, 0.0) == 20.5  # 11 to 30, the latest twenty


@pytest.mark.parametrize(
    ("pace", "next_pace", "expected_s"),
    [(2.0, 0.0, 1.5), (2.0, 1.0, 10.5), (2.0, 2.0, 5.5), (2.0, 20.0, 1.5), (2.0, 4.0, 3.0), (0.0, 1.0, 11.5)],
)
def test_the_typical_duration_is_that_of_the_pace(pace: float, next_pace: float, expected_s: float) -> None:
    """10 s of the robot, at twice real time in 5 s, of which 4 s were slept; half a second was the reset's."""
    slept_s = 4.0 if pace else 0.0
    report = dataclasses.replace(REPORT, duration_s=1.5 + slept_s, slept_s=slept_s, robot_s=10.0)
    assert typical_duration_s([report], pace, next_pace) == pytest.approx(expected_s)
