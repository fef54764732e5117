"""Checkpoints: what is saved comes back, a corrupt one is refused, the last good one stays."""

import errno
import json
import os
import resource
from pathlib import Path

import pytest
import torch

from learner.checkpoint import Checkpoint, CheckpointWriter, load_checkpoint, load_newest, save_checkpoint
from policy import failpoints
from policy.errors import WeightsError


def make_checkpoint(learner_step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(learner_step)
    return Checkpoint(
        tensors={"denoiser.weight": torch.randn(3, 4, generator=generator), "noise": generator.get_state()},
        learner_step=learner_step,
        log_position=10 * learner_step,
        weights_version=learner_step + 1,
        replay_noise=torch.Generator().manual_seed(learner_step).get_state(),
    )


def test_everything_comes_back(tmp_path: Path) -> None:
    saved = make_checkpoint(7)
    save_checkpoint(tmp_path, saved)
    loaded = load_newest(tmp_path)
    assert loaded is not None
    assert (loaded.learner_step, loaded.log_position, loaded.weights_version) == (7, 70, 8)
    assert loaded.tensors.keys() == saved.tensors.keys()
    for name, tensor in saved.tensors.items():
        assert torch.equal(loaded.tensors[name], tensor)
    assert torch.equal(loaded.replay_noise, saved.replay_noise)


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert load_newest(tmp_path / "never_written") is None


def test_the_newest_three_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 10, 30):
        save_checkpoint(tmp_path, make_checkpoint(step))
    assert sorted(folder.name for folder in tmp_path.iterdir()) == [f"step_{step:010d}" for step in (2, 10, 30)]


@pytest.mark.parametrize("damage", ["flip", "truncate", "no manifest", "torn manifest", "other format"])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_is_used(tmp_path: Path, damage: str) -> None:
    save_checkpoint(tmp_path, make_checkpoint(1))
    newest = save_checkpoint(tmp_path, make_checkpoint(2))
    state, manifest = newest / "state.safetensors", newest / "manifest.json"
    data = state.read_bytes()
    if damage == "flip":
        state.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "truncate":
        state.write_bytes(data[: len(data) // 2])
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "torn manifest":
        manifest.write_text(manifest.read_text()[:40])
    else:
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format_version": 99}))
    with pytest.raises(WeightsError, match=newest.name):
        load_checkpoint(newest)
    loaded = load_newest(tmp_path)
    assert loaded is not None
    assert loaded.learner_step == 1


def test_all_damaged_is_an_error_that_names_the_way_out(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, make_checkpoint(1))
    (folder / "state.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError, match="episode log is intact"):
        load_newest(tmp_path)


def test_checkpoints_of_another_program_are_named_as_such_and_what_to_do_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        manifest = save_checkpoint(tmp_path / "checkpoints", make_checkpoint(step)) / "manifest.json"
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format_version": 99}))
    with pytest.raises(WeightsError, match=f"none of the 2 checkpoints .* --from-log {tmp_path} ") as error:
        load_newest(tmp_path / "checkpoints")
    assert "has format 99, this program reads 1 to 2" in caplog.text
    assert "corrupt" not in caplog.text + str(error.value)


def test_a_write_that_stops_halfway_leaves_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, make_checkpoint(1))

    def no_space_left(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("learner.checkpoint.os.replace", no_space_left)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path, make_checkpoint(2))
    loaded = load_newest(tmp_path)
    assert loaded is not None
    assert loaded.learner_step == 1


CRASH_POINTS = ["after_state", "after_manifest", "before_rename", "after_rename"]


def crash_at(monkeypatch: pytest.MonkeyPatch, name: str, directory: Path, checkpoint: Checkpoint) -> None:
    """Save in a child process that ends at the failpoint, without any clean-up."""
    child = os.fork()
    if child == 0:
        monkeypatch.setattr("policy.failpoints._armed", failpoints._read(f"checkpoint.{name}:exit"))
        try:
            save_checkpoint(directory, checkpoint)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == failpoints.EXIT_CODE


@pytest.mark.parametrize("name", CRASH_POINTS)
def test_a_crash_between_any_two_steps_leaves_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    save_checkpoint(tmp_path, make_checkpoint(1))
    crash_at(monkeypatch, name, tmp_path, make_checkpoint(2))
    loaded = load_newest(tmp_path)
    assert loaded is not None
    assert loaded.learner_step == (2 if name == "after_rename" else 1)
    save_checkpoint(tmp_path, make_checkpoint(3))  # and clears away what the crash left
    left = {folder.name for folder in tmp_path.iterdir()}
    assert left == {f"step_{step:010d}" for step in ((1, 2, 3) if name == "after_rename" else (1, 3))}


@pytest.mark.parametrize("name", CRASH_POINTS)
def test_a_crash_at_the_very_first_checkpoint_leaves_none_or_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    crash_at(monkeypatch, name, tmp_path, make_checkpoint(1))
    loaded = load_newest(tmp_path)
    assert (loaded is not None) == (name == "after_rename")


@pytest.mark.parametrize("length", range(0, 180, 17))
def test_a_file_that_a_power_loss_cut_off_anywhere_is_noticed(tmp_path: Path, length: int) -> None:
    save_checkpoint(tmp_path, make_checkpoint(1))
    newest = save_checkpoint(tmp_path, make_checkpoint(2))
    file = newest / ("state.safetensors" if length % 2 else "manifest.json")
    assert file.stat().st_size > length
    os.truncate(file, length)
    loaded = load_newest(tmp_path)
    assert loaded is not None
    assert loaded.learner_step == 1


def test_a_corrupt_checkpoint_does_not_count_among_the_three(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        newest = save_checkpoint(tmp_path, make_checkpoint(step))
    (newest / "state.safetensors").write_bytes(b"damaged")
    kept = []
    for step in (4, 5, 6):
        save_checkpoint(tmp_path, make_checkpoint(step))
        kept.append({int(folder.name.removeprefix("step_")) for folder in tmp_path.iterdir()})
    assert kept == [{1, 2, 3, 4}, {2, 3, 4, 5}, {4, 5, 6}]


def test_one_of_the_same_step_is_kept_unless_it_is_corrupt(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, make_checkpoint(1))
    inode = folder.stat().st_ino
    assert save_checkpoint(tmp_path, make_checkpoint(1)) == folder
    assert folder.stat().st_ino == inode
    (folder / "manifest.json").unlink()
    save_checkpoint(tmp_path, make_checkpoint(1))
    assert load_checkpoint(folder).learner_step == 1


def test_below_the_free_space_limit_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"GB are free.*learner\.min_free_gb") as error:
        save_checkpoint(tmp_path, make_checkpoint(1), min_free_bytes=1e18)
    assert error.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_a_write_beyond_the_file_size_limit_leaves_the_last_one_and_nothing_else(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, make_checkpoint(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_checkpoint(tmp_path, make_checkpoint(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [folder.name for folder in tmp_path.iterdir()] == ["step_0000000001"]


def test_the_writer_says_when_it_is_done_and_what_went_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policy.failpoints._armed", failpoints._read("checkpoint.after_state:sleep(0.3)"))
    writer = CheckpointWriter(tmp_path, min_free_bytes=0)
    assert not writer.end(wait=True)
    writer.begin(make_checkpoint(1))
    assert not writer.end(wait=False)  # training goes on meanwhile
    assert writer.is_busy
    assert writer.end(wait=True)
    assert not writer.is_busy
    (tmp_path / ".tmp_step_0000000002").write_bytes(b"")  # a file in the way of a folder
    writer.begin(make_checkpoint(2))
    with pytest.raises(OSError, match="tmp_step_0000000002"):
        writer.end(wait=True)
    assert not writer.is_busy
    writer.close()
    writer.close()
