"""Earlier runs' records in a new run: each once, under its own id, with its marks, or nothing at all."""

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from launch.sim import Options, resolve
from learner.config import LearnerConfig, ReplayConfig
from learner.import_log import count_demonstrations, import_logs
from learner.replay import Replay
from policy.episode_log import EpisodeLog
from policy.errors import ConfigError, CorruptFileError, SpecMismatchError
from policy.log_records import EncodedRecord, LogEntry
from policy.spec import ImageField, Specs
from policy.transition import ActionSource, EpisodeMark, MarkKind, Recordable, RecordId
from tests.transitions import SPECS, assert_equal, make_transition

LENGTH = 4
KINDS = (  # of an earlier run's episodes
    ActionSource.HUMAN_DEMONSTRATION,
    ActionSource.POLICY,
    ActionSource.HUMAN_DEMONSTRATION,  # discarded below, after the next episode
    ActionSource.HUMAN_INTERVENTION,
)
DISCARDED = 2
Record = tuple[RecordId, Recordable]


def earlier_records(incarnation: str) -> list[Record]:
    bodies: list[Recordable] = []
    for episode, source in enumerate(KINDS):
        for step in range(LENGTH):
            # In each demonstration one step counts as the policy's, as where an input device failed.
            own = ActionSource.POLICY if step == 1 else source
            is_last = step == LENGTH - 1
            bodies.append(make_transition(step, episode=episode, source=own, is_last=is_last))
    bodies.append(EpisodeMark(episode=DISCARDED, step=LENGTH - 1, kind=MarkKind.DISCARD, wall_time_s=1.0))
    bodies.append(EpisodeMark(episode=1, step=0, kind=MarkKind.BOOKMARK, wall_time_s=1.0))
    return [(RecordId("robot", incarnation, sequence), body) for sequence, body in enumerate(bodies)]


def earlier_run(folder: Path, incarnation: str = "old", specs: Specs = SPECS) -> list[Record]:
    """Make the folder of an earlier run and return what its log holds."""
    records = earlier_records(incarnation)
    log = EpisodeLog(folder / "learner" / "log.sqlite", SPECS)
    log.append(records)
    log.close()
    (folder / "learner" / "specs.json").write_text(specs.to_json())
    return records


def config(run_dir: Path, *logs: Path, take_all: bool = False) -> LearnerConfig:
    return LearnerConfig(run_dir=run_dir, from_log=logs, from_log_take="all" if take_all else "demonstrations")


def entries(run_dir: Path) -> list[LogEntry]:
    log = EpisodeLog(run_dir / "log.sqlite", SPECS, read_only=True)
    try:
        return log.read_after(0, 1000)
    finally:
        log.close()


def assert_holds(run_dir: Path, expected: list[Record]) -> None:
    found = entries(run_dir)
    assert [entry.record_id for entry in found] == [record_id for record_id, _ in expected]
    assert [entry.position for entry in found] == list(range(1, len(expected) + 1))
    for entry, (_, body) in zip(found, expected, strict=True):
        assert_equal(entry.body, body)


def of_demonstrations(records: list[Record]) -> list[Record]:
    return [record for record in records if record[1].episode in (0, DISCARDED)]


def test_whole_demonstrations_come_with_their_marks_and_nothing_else(tmp_path: Path) -> None:
    records = earlier_run(tmp_path / "old")
    import_logs(config(tmp_path / "new", tmp_path / "old"))
    assert_holds(tmp_path / "new", of_demonstrations(records))
    assert Specs.from_json((tmp_path / "new" / "specs.json").read_text()) == SPECS
    assert count_demonstrations([tmp_path / "old", tmp_path / "old" / "learner"]) == 1  # the other one is discarded


def test_a_simulated_run_demonstrates_only_what_earlier_ones_lack(tmp_path: Path) -> None:
    earlier_run(tmp_path / "a", "a")
    earlier_run(tmp_path / "b", "b")
    for logs, missing in (((), 5), (("a", "b", "a"), 3)):
        paths = tuple(tmp_path / name for name in logs)
        options = Options(out=str(tmp_path / "new"), from_log=paths, overrides=(("actor.demonstrations=5",),))
        resolved = resolve(options)
        assert (resolved.actor.demonstrations, resolved.learner.from_log) == (missing, paths)


def test_a_discarded_demonstration_is_not_learned_from(tmp_path: Path) -> None:
    earlier_run(tmp_path / "old")
    import_logs(config(tmp_path / "new", tmp_path / "old"))
    replay = Replay(ReplayConfig(capacity=100), SPECS.observation, SPECS.action.dim, seed=0)
    for entry in entries(tmp_path / "new"):
        replay.add(entry.record_id, entry.body)
    # Of the kept demonstration the three steps that are a person's, and the policy's one in between.
    assert (len(replay.demonstrations), len(replay.online)) == (LENGTH - 1, 1)


def test_everything_can_be_taken(tmp_path: Path) -> None:
    records = earlier_run(tmp_path / "old")
    import_logs(config(tmp_path / "new", tmp_path / "old" / "learner" / "log.sqlite", take_all=True))
    assert_holds(tmp_path / "new", records)


def test_nothing_comes_twice(tmp_path: Path) -> None:
    records, others = earlier_run(tmp_path / "old"), earlier_run(tmp_path / "other", "other")
    once = of_demonstrations(records)
    import_logs(config(tmp_path / "new", tmp_path / "old", tmp_path / "old" / "learner"))
    import_logs(config(tmp_path / "new", tmp_path / "old"))  # a restart
    assert_holds(tmp_path / "new", once)
    import_logs(config(tmp_path / "new", tmp_path / "old", tmp_path / "other"))
    assert_holds(tmp_path / "new", once + of_demonstrations(others))
    import_logs(config(tmp_path / "newer", tmp_path / "new" / "log.sqlite"))  # an import of imports
    import_logs(config(tmp_path / "newer", tmp_path / "old", tmp_path / "other"))
    assert_holds(tmp_path / "newer", once + of_demonstrations(others))


def test_the_log_says_where_records_came_from(tmp_path: Path) -> None:
    first, second = earlier_run(tmp_path / "a", "a"), earlier_run(tmp_path / "b", "b")
    import_logs(config(tmp_path / "new", tmp_path / "a", tmp_path / "b"))
    rows = sqlite3.connect(tmp_path / "new" / "log.sqlite").execute(
        "SELECT first_position, last_position, source FROM imports ORDER BY first_position"
    )
    count = len(of_demonstrations(first))
    assert rows.fetchall() == [
        (1, count, str(tmp_path / "a" / "learner" / "log.sqlite")),
        (count + 1, count + len(of_demonstrations(second)), str(tmp_path / "b" / "learner" / "log.sqlite")),
    ]


def test_an_actor_with_imported_records_in_its_spool_loses_none_and_repeats_none(tmp_path: Path) -> None:
    """Its spool begins within what was imported and goes on behind it; the import has gaps in between."""
    records = earlier_run(tmp_path / "old")
    import_logs(config(tmp_path, tmp_path / "old"))
    log = EpisodeLog(tmp_path / "log.sqlite", SPECS)
    assert log.next_sequence("robot", "old") == 0  # of what it holds, nothing may be deleted unsent
    assert log.statistics() == []  # nothing came over the link
    held = {record_id for record_id, _ in of_demonstrations(records)}
    pending = records[6:]
    new = [record_id for record_id, _ in pending if record_id not in held]
    for record in pending:  # one to a batch: what is remembered within a batch must not be needed
        assert log.append([record]) == (record[0] not in held)
    assert log.append(pending) == 0
    assert {entry.record_id for entry in log.read_after(0, 1000)} == held | set(new)
    assert log.next_sequence("robot", "old") == new[-1].sequence + 1
    (stream,) = log.statistics()
    assert (stream.records, stream.duplicated) == (len(new), 0)
    log.close()


def archive(folder: Path, records: list[Record], refused: Record | None = None) -> None:
    """Make an actor's archive of demonstrations, with gaps where other episodes were; one record may be refused."""
    log = EpisodeLog(folder / "demonstrations" / "log.sqlite", SPECS, allows_gaps=True)
    encoded = [EncodedRecord.of(*record) for record in of_demonstrations(records)]
    if refused is not None:
        encoded.append(replace(EncodedRecord.of(*refused), refusal="not of these specs"))
    log.append_encoded(encoded)
    log.close()
    (folder / "demonstrations" / "specs.json").write_text(SPECS.to_json())


def test_an_archive_gives_what_the_log_lacks_and_the_actor_goes_on_where_it_was(tmp_path: Path) -> None:
    """The learner got the first episodes over the link before the archive was brought by hand; the rest comes later."""
    records = earlier_records("old")
    arrived = 6  # one demonstration and half of the episode after it
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "specs.json").write_text(SPECS.to_json())
    log = EpisodeLog(run_dir / "log.sqlite", SPECS)
    log.append(records[:arrived])
    log.close()
    archive(tmp_path / "actor", records)
    for _ in range(2):  # a restart imports again
        import_logs(config(run_dir, tmp_path / "actor" / "demonstrations"))
    brought = [record for record in of_demonstrations(records) if record not in records[:arrived]]
    assert len(brought) == LENGTH + 1  # the discarded demonstration and its mark
    assert_holds(run_dir, records[:arrived] + brought)
    assert count_demonstrations([tmp_path / "actor", run_dir]) == 1

    log = EpisodeLog(run_dir / "log.sqlite", SPECS)
    assert log.next_sequence("robot", "old") == arrived  # nothing of the spool may be deleted unsent
    log.append(records[arrived - 2 :])
    log.close()
    rest = [record for record in records[arrived:] if record not in brought]
    assert_holds(run_dir, records[:arrived] + brought + rest)


def test_refused_records_are_not_imported(tmp_path: Path) -> None:
    records = earlier_records("old")
    refused = (RecordId("robot", "old", 99), make_transition(9, episode=0, source=ActionSource.HUMAN_DEMONSTRATION))
    archive(tmp_path / "actor", records, refused)
    import_logs(config(tmp_path / "new", tmp_path / "actor"))
    assert_holds(tmp_path / "new", of_demonstrations(records))
    log = EpisodeLog(tmp_path / "new" / "log.sqlite", SPECS)
    assert log.quarantine() == []
    log.close()


def test_other_specs_are_refused_by_the_first_difference_and_nothing_is_imported(tmp_path: Path) -> None:
    earlier_run(tmp_path / "fits")
    position, width = SPECS.observation.fields
    wider = replace(SPECS.observation, fields=(position, replace(width, high=(0.1,))))
    with_images = replace(SPECS.observation, images=(ImageField(name="wrist", height=16, width=16),))
    for name, observation, difference in (
        ("wide", wider, r"observation.gripper_width.high: .*wide.* \(0.1,\), .*fits.* \(0.08,\)"),
        ("images", with_images, r"image fields: .*\['wrist'\], .* \[\]"),
    ):
        earlier_run(tmp_path / name, name, Specs(observation, SPECS.action))
        with pytest.raises(SpecMismatchError, match=difference):
            import_logs(config(tmp_path / "new", tmp_path / "fits", tmp_path / name))
    assert not (tmp_path / "new").exists()


def test_the_runs_own_specs_decide(tmp_path: Path) -> None:
    earlier_run(tmp_path / "old")
    action = replace(SPECS.action, fields=(replace(SPECS.action.fields[0], unit="mm"),))
    (tmp_path / "specs.json").write_text(Specs(SPECS.observation, action).to_json())
    with pytest.raises(SpecMismatchError, match=r"action.delta.unit: .*log.sqlite m, this run mm"):
        import_logs(config(tmp_path, tmp_path / "old"))
    assert not (tmp_path / "log.sqlite").exists()


@pytest.mark.parametrize("damage", ["missing", "no database", "a spool", "newer", "cut", "flipped", "no specs"])
def test_a_log_that_cannot_be_used_is_named_and_nothing_is_imported(damage: str, tmp_path: Path) -> None:
    earlier_run(tmp_path / "fits")
    earlier_run(tmp_path / "bad", "bad")
    path = tmp_path / "bad" / "learner" / "log.sqlite"
    expected: tuple[type[Exception], str] = (CorruptFileError, "log.sqlite")
    if damage == "missing":
        path.unlink()
        expected = (ConfigError, "there is no episode log")
    elif damage == "no database":
        path.write_bytes(b"a table of something else\n" * 500)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    elif damage == "no specs":
        path.with_name("specs.json").unlink()
        expected = (ConfigError, "specs.json")
    else:
        with sqlite3.connect(path) as connection:
            if damage == "newer":
                connection.execute("PRAGMA user_version = 3")
            elif damage == "a spool":
                connection.executescript("DROP TABLE records; CREATE TABLE records (position INTEGER, payload BLOB);")
            else:
                connection.execute("UPDATE records SET payload = zeroblob(length(payload)) WHERE position = 7")
                expected = (CorruptFileError, "position 7 does not match its checksum")
        connection.close()
    with pytest.raises(expected[0], match=expected[1]):
        import_logs(config(tmp_path / "new", tmp_path / "fits", tmp_path / "bad"))
    assert not (tmp_path / "new").exists()


def test_an_import_that_breaks_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier_run(tmp_path / "a", "a")
    earlier_run(tmp_path / "b", "b")
    copy_rows = EpisodeLog._copy_rows

    def fail_at_the_second(self: EpisodeLog, other: EpisodeLog, episodes: None) -> None:
        copy_rows(self, other, episodes)
        if "b" in other._path.parts:
            raise sqlite3.OperationalError("disk full")

    monkeypatch.setattr(EpisodeLog, "_copy_rows", fail_at_the_second)
    with pytest.raises(ConfigError, match=r"disk full.*Nothing was imported"):
        import_logs(config(tmp_path / "new", tmp_path / "a", tmp_path / "b", take_all=True))
    assert entries(tmp_path / "new") == []
