"""Checkpoints: what is saved comes back, a corrupt one is refused, the last good one stays."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from learner.checkpoint import Checkpoint, load_checkpoint, load_newest, save_checkpoint
from policy.errors import WeightsError


def make_checkpoint(learner_step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(learner_step)
    return Checkpoint(
        tensors={"denoiser.weight": torch.randn(3, 4, generator=generator), "noise": generator.get_state()},
        learner_step=learner_step,
        log_position=10 * learner_step,
        weights_version=learner_step + 1,
        replay_rng=dict(np.random.default_rng(learner_step).bit_generator.state),
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
    rng = np.random.default_rng()
    rng.bit_generator.state = loaded.replay_rng
    assert rng.integers(1 << 62) == np.random.default_rng(7).integers(1 << 62)


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
