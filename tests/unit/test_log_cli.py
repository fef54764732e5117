"""python -m learner.log: what it says of a log, what it finds wrong with one, and what it takes out of it."""

import json
import os
import sqlite3
import subprocess
import sys
import threading
import zlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from cgpo_proto import link_pb2
from hypothesis import given
from hypothesis import strategies as st

from actor.archive import DemonstrationArchive
from actor.spool import Spool
from learner.config import LearnerConfig, ReplayConfig
from learner.import_log import import_logs
from learner.log.__main__ import main, parse_numbers
from learner.log.episodes import EpisodeRecord
from learner.log.export import consecutive_steps
from learner.log.folder import find_log
from learner.replay import Replay
from policy.cli import run_main
from policy.episode_log import EpisodeLog
from policy.errors import EXIT_CONFIG, EXIT_CORRUPT_FILE, ConfigError
from policy.image_codec import encode_image
from policy.log_records import EncodedRecord, LogEntry
from policy.spec import ImageField, Specs
from policy.transition import ActionSource, EpisodeMark, MarkKind, Recordable, RecordId, Transition
from policy.wire import encode_body
from tests.transitions import SPECS, make_transition

HUMAN, INTERVENTION, POLICY = (
    *(ActionSource.HUMAN_DEMONSTRATION, ActionSource.HUMAN_INTERVENTION, ActionSource.POLICY),
)


def steps(episode: int, length: int, *, ends: bool = True, **changes: Any) -> list[Recordable]:
    """Return an episode that ends in success, or is cut off after `length` steps."""
    return [
        make_transition(step, episode=episode, is_last=ends and step == length - 1, **changes) for step in range(length)
    ]


def mark(episode: int, step: int, kind: MarkKind, note: str = "") -> EpisodeMark:
    return EpisodeMark(episode=episode, step=step, kind=kind, wall_time_s=1.7e9, note=note)


def records(bodies: Sequence[Recordable], incarnation: str = "inc-b", actor: str = "left") -> list[EncodedRecord]:
    return [EncodedRecord.of(RecordId(actor, incarnation, number), body) for number, body in enumerate(bodies)]


def write_log(folder: Path, *groups: list[EncodedRecord], specs: Specs = SPECS, allows_gaps: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "specs.json").write_text(specs.to_json())
    with closing(EpisodeLog(folder / "log.sqlite", specs, allows_gaps=allows_gaps)) as log:
        for group in groups:
            assert not log.append_encoded(group).gaps
    return folder / "log.sqlite"


LEFT = [
    *steps(0, 4, source=HUMAN),
    *steps(1, 3),
    mark(1, 2, MarkKind.FAILURE, "it had slipped"),
    *steps(2, 2, source=INTERVENTION),
    mark(2, 1, MarkKind.DISCARD),
    *steps(3, 5, ends=False),
    mark(3, 2, MarkKind.SUCCESS),
    *steps(4, 2, ends=False),
]
RIGHT_BEFORE = [*steps(0, 3, ends=False, weights_version=7)]  # its actor died, and said so later
RIGHT = [*steps(0, 1, weights_version=8)]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Two actors, of which one was started twice, as under launch/sim.sh."""
    write_log(
        tmp_path / "run" / "learner",
        records(LEFT),
        records([*RIGHT_BEFORE, mark(0, 2, MarkKind.ABORTED)], "inc-a", "right"),
        records(RIGHT, "inc-b", "right"),
    )
    return tmp_path / "run"


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command line; returns exit code, standard output and error."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["log", *map(str, words)])
        code = run_main(main)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_ls_says_of_each_episode_what_the_marks_left(run_dir: Path, call: Any) -> None:
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


def test_a_dead_actors_episode_is_over_also_without_a_mark(tmp_path: Path, call: Any) -> None:
    write_log(tmp_path, records(RIGHT_BEFORE, "inc-a", "right"), records(RIGHT, "inc-b", "right"))
    episodes = json.loads(call("ls", tmp_path, "--json")[1])["episodes"]
    assert [episode["result"] for episode in episodes] == ["aborted", "failure"]


def test_what_went_elsewhere_or_was_refused_is_counted(tmp_path: Path, call: Any) -> None:
    late = [record for record in records(LEFT) if record.record_id.sequence >= 4]
    late[1] = replace(late[1], refusal="a step of another arm", payload=b"\1\2\3")
    write_log(tmp_path, late)
    left = json.loads(call("ls", tmp_path, "--json")[1])["actors"]["left"]
    assert (left["missing"], left["quarantined"], left["records"]) == (4, 1, 14)
    code, out, _ = call("show", tmp_path, "--quarantine")
    assert code == 0
    assert "1 records in quarantine" in out
    assert "left, incarnation inc-b, record 5, 3 bytes: 01 02 03" in out
    assert "a step of another arm" in out
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
    _, actions, rewards, _, is_terminal, *_ = online.gather(online._valid.at(np.arange(len(online))))
    drawn = sorted(zip(actions.tolist(), rewards.tolist(), is_terminal.tolist(), strict=True))
    bodies = {body.step: body for body in entries if isinstance(body, Transition)}
    kept = [
        (bodies[number].executed_action.tolist(), record.steps[number].reward, float(record.steps[number].terminated))
        for run in consecutive_steps(record)
        for number in run
    ]
    assert sorted(kept) == drawn


def test_verify_finds_nothing_in_a_sound_log_and_says_how_much_it_read(run_dir: Path, call: Any) -> None:
    code, out, err = call("verify", run_dir)
    assert (code, err) == (0, "")
    assert "24 rows" in out
    assert "of 7 episodes" in out
    assert "log.sqlite: sound" in out
    assert "their actor ended in them: 3" in out  # one under way, one aborted, one that a mark ended


def forge(path: Path, position: int, **values: object) -> None:
    """Change one row by hand."""
    with closing(sqlite3.connect(path)) as connection, connection:
        names = ", ".join(f"{name} = ?" for name in values)
        connection.execute(f"UPDATE records SET {names} WHERE position = ?", (*values.values(), position))


def with_body(body: Recordable) -> dict[str, object]:
    payload = encode_body(body)
    crc32, is_mark = zlib.crc32(payload), isinstance(body, EpisodeMark)
    return {"payload": payload, "crc32": crc32, "is_mark": is_mark, "episode": body.episode, "step": body.step}


def final_without_end(step: int, episode: int) -> dict[str, object]:
    """A body that wire.py would not make: a last step without its final observation."""
    whole = with_body(make_transition(step, episode=episode))
    payload = whole["payload"]
    assert isinstance(payload, bytes)
    message = link_pb2.Body.FromString(payload)
    message.transition.truncated = True
    payload = message.SerializeToString()
    return whole | {"payload": payload, "crc32": zlib.crc32(payload)}


@pytest.mark.parametrize(
    ("position", "values", "meaning", "place"),
    [
        (2, {"payload": b"\0"}, "does not match its checksum", "position 2: record 1 of left, incarnation inc-b"),
        (2, {"payload": b"\0", "crc32": zlib.crc32(b"\0")}, "not one of the specs", "not a record's body"),
        (3, {"step": 9}, "something else about its record", "position 3"),
        (3, {"is_mark": 1}, "something else about its record", "position 3"),
        (4, final_without_end(3, 0), "not one of the specs", "exactly the last step carries one"),
        (19, {"position": 18}, "rows were removed", ""),
        (2, {"sequence": 99}, "not in the order in which they were made", "record 2 of left"),
        (5, {"sequence": 99, "incarnation": "x"}, "records are missing", "position 6: record 5"),
        (6, with_body(make_transition(0, episode=1)), "under several sequences", "episode 1, step 0: 2 times"),
        (7, with_body(make_transition(0, episode=1)), "not in their order", "position 7"),
        (3, with_body(make_transition(2, is_last=True)), "after its episode's last one", "position 4"),
        (
            24,
            with_body(make_transition(3, weights_version=7)),
            "begins in its middle",
            "position 24: record 0 of right",
        ),
        (7, with_body(make_transition(7)), "goes on after a later one began", "position 7"),
    ],
)
def test_verify_names_what_is_wrong_and_where(
    position: int, values: dict[str, object], meaning: str, place: str, run_dir: Path, call: Any
) -> None:
    path = run_dir / "learner" / "log.sqlite"
    if "position" in values:
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("DELETE FROM records WHERE position = 18")
    else:
        forge(path, position, **values)
    code, out, err = call("verify", run_dir)
    assert code == EXIT_CORRUPT_FILE
    (said,) = [part for part in out.split("WRONG: ")[1:] if meaning in part.splitlines()[0]] or [out]
    assert meaning in said
    assert place in said
    assert "problems, see above" in err


def test_verify_goes_on_behind_what_is_wrong_and_lists_no_flood(tmp_path: Path, call: Any) -> None:
    path = write_log(tmp_path, records(steps(0, 40)))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE records SET payload = x'00' WHERE position <= 30")
    code, out, _ = call("verify", tmp_path)
    assert code == EXIT_CORRUPT_FILE
    assert "and 20 more" in out
    assert "40 rows" in out


@pytest.mark.parametrize("damage", ["no specs", "bad specs", "cut", "no database", "a page"])
def test_verify_of_a_broken_file_ends_with_its_exit_code(damage: str, tmp_path: Path, call: Any) -> None:
    path = write_log(tmp_path, records(steps(0, 400)))
    content = path.read_bytes()
    if damage == "no specs":
        (tmp_path / "specs.json").unlink()
    elif damage == "bad specs":
        (tmp_path / "specs.json").write_text("{}")
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "no database":
        path.write_bytes(b"a table of something else\n" * 500)
    else:
        path.write_bytes(content[:8192] + bytes(4096) + content[12288:])
    code, out, err = call("verify", tmp_path)
    assert code == EXIT_CORRUPT_FILE
    assert "log.sqlite" in err
    assert "Traceback" not in err
    if "specs" in damage:
        assert "specs.json" in out
        assert "400 rows" in out  # all that can be checked without them was
    # The other commands say so too, and do not fall over it.
    code, _, err = call("ls", tmp_path)
    assert code == (EXIT_CONFIG if damage == "no specs" else EXIT_CORRUPT_FILE)
    assert err.startswith("error: ")


def test_a_bookmark_in_the_place_of_a_damaged_first_step_explains_it(tmp_path: Path, call: Any) -> None:
    lost = mark(1, 0, MarkKind.BOOKMARK, "lost: step 0 of episode 1, which the disk damaged in the actor's spool")
    write_log(tmp_path, records([*steps(0, 2), lost, *steps(1, 3)[1:]]))
    code, out, _ = call("verify", tmp_path)
    assert code == 0, out


def test_what_an_actor_archives_can_be_read_checked_and_imported(tmp_path: Path, call: Any) -> None:
    archive = DemonstrationArchive(tmp_path / "actor" / "demonstrations", SPECS)
    spool = Spool(tmp_path / "actor" / "spool.sqlite", "left", "inc-b", archive=archive)
    for body in LEFT:
        spool.offer(body)
    assert spool.flush(60)
    spool.acknowledge("inc-b", len(LEFT))
    assert spool.wait_until_empty(60)
    spool.close()
    code, out, _ = call("verify", tmp_path / "actor")
    assert code == 0, out
    episodes = json.loads(call("ls", tmp_path / "actor", "--json")[1])["episodes"]
    assert [(episode["episode"], episode["kind"], episode["steps"]) for episode in episodes] == [
        (0, "demonstration", 4)
    ]
    import_logs(LearnerConfig(run_dir=tmp_path / "new", from_log=(tmp_path / "actor",)))
    assert json.loads(call("ls", tmp_path / "new", "--json")[1])["episodes"] == episodes


def test_gaps_are_normal_in_an_archive_and_nowhere_else(tmp_path: Path, call: Any) -> None:
    chosen = [record for record in records(LEFT) if record.episode in (0, 2)]
    write_log(tmp_path / "demonstrations", chosen, allows_gaps=True)
    write_log(tmp_path / "moved", chosen, allows_gaps=True)
    assert call("verify", tmp_path / "demonstrations")[0] == 0
    assert json.loads(call("ls", tmp_path, "--json")[1])["actors"]["left"]["missing"] is None
    assert call("verify", tmp_path / "moved")[0] == EXIT_CORRUPT_FILE
    assert call("verify", tmp_path / "moved", "--allow-gaps")[0] == 0


def test_it_reads_while_ingest_writes_and_never_writes_itself(tmp_path: Path, call: Any) -> None:
    group = records(steps(0, 300, ends=False))
    write_log(tmp_path, group[:50])
    stop = threading.Event()

    def write() -> None:
        with closing(EpisodeLog(tmp_path / "log.sqlite")) as log:
            for record in group[50:]:
                log.append_encoded([record])
            stop.wait(60)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    try:
        for _ in range(5):
            assert call("verify", tmp_path)[0] == 0
            assert call("ls", tmp_path)[0] == 0
    finally:
        stop.set()
        writer.join(60)
    assert not writer.is_alive()
    with closing(EpisodeLog(tmp_path / "log.sqlite")) as log:
        assert log.count() == 300


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


def test_show_writes_the_images_that_were_sent(tmp_path: Path, call: Any) -> None:
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
def test_mistakes_are_answered_with_what_to_do(words: tuple[object, ...], says: str, run_dir: Path, call: Any) -> None:
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


def test_episodes_taken_out_as_a_log_can_be_trained_from(run_dir: Path, tmp_path: Path, call: Any) -> None:
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
