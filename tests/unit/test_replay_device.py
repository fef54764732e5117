"""The replay as it is on a GPU: rows are copied there, drawn there, and nothing that a graph could not repeat happens.

Copies are tested on the CPU, where they are switched off otherwise; what is read back, on the meta device, whose
tensors have no values (see test_capturable).
"""

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from learner import mirror, replay_images
from learner.config import ReplayConfig
from learner.mirror import Mirror
from learner.replay import Replay
from learner.replay_images import FrameStore
from policy.encoder import ObservationEncoder
from policy.transition import EpisodeMark, MarkKind, RecordId
from tests.unit.test_capturable import MetaNoise, NothingFromTheHost
from tests.unit.test_replay_images import SPEC, D, P, PixelsAsMap, make_replay, make_steps

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.fixture
def copying(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "_needs_copies", lambda device: True)


@pytest.mark.usefixtures("copying")
@given(st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(-5, 5)), max_size=5), max_size=6))
def test_copies_are_up_to_date_after_an_update_and_not_before(rounds: list[list[tuple[int, int]]]) -> None:
    numbers, flags = np.zeros((10, 2), np.float32), np.zeros(10, np.bool_)
    copies = Mirror([numbers, flags], CPU)
    for changes in rounds:
        before = [tensor.clone() for tensor in copies.tensors]
        for row, value in changes:
            numbers[row], flags[row] = value, value > 0
        copies.note(row for row, _ in changes)
        assert all(torch.equal(tensor, old) for tensor, old in zip(copies.tensors, before, strict=True))
        copies.update()
        assert torch.equal(copies.tensors[0], torch.from_numpy(numbers))
        assert torch.equal(copies.tensors[1], torch.from_numpy(flags))


def fed_replays(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Iterator[tuple[Replay, Replay]]:
    """Yield a replay on shared memory and one that copies, after each of the same records."""
    shared = make_replay(PixelsAsMap(), **settings)
    with monkeypatch.context() as patch:
        patch.setattr(mirror, "_needs_copies", lambda device: True)
        copied = make_replay(PixelsAsMap(), **settings)
    records = [*make_steps("robot", 0, [P] * 4), *make_steps("person", 20, [D] * 3), *make_steps("other", 40, [P] * 7)]
    marks = [
        EpisodeMark(episode=0, step=step, kind=kind, wall_time_s=0.0)
        for step, kind in ((2, MarkKind.SUCCESS), (2, MarkKind.FAILURE), (3, MarkKind.DISCARD))
    ]
    records[10:10] = [(RecordId("robot", "incarnation", 4 + index), mark) for index, mark in enumerate(marks)]
    for record_id, body in records:
        shared.add(record_id, body)
        copied.add(record_id, body)
        yield shared, copied


@pytest.mark.parametrize("capacity", [6, 64])
def test_a_replay_of_copies_draws_what_one_of_shared_memory_does(
    monkeypatch: pytest.MonkeyPatch, capacity: int
) -> None:
    draws = 0
    for shared, copied in fed_replays(monkeypatch, capacity=capacity, batch_size=32, random_shift_px=2):
        if not len(shared.online) + len(shared.demonstrations):
            continue
        one, other = shared.sample(), copied.sample()
        draws += 1
        for name in ("action", "reward", "is_terminal", "is_human", "gripper_toggled"):
            assert torch.equal(getattr(one, name), getattr(other, name))
        for name in ("observation", "next_observation"):
            inputs, copies = getattr(one, name), getattr(other, name)
            assert torch.equal(inputs.vector, copies.vector)
            assert all(torch.equal(*maps) for maps in zip(inputs.maps, copies.maps, strict=True))
    assert draws > 10


def test_only_what_changes_how_a_batch_is_made_asks_for_another_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_images, "_CHUNK_FRAMES", 8)
    kinds = [replay.prepare() for replay, _ in fed_replays(monkeypatch, batch_size=32)]
    changes = [index for index in range(1, len(kinds)) if kinds[index] != kinds[index - 1]]
    assert len(changes) == len(set(kinds)) - 1
    assert {counts for counts, _ in cast(Any, kinds)} == {(32, 0), (16, 16)}
    assert {chunks for _, chunks in cast(Any, kinds)} == {1, 2, 3}


class MetaEncoder(PixelsAsMap):
    device = META


@pytest.mark.parametrize("image_storage", ["pixels", "maps"])
def test_drawing_reads_no_value_and_takes_none_from_the_host(
    monkeypatch: pytest.MonkeyPatch, image_storage: str
) -> None:
    monkeypatch.setattr("learner.replay.Noise", MetaNoise)
    monkeypatch.setattr(replay_images, "_CHUNK_FRAMES", 2)
    settings: dict[str, Any] = {"image_storage": image_storage, "demonstration_fraction": 0.5, "random_shift_px": 2}
    config = ReplayConfig(capacity=64, batch_size=16, **settings)
    encoder: Any = MetaEncoder()
    if image_storage == "maps":  # what is stored has to be of a map's shape
        encoder.maps_of_cameras = lambda images: tuple(torch.zeros(len(camera), 512, 1, 2) for camera in images)
    replay = Replay(config, SPEC, 1, seed=0, encoder=cast(ObservationEncoder, encoder), device="meta")
    for record_id, step in [*make_steps("robot", 0, [P] * 4), *make_steps("person", 20, [D] * 3)]:
        replay.add(record_id, step)
    kind = replay.prepare()
    assert kind == ((8, 8), 4)  # nine frames, in chunks for 2, 2, 4 and 8
    with NothingFromTheHost():
        batch = replay.sample()
    assert batch.observation.vector.shape == (16, 1)
    assert [maps.shape[0] for maps in (*batch.observation.maps, *batch.next_observation.maps)] == [16] * 4
    replay.add(*make_steps("third", 40, [P] * 2)[0])
    with pytest.raises(AssertionError), NothingFromTheHost():
        replay.sample()  # sends the new row first: that is what `prepare` is for


@given(st.lists(st.integers(0, 12), min_size=1, max_size=20), st.integers(0, 2**16))
def test_both_ways_to_gather_frames_from_chunks_agree(slots: list[int], seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay_images, "_CHUNK_FRAMES", 4)
        store = FrameStore([(3, 2)], 2, torch.float32, CPU)
        frames = [torch.full((2, 3, 2), 10.0 * slot) + torch.arange(2.0)[:, None, None] for slot in range(13)]
        assert [store.put([frame]) for frame in frames] == list(range(13))
    copies = torch.randint(2, (len(slots),), generator=torch.Generator().manual_seed(seed))
    expected = torch.stack([frames[slot][copy] for slot, copy in zip(slots, copies.tolist(), strict=True)])
    chunks: list[Tensor] = store._chunks[0]
    assert len(chunks) == store.num_chunks == 4
    for gather in (store._gather_by_chunk, store._gather_from_all):
        assert torch.equal(gather(chunks, torch.tensor(slots), copies), expected)


def test_chunks_on_a_gpu_are_few_and_at_most_half_empty() -> None:
    store = FrameStore([(1,)], 1, torch.uint8, META)
    for _ in range(20 * replay_images._CHUNK_FRAMES + 1):
        store._grow()
    assert store.num_chunks == 6  # 1, 1, 2, 4, 8 and 16 times as many frames
    assert sum(len(chunk) for chunk in store._chunks[0]) < 2 * len(store._holders)
