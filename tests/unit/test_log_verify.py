"""python -m learner.log verify: finds nothing in what the system writes, and whatever else is done to a log."""

import json
import sqlite3
import threading
import zlib
from contextlib import closing
from pathlib import Path

import pytest
from cgpo_proto import link_pb2

from actor.archive import DemonstrationArchive
from actor.spool import Spool
from learner.config import LearnerConfig
from learner.import_log import import_logs
from policy.episode_log import EpisodeLog
from policy.errors import EXIT_CONFIG, EXIT_CORRUPT_FILE
from policy.transition import EpisodeMark, MarkKind, Recordable
from policy.wire import encode_body
from tests.log_files import LEFT, Call, caller, mark, records, steps, write_log, write_run
from tests.transitions import SPECS, make_transition


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    return caller(monkeypatch, capsys)


def test_verify_finds_nothing_in_a_sound_log_and_says_how_much_it_read(run_dir: Path, call: Call) -> None:
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
    position: int, values: dict[str, object], meaning: str, place: str, run_dir: Path, call: Call
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


def test_verify_goes_on_behind_what_is_wrong_and_lists_no_flood(tmp_path: Path, call: Call) -> None:
    path = write_log(tmp_path, records(steps(0, 40)))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE records SET payload = x'00' WHERE position <= 30")
    code, out, _ = call("verify", tmp_path)
    assert code == EXIT_CORRUPT_FILE
    assert "and 20 more" in out
    assert "40 rows" in out


@pytest.mark.parametrize("damage", ["no specs", "bad specs", "cut", "no database", "a page"])
def test_verify_of_a_broken_file_ends_with_its_exit_code(damage: str, tmp_path: Path, call: Call) -> None:
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


def test_a_bookmark_in_the_place_of_a_damaged_first_step_explains_it(tmp_path: Path, call: Call) -> None:
    lost = mark(1, 0, MarkKind.BOOKMARK, "lost: step 0 of episode 1, which the disk damaged in the actor's spool")
    write_log(tmp_path, records([*steps(0, 2), lost, *steps(1, 3)[1:]]))
    code, out, _ = call("verify", tmp_path)
    assert code == 0, out


def test_what_an_actor_archives_can_be_read_checked_and_imported(tmp_path: Path, call: Call) -> None:
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


def test_gaps_are_normal_in_an_archive_and_nowhere_else(tmp_path: Path, call: Call) -> None:
    chosen = [record for record in records(LEFT) if record.episode in (0, 2)]
    write_log(tmp_path / "demonstrations", chosen, allows_gaps=True)
    write_log(tmp_path / "moved", chosen, allows_gaps=True)
    assert call("verify", tmp_path / "demonstrations")[0] == 0
    assert json.loads(call("ls", tmp_path, "--json")[1])["actors"]["left"]["missing"] is None
    assert call("verify", tmp_path / "moved")[0] == EXIT_CORRUPT_FILE
    assert call("verify", tmp_path / "moved", "--allow-gaps")[0] == 0


def test_it_reads_while_ingest_writes_and_never_writes_itself(tmp_path: Path, call: Call) -> None:
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
