"""Lines of metrics.jsonl: averages, and what a resumed learner takes back."""

import json
import resource
from pathlib import Path

import pytest

from launch.progress import JsonLines
from learner.metrics import MetricsWriter


def write_steps(writer: MetricsWriter, steps: range) -> None:
    for step in steps:
        if writer.count_step():
            writer.write(writer.line({"loss": float(step)}, learner_step=step))


def steps_in(path: Path) -> list[int]:
    return [json.loads(line)["learner_step"] for line in path.read_text().splitlines()]


def test_a_line_is_due_after_so_many_steps(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_steps(MetricsWriter(path, every=2), range(1, 6))
    assert [json.loads(line)["loss"] for line in path.read_text().splitlines()] == [2.0, 4.0]


@pytest.mark.parametrize("tail", ["", '{"learner_step": 11, "lo'])  # a line that a kill has cut off
def test_going_on_from_a_step_takes_back_what_came_after_it(tmp_path: Path, tail: str) -> None:
    path = tmp_path / "metrics.jsonl"
    follower = JsonLines(path)
    write_steps(MetricsWriter(path, every=2), range(1, 11))
    with path.open("a") as file:
        file.write(tail)
    follower.update()
    assert [row["learner_step"] for row in follower.rows] == [2, 4, 6, 8, 10]

    resumed = MetricsWriter(path, every=2)
    resumed.rewind(5)
    write_steps(resumed, range(6, 14))
    assert steps_in(path) == [2, 4, 7, 9, 11, 13]
    follower.update()
    assert [row["learner_step"] for row in follower.rows] == steps_in(path)


def test_a_new_run_has_nothing_to_take_back(tmp_path: Path) -> None:
    MetricsWriter(tmp_path / "metrics.jsonl", every=2).rewind(0)
    assert not list(tmp_path.iterdir())


def test_steps_before_going_back_are_not_counted_with_those_after(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / "metrics.jsonl", every=2)
    assert not writer.count_step()
    writer.rewind(6)
    assert [writer.count_step() for _ in range(2)] == [False, True]


def test_a_line_that_does_not_fit_is_not_begun(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(path, every=1)
    write_steps(writer, range(1, 2))
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, hard))
    try:
        with pytest.raises(OSError, match=r"metrics\.jsonl"):
            write_steps(writer, range(2, 3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    write_steps(writer, range(3, 4))
    assert steps_in(path) == [1, 3]
