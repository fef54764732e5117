"""python -m learner.log: what it says of a log, what it finds wrong with one, and what it takes out of it."""

import json
import os
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learner.config import LearnerConfig, ReplayConfig
from learner.import_log import import_logs
from learner.log.__main__ import parse_numbers
from learner.log.episodes import EpisodeRecord
from learner.log.export import consecutive_steps
from learner.log.folder import find_log
from learner.replay import Replay
from policy.episode_log import EpisodeLog
from policy.errors import EXIT_CONFIG, EXIT_CORRUPT_FILE, ConfigError
from policy.image_codec import encode_image
from policy.log_records import LogEntry
from policy.spec import ImageField, Specs
from policy.transition import EpisodeMark, MarkKind, Recordable, RecordId, Transition
from tests.log_files import LEFT, RIGHT, RIGHT_BEFORE, Call, caller, mark, records, steps, write_log, write_run
from tests.transitions import SPECS, make_transition


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    return caller(monkeypatch, capsys)


def test_ls_says_of_each_episode_what_the_marks_left(run_dir: Path, call: Call) -> None:
    code, out, _ = call("ls", run_dir, "--json")
    assert code == 0
    said = json.loads(out)
    found = [
        tuple(episode[key] for key in ("number", "actor_id", "incarnation", "episode", "kind", "result", "steps"))
        for episode in said["episodes"]
    ]
    assert found == [
        (1, "left", "inc-b", 0, "demonstration", "success", 4),
        (2, "left", "inc-b", 1, "policy", "failure", 3),
        (3, "left", "inc-b", 2, "interventions", "discarded", 2),
        (4, "left", "inc-b", 3, "policy", "success", 3),
        (5, "left", "inc-b", 4, "policy", "open", 2),
        (6, "right", "inc-a", 0, "policy", "aborted", 3),
        (7, "right", "inc-b", 0, "policy", "failure", 1),  # its only step is worth 0
    ]
    returns = [episode["return"] for episode in said["episodes"]]
    assert returns == [0 + 1 + 2 + 3, 0 + 1 + 0, 0 + 1, 0 + 1 + 1, 0 + 1, 0 + 1 + 2, 0]
    assert said["episodes"][3]["recorded_steps"] == 5
    assert said["episodes"][1]["marks"] == [{"kind": "FAILURE", "step": 2, "note": "it had slipped"}]
    assert said["episodes"][5]["weights_versions"] == [7, 7]
    left, right = said["actors"]["left"], said["actors"]["right"]
    assert (left["records"], left["steps"], left["human_share"], left["missing"]) == (19, 16, 0.375, 0)
    assert (right["records"], right["incarnations"], right["episodes"]) == (5, 2, 2)
    # make_transition gives a step a second; three seconds from the first to the last of 19 records.
    assert left["records_per_minute"] == pytest.approx(60 * 19 / 4)

    code, out, _ = call("ls", run_dir)
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[1:8]] == list("1234567")
    assert lines[4].split()[4:9] == ["policy", "3", "of", "5", "2"]
    assert "success" in lines[4]
    assert lines[-1].split()[:3] == ["right", "5", "0"]


def test_a_dead_actors_episode_is_over_also_without_a_mark(tmp_path: Path, call: Call) -> None:
    write_log(tmp_path, records(RIGHT_BEFORE, "inc-a", "right"), records(RIGHT, "inc-b", "right"))
    episodes = json.loads(call("ls", tmp_path, "--json")[1])["episodes"]
    assert [episode["result"] for episode in episodes] == ["aborted", "failure"]


def test_what_went_elsewhere_or_was_refused_is_counted(tmp_path: Path, call: Call) -> None:
    late = [record for record in records(LEFT) if record.record_id.sequence >= 4]
    late[1] = replace(late[1], refusal="a step of another arm\n\x1b[2J", payload=b"\1\2\3")
    write_log(tmp_path, late)
    left = json.loads(call("ls", tmp_path, "--json")[1])["actors"]["left"]
    assert (left["missing"], left["quarantined"], left["records"]) == (4, 1, 14)
    code, out, _ = call("show", tmp_path, "--quarantine")
    assert code == 0
    assert "1 records in quarantine" in out
    assert "left, incarnation inc-b, record 5, 3 bytes: 01 02 03" in out
    assert r"a step of another arm\n\x1b[2J" in out  # and not as a terminal would obey it
    code, out, _ = call("verify", tmp_path)  # a hole that the quarantine explains
    assert code == 0
    assert "quarantine: left 1" in out
    assert "before the first that came here: 4" in out


events = st.lists(
    st.one_of(
        st.just("step"),
        st.tuples(st.sampled_from([MarkKind.SUCCESS, MarkKind.FAILURE, MarkKind.BOOKMARK]), st.integers(0, 6)),
    ),
    max_size=14,
)


@given(events=events, ending=st.sampled_from(["", "terminated", "truncated"]), late=events)
def test_marks_leave_the_steps_that_the_replay_trains_on(events: list[Any], ending: str, late: list[Any]) -> None:
    """Same records, same order: what would be exported is what can be drawn, with its reward and its end."""
    replay = Replay(ReplayConfig(capacity=100), SPECS.observation, SPECS.action.dim, seed=0)
    record = EpisodeRecord(1, ("robot", "a", 0), [], may_go_on=True)
    entries: list[Recordable] = []
    for event in events:
        count = sum(isinstance(body, Transition) for body in entries)
        if event == "step":
            entries.append(make_transition(count, reward=float(count % 2)))
        elif event[1] < count:
            entries.append(mark(0, event[1], event[0]))
    count = sum(isinstance(body, Transition) for body in entries)
    if ending:
        last = make_transition(count, is_last=True, reward=1.0)
        entries.append(replace(last, terminated=ending == "terminated", truncated=ending == "truncated"))
        entries += [mark(0, event[1], event[0]) for event in late if event != "step" and event[1] <= count]
    for sequence, body in enumerate(entries):
        record_id = RecordId("robot", "a", sequence)
        replay.add(record_id, body)
        record.add(LogEntry(sequence + 1, record_id, body))

    online = replay.online
    _, actions, rewards, _, is_terminal, *_ = online.gather(online._valid.at(torch.arange(len(online))))
    drawn = sorted(zip(actions.tolist(), rewards.tolist(), is_terminal.tolist(), strict=True))
    bodies = {body.step: body for body in entries if isinstance(body, Transition)}
    kept = [
        (bodies[number].executed_action.tolist(), record.steps[number].reward, float(record.steps[number].terminated))
        for run in consecutive_steps(record)
        for number in run
    ]
    assert sorted(kept) == drawn


IMAGE_SPECS = Specs(
    replace(
        SPECS.observation,
        images=(ImageField(name="wrist", height=16, width=24), ImageField(name="side", height=8, width=8)),
    ),
    SPECS.action,
)


def with_images(body: Recordable) -> Recordable:
    """Add images to a step: a JPEG and a raw one, which differ from step to step."""
    if isinstance(body, EpisodeMark):
        return body
    rng = np.random.default_rng((body.episode, body.step))

    def add(observation: Any) -> Any:
        wrist = np.repeat(np.repeat(rng.integers(0, 256, (2, 3, 3), np.uint8), 8, axis=0), 8, axis=1)
        side = rng.integers(0, 256, (8, 8, 3), np.uint8)
        return {**observation, "wrist": encode_image(wrist, "jpeg"), "side": encode_image(side, "raw")}

    final = None if body.final_observation is None else add(body.final_observation)
    return replace(body, observation=add(body.observation), final_observation=final)


def test_show_writes_the_images_that_were_sent(tmp_path: Path, call: Call) -> None:
    bodies = [with_images(body) for body in [*steps(0, 2), mark(0, 1, MarkKind.BOOKMARK, "look")]]
    write_log(tmp_path, records(bodies), specs=IMAGE_SPECS)
    code, out, _ = call("show", tmp_path, 1)
    assert code == 0
    assert "mark BOOKMARK of step 1" in out
    assert ": look" in out
    last = bodies[1]
    assert isinstance(last, Transition)
    assert last.final_observation is not None
    code, out, _ = call("show", tmp_path, 1, "--step", 1, "--images", tmp_path / "images")
    assert "wrist            jpeg, 24 x 16 pixels" in out
    assert f"{last.executed_action[0]:+.2f}" in out
    assert "observation at the end" in out
    assert "4 images" in out
    names = {"wrist_00001.jpg", "side_00001.png", "wrist_00001_end.jpg", "side_00001_end.png"}
    assert {path.name for path in (tmp_path / "images").iterdir()} == names
    assert (tmp_path / "images" / "wrist_00001.jpg").read_bytes() == last.observation["wrist"].data
    shown = cv2.imread(str(tmp_path / "images" / "side_00001_end.png"))
    assert shown is not None
    np.testing.assert_array_equal(shown[:, :, ::-1], last.final_observation["side"].pixels)


def test_images_whose_names_lead_elsewhere_are_not_written(tmp_path: Path, call: Call) -> None:
    bodies = [with_images(body) for body in steps(0, 1)]
    write_log(tmp_path / "run", records(bodies), specs=IMAGE_SPECS)
    specs = tmp_path / "run" / "specs.json"
    specs.write_text(specs.read_text().replace('"wrist"', '"../up"'))  # as an earlier release took it
    code, _, err = call("show", tmp_path / "run", 1, "--images", tmp_path / "images")
    assert code == EXIT_CORRUPT_FILE
    assert "'../up' cannot name a field or image" in err
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("show", "RUN", 99), "has no episode 99"),
        (("show", "RUN"), "show which episode"),
        (("show", "RUN", 1, "--step", 40), "no step 40 in this log, it has 0 to 3"),
        (("ls", "NOWHERE"), "there is no episode log"),
        (("export", "RUN", "NEW", "--episodes", "1-"), "give numbers"),
        (("export", "RUN", "NEW", "--episodes", "3"), "none of 1 episodes"),  # it is discarded
        (("export", "RUN", "RUN"), "is there already"),
    ],
)
def test_mistakes_are_answered_with_what_to_do(words: tuple[object, ...], says: str, run_dir: Path, call: Call) -> None:
    places = {"RUN": run_dir, "NOWHERE": run_dir / "nowhere", "NEW": run_dir / "new.hdf5"}
    code, _, err = call(*(places.get(word, word) if isinstance(word, str) else word for word in words))
    assert code == EXIT_CONFIG
    assert says in err
    assert not (run_dir / "new.hdf5").exists()


def test_numbers_and_ranges_name_episodes() -> None:
    assert parse_numbers(["3", "7-9", "8"]) == {3, 7, 8, 9}
    for word in ("0", "9-7", "a", "1-99999999999"):
        with pytest.raises(ConfigError, match="give numbers"):
            parse_numbers([word])


def test_a_folder_is_found_by_what_is_in_it(tmp_path: Path) -> None:
    archive = write_log(tmp_path / "actor" / "demonstrations", records(LEFT))
    assert find_log(tmp_path / "actor") == find_log(tmp_path / "actor" / "demonstrations") == archive
    learner = write_log(tmp_path / "run" / "learner", records(LEFT))
    assert find_log(tmp_path / "run") == find_log(learner) == learner


def test_episodes_taken_out_as_a_log_can_be_trained_from(run_dir: Path, tmp_path: Path, call: Call) -> None:
    code, out, _ = call("export", run_dir, tmp_path / "chosen", "--to-log", "--episodes", "1", "3-4", "--discarded")
    assert code == 0, out
    assert call("verify", tmp_path / "chosen")[0] == 0
    episodes = json.loads(call("ls", tmp_path / "chosen", "--json")[1])["episodes"]
    assert [(episode["episode"], episode["result"]) for episode in episodes] == [
        (0, "success"),
        (2, "discarded"),
        (3, "success"),
    ]
    import_logs(LearnerConfig(run_dir=tmp_path / "new", from_log=(tmp_path / "chosen",), from_log_take="all"))
    with closing(EpisodeLog(tmp_path / "new" / "log.sqlite")) as log:
        assert log.count() == 4 + 2 + 1 + 5 + 1
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_it_starts_without_torch() -> None:
    program = "import sys, learner.log.__main__; sys.exit('torch' in sys.modules or 'grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_output_into_a_pipe_that_closes_is_no_error(run_dir: Path) -> None:
    command = f"{sys.executable} -m learner.log ls {run_dir} | head -n 1"
    shell = ["bash", "-o", "pipefail", "-c", command]
    finished = subprocess.run(shell, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert finished.stdout.split()[:2] == ["#", "actor"]
    assert finished.stderr == ""
