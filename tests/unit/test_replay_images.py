"""Images in the replay: every row's own frames, stored once, shifted as DrQ does, the same again after a rebuild."""

import random
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from learner import replay_images
from learner.config import ReplayConfig
from learner.pixels import draw_shifts, shift_images
from learner.replay import Batch, Replay
from learner.replay_images import FrameStore
from policy.config import PolicyConfig
from policy.encoder import ObservationEncoder
from policy.errors import ConfigError
from policy.image_codec import encode_image
from policy.resnet import MAP_CHANNELS, map_size
from policy.spec import ActionSpec, Field, ImageField, ObservationSpec, Specs
from policy.transition import ActionSource, EpisodeMark, MarkKind, RecordId, Transition

HEIGHT, WIDTH = 32, 40
SPEC = ObservationSpec(
    (Field(name="number", unit="m", low=(-1.0,), high=(1.0,)),),
    tuple(ImageField(name=name, height=HEIGHT, width=WIDTH) for name in ("wrist", "side")),
)
SPECS = Specs(SPEC, ActionSpec((Field(name="delta", unit="m", low=(-1.0,), high=(1.0,)),)))
CONFIG = PolicyConfig(encoder="resnet10", encoder_weights="random")
CPU = torch.device("cpu")
UNIT = 1 / 1024  # numbers over 1024 are exact in float32 and float16


class CornerAsMap:
    """Stands in for the encoder: maps of the right shape that repeat the image's first value."""

    device = torch.device("cpu")

    def maps_of_cameras(self, images: Sequence[Tensor]) -> tuple[Tensor, ...]:
        size = (MAP_CHANNELS, *map_size(HEIGHT, WIDTH))
        return tuple(camera[:, 0, 0, :1, None, None].expand(-1, *size) * UNIT for camera in images)


class PixelsAsMap(CornerAsMap):
    """Stands in for the encoder: its maps are the images."""

    def maps_of_cameras(self, images: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(images)


def observation(number: int) -> dict[str, Any]:
    """An observation whose vector and images all carry `number`, up to 255 * 255."""
    wrist, side = (
        np.full((HEIGHT, WIDTH, 3), number // 256, np.uint8),
        np.full((HEIGHT, WIDTH, 3), number % 256, np.uint8),
    )
    vector = np.array([number * UNIT], np.float32)
    return {"number": vector, "wrist": encode_image(wrist, "raw"), "side": side}


def noise_image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def noisy(number: int) -> dict[str, Any]:
    images = {name: noise_image(2 * number + camera) for camera, name in enumerate(("wrist", "side"))}
    return {"number": np.array([number * UNIT], np.float32), **images}


def make_steps(actor: str, first: int, sources: Sequence[ActionSource], make: Any = observation) -> list[Any]:
    records = []
    for step, source in enumerate(sources):
        is_last = step == len(sources) - 1
        transition = Transition(
            episode=0,
            step=step,
            observation=make(first + step),
            policy_action=np.zeros(1, np.float32),
            executed_action=np.zeros(1, np.float32),
            source=source,
            reward=0.0,
            terminated=False,
            truncated=is_last,
            weights_version=0,
            weights_age_s=0.0,
            wall_time_s=0.0,
            monotonic_time_s=0.0,
            final_observation=make(first + len(sources)) if is_last else None,
        )
        records.append((RecordId(actor, "incarnation", step), transition))
    return records


def make_replay(encoder: Any = None, **settings: object) -> Replay:
    values: dict[str, object] = {"capacity": 64, "batch_size": 64, "demonstration_fraction": 0.5, "random_shift_px": 0}
    config = ReplayConfig(**(values | settings))  # type: ignore[arg-type]
    return Replay(config, SPEC, 1, seed=0, encoder=cast(ObservationEncoder, encoder or CornerAsMap()))


def frames_of(replay: Replay) -> FrameStore:
    assert replay._images is not None
    return replay._images.store


def assert_rows_show_their_own_frames(batch: Batch) -> None:
    for inputs in (batch.observation, batch.next_observation):
        numbers = (inputs.vector[:, 0] / UNIT).round()
        wrist, side = inputs.maps
        assert torch.equal(wrist / UNIT, torch.floor(numbers / 256)[:, None, None, None].expand(wrist.shape))
        assert torch.equal(side / UNIT, (numbers % 256)[:, None, None, None].expand(side.shape))


P, D, HUMAN = ActionSource.POLICY, ActionSource.HUMAN_DEMONSTRATION, ActionSource.HUMAN_INTERVENTION
all_sources = st.lists(st.lists(st.sampled_from([P, HUMAN]), min_size=1, max_size=6), min_size=1, max_size=4)


@pytest.mark.parametrize("image_storage", ["pixels", "maps"])
@given(all_sources, st.integers(0, 2**16), st.sampled_from([3, 8, 64]))
def test_every_row_shows_its_own_frames_and_none_stays_when_no_row_does(
    image_storage: str, actors: list[list[ActionSource]], order_seed: int, capacity: int
) -> None:
    queues = [iter(make_steps(f"actor-{n}", 250 + 10 * n, sources)) for n, sources in enumerate(actors)]
    turns = [n for n, sources in enumerate(actors) for _ in sources]
    random.Random(order_seed).shuffle(turns)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay_images, "_CHUNK_FRAMES", 4)
        replay = make_replay(image_storage=image_storage, capacity=capacity)
        for turn in turns:
            replay.add(*next(queues[turn]))
            if len(replay.online) or len(replay.demonstrations):
                assert_rows_show_their_own_frames(replay.sample())
        buffers = (replay.online, replay.demonstrations)
        held = {int(slot) for buffer in buffers for slot in buffer._frame if slot >= 0}
        assert len(frames_of(replay)) == len(held)


def test_a_frame_is_stored_once_for_both_buffers_and_both_ends_of_a_step() -> None:
    replay = make_replay()
    for record_id, step in make_steps("robot", 0, [HUMAN] * 5):
        replay.add(record_id, step)
    assert len(replay.online) == len(replay.demonstrations) == 5
    assert len(frames_of(replay)) == 6  # five steps and the final observation


@pytest.mark.parametrize(("image_storage", "bytes_per_frame"), [("pixels", 98_304), ("maps", 65_536)])
def test_a_frame_of_two_128_pixel_cameras_takes_what_is_promised(image_storage: str, bytes_per_frame: int) -> None:
    spec = ObservationSpec(SPEC.fields, tuple(ImageField(name=name, height=128, width=128) for name in ("a", "b")))
    config = ReplayConfig(image_storage=image_storage)  # type: ignore[arg-type]
    images = replay_images.make_images(config, spec, cast(ObservationEncoder, CornerAsMap()), CPU)
    assert images is not None
    store = images.store
    slot = store.put([torch.zeros(store._copies, *shape) for shape in store._shapes])
    drawn = [store.gather(camera, torch.tensor([slot])) for camera in range(2)]
    assert store._copies * sum(frame.nbytes for frame in drawn) == store.bytes_per_frame == bytes_per_frame


def test_buffers_that_cannot_fit_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    make_replay(capacity=64)
    assert not caplog.records
    config = ReplayConfig(capacity=10**12)
    replay_images.make_images(config, SPEC, cast(ObservationEncoder, CornerAsMap()), CPU)
    assert "GB for images" in caplog.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_images_on_a_device_that_is_not_there_are_refused() -> None:
    with pytest.raises(ConfigError, match="no CUDA device"):
        make_replay(device="cuda")


def test_frames_of_a_discarded_episode_are_never_drawn() -> None:
    replay = make_replay()
    for record_id, step in [*make_steps("robot", 10, [P] * 3), *make_steps("other", 30, [P] * 3)]:
        replay.add(record_id, step)
    mark = EpisodeMark(episode=0, step=2, kind=MarkKind.DISCARD, wall_time_s=0.0)
    replay.add(RecordId("robot", "incarnation", 3), mark)
    assert set((replay.sample().observation.vector[:, 0] / UNIT).tolist()) == {30, 31, 32}


def test_shifting_is_padding_with_the_edge_and_cropping() -> None:
    images = torch.from_numpy(np.stack([noise_image(seed) for seed in range(6)]))
    shifts = torch.tensor([[0, 0], [4, -4], [-3, 1], [2, 2], [-4, 0], [0, 3]])
    for image, (down, right), shifted in zip(images, shifts, shift_images(images, shifts, 4), strict=True):
        padded = np.pad(image.numpy(), [(4, 4), (4, 4), (0, 0)], mode="edge")
        window = padded[4 + down : 4 + down + HEIGHT, 4 + right : 4 + right + WIDTH]
        np.testing.assert_array_equal(shifted.numpy(), window)


def test_shifts_are_uniform_up_to_the_limit_on_both_axes() -> None:
    shifts = draw_shifts(np.random.default_rng(0), 4000, 4).numpy()
    for axis in shifts.T:
        values, counts = np.unique(axis, return_counts=True)
        assert values.tolist() == list(range(-4, 5))
        assert counts.min() > 350  # of 444 expected, 20 standard deviation
    assert len(np.unique(shifts, axis=0)) == 81


def test_pixels_are_shifted_anew_in_each_draw_and_cameras_and_observations_independently() -> None:
    replay = make_replay(PixelsAsMap(), random_shift_px=4, batch_size=32)
    same = dict.fromkeys(("wrist", "side"), noise_image(0))  # one image everywhere: only shifts can differ
    for record_id, step in make_steps("robot", 0, [P] * 2, lambda number: observation(number) | same):
        replay.add(record_id, step)
    first, second = replay.sample(), replay.sample()
    sets = [
        {maps.numpy().tobytes() for maps in camera}
        for camera in (*first.observation.maps, *first.next_observation.maps, *second.observation.maps)
    ]
    assert all(len(variants) > 16 for variants in sets)  # 32 draws of 81 shifts
    wrist, side = first.observation.maps
    assert not torch.equal(wrist, side)
    assert not torch.equal(wrist, first.next_observation.maps[0])
    assert not torch.equal(wrist, second.observation.maps[0])


def test_maps_are_the_backbones_of_a_few_shifted_variants() -> None:
    encoder = ObservationEncoder(SPECS, CONFIG)
    replay = make_replay(encoder, image_storage="maps", random_shift_px=2, map_variants=3, batch_size=200)
    for record_id, step in make_steps("robot", 0, [P], noisy):
        replay.add(record_id, step)
    wrist = replay.sample().observation.maps[0]
    assert wrist.dtype == torch.float32
    drawn = {maps.numpy().tobytes() for maps in wrist}
    image = torch.from_numpy(noise_image(0))
    shifts = torch.cartesian_prod(torch.arange(-2, 3), torch.arange(-2, 3))
    possible = encoder.maps(shift_images(image.expand(len(shifts), -1, -1, -1), shifts, 2))
    found = {int((possible - maps).abs().amax((1, 2, 3)).argmin()) for maps in wrist}
    assert len(drawn) == len(found) == 3
    for maps in wrist[:10]:
        assert (possible - maps).abs().amax((1, 2, 3)).min() < 2e-3 * possible.abs().max()  # float16


@pytest.mark.parametrize("image_storage", ["pixels", "maps"])
def test_a_rebuilt_replay_draws_the_same_bits(image_storage: str) -> None:
    encoder = ObservationEncoder(SPECS, CONFIG)
    settings: dict[str, Any] = {"image_storage": image_storage, "random_shift_px": 4, "batch_size": 6, "capacity": 4}
    records = [*make_steps("robot", 0, [P, HUMAN, P], noisy), *make_steps("other", 20, [HUMAN, P], noisy)]
    at_once, in_parts = make_replay(encoder, **settings), make_replay(encoder, **settings)
    for record_id, step in records:
        in_parts.add(record_id, step)
        if len(in_parts.online):
            in_parts.sample()
    for record_id, step in records:
        at_once.add(record_id, step)
    in_parts.noise.generators[0].set_state(at_once.noise.generators[0].get_state())
    one, other = at_once.sample(), in_parts.sample()
    for name in ("observation", "next_observation"):
        for maps, again in zip(getattr(one, name).maps, getattr(other, name).maps, strict=True):
            assert torch.equal(maps, again)
