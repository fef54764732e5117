"""The replay of vector observations against plain lists; drawing, resuming, and what is refused."""

from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch

import learner.tensor_replay as tensor_replay
from learner.noise import Noise
from learner.replay import Batch
from learner.tensor_replay import TensorReplay
from policy.errors import WeightsError
from policy.files import write_durably

F, A, CAPACITY = 3, 2, 10
POPULATIONS = pytest.mark.parametrize("num_agents", [None, 1, 3])


class Steps:
    """Steps whose every value names the agent and the step, and what a ring of them should hold."""

    def __init__(self, replay: TensorReplay, num_agents: int | None) -> None:
        self._replay = replay
        self._leading = () if num_agents is None else (num_agents,)
        self.held: deque[int] = deque(maxlen=CAPACITY)
        self._added = 0

    def add(self, count: int) -> None:
        for _ in range(count):
            value = self._added + 1000.0 * np.arange(self._leading[0] if self._leading else 1).reshape(self._leading)
            self._replay.add(
                np.repeat(value[..., None], F, axis=-1),
                torch.from_numpy(np.repeat(value[..., None], A, axis=-1) + 0.25),
                value + 0.5,
                np.repeat(value[..., None], F, axis=-1) + 0.75,
                value % 2 == 0,
            )
            self.held.append(self._added)
            self._added += 1

    def assert_all_held(self, batch: Batch, size: int) -> None:
        assert batch.rows is not None
        assert batch.rows.shape == (*self._leading, size)
        assert set(batch.rows.flatten().tolist()) <= set(self.held)
        agents = 1000.0 * torch.arange(max(1, *self._leading, 1)).view(*self._leading, 1)
        value = batch.rows + agents
        columns = (batch.observation.vector, batch.action, batch.reward, batch.next_observation.vector)
        for offset, column in zip((0.0, 0.25, 0.5, 0.75), columns, strict=True):
            expected = value + offset if column is batch.reward else (value + offset)[..., None].expand_as(column)
            assert torch.equal(column, expected.float())
        assert torch.equal(batch.is_terminal, (batch.rows % 2 == 0).float())
        assert not batch.is_human.any()
        assert batch.is_human.shape == batch.gripper_toggled.shape == batch.reward.shape


def make(num_agents: int | None) -> tuple[TensorReplay, Steps]:
    replay = TensorReplay(num_agents, CAPACITY, F, A)
    return replay, Steps(replay, num_agents)


def noise_of(num_agents: int | None, seed: int = 0) -> Noise:
    seeds = [seed + agent for agent in range(num_agents or 1)]
    return Noise(seeds, is_population=num_agents is not None)


@POPULATIONS
def test_what_is_drawn_is_what_the_ring_holds(num_agents: int | None) -> None:
    replay, steps = make(num_agents)
    noise = noise_of(num_agents)
    for count in (1, 4, 5, 1, 13):
        steps.add(count)
        assert len(replay) == len(steps.held)
        steps.assert_all_held(replay.sample(64, noise), 64)
    assert replay.total == 24


def test_every_step_is_drawn_as_often_as_every_other() -> None:
    replay, steps = make(None)
    steps.add(17)
    rows = replay.sample(20_000, noise_of(None)).rows
    assert rows is not None
    counts = torch.bincount(rows - 7, minlength=CAPACITY)
    assert len(counts) == CAPACITY
    assert ((counts - 2000).abs() < 5 * 2000**0.5).all()  # five standard deviations


def test_an_agent_draws_what_it_would_draw_alone() -> None:
    replay, steps = make(3)
    alone, own_steps = make(None)
    steps.add(14)
    own_steps.add(14)
    together = replay.sample(32, noise_of(3)).rows
    assert together is not None
    for agent in range(3):
        assert torch.equal(alone.sample(32, noise_of(None, agent)).rows, together[agent])  # type: ignore[arg-type]


def assert_same_draws(one: TensorReplay, other: TensorReplay, num_agents: int | None) -> None:
    batches = [replay.sample(200, noise_of(num_agents)) for replay in (one, other)]
    for name in ("action", "reward", "is_terminal", "rows"):
        assert torch.equal(*(getattr(batch, name) for batch in batches))
    assert torch.equal(*(batch.next_observation.vector for batch in batches))


@POPULATIONS
def test_saved_rows_come_back_and_the_run_goes_on_as_if_never_stopped(
    num_agents: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_replay, "_FILE_BYTES", 150 * (num_agents or 1))  # three rows
    replay, steps = make(num_agents)
    for count in (4, 0, 3, 9, 25, 2):  # within the ring, over its end, and more than all of it
        steps.add(count)
        total = replay.save(tmp_path)
        restored, _ = make(num_agents)
        restored.restore(tmp_path, total)
        assert (len(restored), restored.total) == (len(replay), total)
        assert_same_draws(restored, replay, num_agents)
    again = Steps(restored, num_agents)
    again._added = steps._added
    steps.add(7)
    again.add(7)
    assert_same_draws(restored, replay, num_agents)
    assert restored.save(tmp_path) == replay.total


def test_only_new_rows_are_written_and_old_ones_deleted(tmp_path: Path) -> None:
    replay, steps = make(None)
    written: dict[str, int] = {}
    for _ in range(8):
        steps.add(4)
        replay.save(tmp_path)
        names = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
        assert all(names[name] == when for name, when in written.items() if name in names)
        written |= names
    assert len(list(tmp_path.iterdir())) <= 6  # of 9 that were written: the ring's rows now and before the last save


def test_the_save_before_the_last_can_be_restored(tmp_path: Path) -> None:
    """A run that is killed between this save and its own checkpoint goes on from the one before."""
    replay, steps = make(None)
    steps.add(17)
    before = replay.save(tmp_path)
    expected, own_steps = make(None)
    own_steps.add(17)
    steps.add(8)
    replay.save(tmp_path)
    restored, _ = make(None)
    restored.restore(tmp_path, before)
    assert_same_draws(restored, expected, None)
    again = Steps(restored, None)
    again._added = 17
    again.add(3)
    own_steps.add(3)
    total = restored.save(tmp_path)  # over what the killed run had saved
    last, _ = make(None)
    last.restore(tmp_path, total)
    assert_same_draws(last, expected, None)


def test_a_save_that_fails_half_way_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_replay, "_FILE_BYTES", 100)
    replay, steps = make(None)
    steps.add(3)
    replay.save(tmp_path)
    steps.add(6)
    writes = iter([True, False])

    def write_once(path: Path, data: bytes) -> None:
        if not next(writes):
            path.write_bytes(data[:10])
            raise OSError("No space left on device")
        write_durably(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(tensor_replay, "write_durably", write_once)
        with pytest.raises(OSError, match="No space"):
            replay.save(tmp_path)
    assert not list(tmp_path.glob("*.tmp"))
    restored, _ = make(None)
    restored.restore(tmp_path, replay.save(tmp_path))
    assert_same_draws(restored, replay, None)


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "other agents"])
def test_damaged_rows_are_refused_by_name(tmp_path: Path, damage: str) -> None:
    replay, steps = make(None)
    steps.add(4)
    replay.save(tmp_path)
    steps.add(4)
    total = replay.save(tmp_path)
    path = sorted(tmp_path.iterdir())[0]
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[:-5])
    elif damage == "flipped":
        data[-5] ^= 1
        path.write_bytes(data)
    elif damage == "gone":
        path.unlink()
    restored = TensorReplay(2 if damage == "other agents" else None, CAPACITY, F, A)
    expected = {"cut": "cannot be read", "flipped": "checksum", "gone": "rows 0 to 8", "other agents": "of shape"}
    with pytest.raises(WeightsError, match=expected[damage]):
        restored.restore(tmp_path, total)
