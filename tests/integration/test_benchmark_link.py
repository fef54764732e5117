"""The link's benchmark: it runs, a section that fails is reported, and what is not measured again stays."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks.link import __main__ as program
from benchmarks.link.baseline import PIECE_BYTES, episode_of, load, pieces, save
from benchmarks.link.bench import Bench
from benchmarks.link.report import Section, Table, Target
from benchmarks.link.workload import CAMERAS, EPISODE_STEPS, IMAGE_PX, Workload

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 2, IMAGE_PX, IMAGE_PX, 3)).astype(np.uint8)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of results; images of noise, because drawing the twin takes longer than all the rest."""
    monkeypatch.setattr("benchmarks.link.workload._photograph_twin", lambda: IMAGES)
    return tmp_path / "work"


def run(monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str]) -> int:
    monkeypatch.setattr("sys.argv", ["benchmarks.link", *arguments])
    return program.main()


def test_sections_are_measured_and_kept(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "link.md"
    assert run(monkeypatch, ["--quick", "--only", "size,recovery", "--work", str(work), "--out", str(out)]) == 0
    text = out.read_text()
    assert "| ingest: first new row within 2 s of kill -9 |" in text
    assert " 0 lost, 0 duplicated |" in text
    raw = next(line for line in text.splitlines() if line.startswith("| the link, raw |"))
    assert 98.5 < float(raw.split("|")[2]) < 102  # kB: two images of 49,152 bytes, and all else
    plain = next(line for line in text.splitlines() if line.startswith("| plain scheme, float32"))
    assert 393 < float(plain.split("|")[2]) < 410  # kB: four bytes a value
    assert sorted(path.name for path in (work / "quick").iterdir()) == ["recovery.json", "size.json"]


def test_a_section_that_fails_is_reported_and_the_others_stay(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(bench: Bench) -> Section:
        raise OSError("no room")

    def succeed(bench: Bench) -> Section:
        return Section("Goodput", "How.", [Table(["a"], [["1"]])], [Target("fast", "slow", is_met=False)])

    monkeypatch.setattr(program, "SECTIONS", {"goodput": succeed, "drain": fail})
    out = tmp_path / "link.md"
    assert run(monkeypatch, ["--quick", "--work", str(work), "--out", str(out)]) == 1
    text = out.read_text()
    assert "**Failed, no figures**: OSError: no room" in text
    assert "| fast | slow | **not met** |" in text
    assert "Not one run" not in text
    stored = work / "quick" / "goodput.json"
    stored.write_text(json.dumps(json.loads(stored.read_text()) | {"stamp": "0123456789ab, earlier"}))
    run(monkeypatch, ["--quick", "--work", str(work), "--only", "drain", "--out", str(out)])
    assert "Not one run of everything: Goodput: 0123456789ab, earlier;" in out.read_text()


def test_a_section_survives_its_file(tmp_path: Path) -> None:
    section = Section("T", "How.", [Table(["a"], [["1"]])], [Target("p", "m", is_met=True)], stamp="s", wall_s=2.0)
    section.save(tmp_path / "t.json")
    assert Section.load(tmp_path / "t.json") == section


def test_the_plain_scheme_carries_a_whole_episode() -> None:
    workload = Workload("raw", IMAGES)
    transitions = [workload.transition(index) for index in range(EPISODE_STEPS)]
    cut = list(pieces(save(episode_of(transitions))))
    assert [piece[:1] for piece in cut] == [b"B", *[b"M"] * (len(cut) - 2), b"E"]
    assert all(len(piece) == 1 + PIECE_BYTES for piece in cut[:-1])
    received = load(b"".join(piece[1:] for piece in cut))
    assert len(received) == EPISODE_STEPS
    image = received[7]["state"][f"observation.images.{CAMERAS[1]}"].numpy()
    np.testing.assert_allclose(image.transpose(1, 2, 0) * 255, IMAGES[7 % len(IMAGES), 1], atol=1e-3)
    assert received[7]["next_state"].keys() == received[8]["state"].keys()
    assert [step["truncated"] for step in received] == [False] * (EPISODE_STEPS - 1) + [True]
