"""What the link's benchmark sends: transitions with two camera images of the twin, in each codec, or state alone."""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from actor.camera_rig import crop_and_resize
from policy.image_codec import ImageCodec, code_images
from policy.spec import ActionSpec, Field, ImageField, ObservationSpec, Specs
from policy.transition import ActionSource, Transition

IMAGE_PX = 128
CAMERAS = ("wrist", "third_person")
EPISODE_STEPS = 100
KINDS = ("raw", "png", "jpeg", "state")
_SENSOR_NOISE = 2.0  # standard deviation, of 255: what a good camera's sensor adds in room light
_NUM_PICTURES = 25
_FIELDS = (
    Field(name="q", unit="rad", low=(-3.0,) * 7, high=(3.0,) * 7),
    Field(name="dq", unit="rad/s", low=(-2.5,) * 7, high=(2.5,) * 7),
    Field(name="O_F_ext_hat_K", unit="N, Nm", low=(-30.0,) * 6, high=(30.0,) * 6),
    Field(name="gripper_width", unit="m", low=(0.0,), high=(0.08,)),
)
_ACTION = ActionSpec((Field(name="delta", unit="m, rad", low=(-0.01,) * 6, high=(0.01,) * 6),))


@dataclass(frozen=True)
class Pictures:
    """Camera images (N, 2, H, W, 3) uint8 as drawn, and where they are from."""

    clean: NDArray[np.uint8]
    source: str

    @property
    def noisy(self) -> NDArray[np.uint8]:
        """The same with sensor noise, which drawn pictures lack and codecs feel."""
        noise = np.random.default_rng(0).normal(0, _SENSOR_NOISE, self.clean.shape)
        return np.clip(self.clean + noise, 0, 255).astype(np.uint8)


def take_pictures(cache: Path) -> Pictures:
    """Return pictures of the twin at work, or of no real scene where this machine cannot draw; kept in `cache`."""
    if not cache.exists():
        try:
            clean, source = _photograph_twin(), "both cameras of the twin, peg in hole"
        except (ImportError, OSError, RuntimeError) as error:  # no MuJoCo, no OpenGL
            clean, source = _paint(), f"smooth patches and texture (the twin cannot be drawn here: {error})"
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.savez(cache, clean=clean, source=np.array(source))
    with np.load(cache) as stored:
        return Pictures(stored["clean"], str(stored["source"]))


def _photograph_twin() -> NDArray[np.uint8]:
    from robot.backends.twin.backend import TwinBackend
    from robot.geometry import PEG_LENGTH_M
    from robot.interface import RobotCommand, ScenePlacement
    from robot.pose import O_R_DOWN, make_pose, translation

    backend = TwinBackend("peg_in_hole")
    backend.connect()
    try:
        rim_m = 0.06
        objects = {"hole": translation(0.5, 0.0, rim_m), "peg": translation(0.0, 0.0, PEG_LENGTH_M)}
        start = make_pose(O_R_DOWN, (0.45, -0.05, rim_m + PEG_LENGTH_M + 0.08))
        backend.reset(ScenePlacement(O_T_EE=start, objects=objects))
        taken = []
        for _ in range(_NUM_PICTURES):
            delta = np.array([0.003, 0.003, -0.003])
            backend.send_command(RobotCommand(delta_position=delta, delta_rotation=np.zeros(3)))
            backend.advance(0.1)
            taken.append([_square(backend.photograph(name)) for name in CAMERAS])
        return np.asarray(taken, np.uint8)
    finally:
        backend.close()


def _square(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = picture.shape[:2]
    side = min(height, width)
    return crop_and_resize(picture, ((width - side) // 2, (height - side) // 2, side, side), IMAGE_PX)


def _paint() -> NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (_NUM_PICTURES * len(CAMERAS), 12, 12, 3)).astype(np.float32)
    smooth = np.stack([cv2.resize(image, (IMAGE_PX, IMAGE_PX), interpolation=cv2.INTER_CUBIC) for image in coarse])
    painted = smooth + rng.normal(0, 6, smooth.shape)
    shape = (_NUM_PICTURES, len(CAMERAS), IMAGE_PX, IMAGE_PX, 3)
    return np.clip(painted, 0, 255).astype(np.uint8).reshape(shape)


def make_specs(kind: str) -> Specs:
    images = (
        () if kind == "state" else tuple(ImageField(name=name, height=IMAGE_PX, width=IMAGE_PX) for name in CAMERAS)
    )
    return Specs(ObservationSpec(_FIELDS, images), _ACTION)


class Workload:
    """Transitions of one kind, in episodes of 100 steps."""

    def __init__(self, kind: str, images: NDArray[np.uint8]) -> None:
        """kind: an image codec, or state. images: (N, 2, H, W, 3), coded here once."""
        self.kind = kind
        self.specs = make_specs(kind)
        rng = np.random.default_rng(0)
        observations = []
        for pair in images:
            observation: dict[str, Any] = {
                field.name: rng.uniform(field.low, field.high).astype(np.float32) for field in _FIELDS
            }
            if kind != "state":
                codec: ImageCodec = kind  # type: ignore[assignment]  # one of KINDS
                observation |= code_images(dict(zip(CAMERAS, pair, strict=True)), codec)
            observations.append(observation)
        self._observations = observations
        action = rng.uniform(-1, 1, _ACTION.dim).astype(np.float32)
        self._template = Transition(
            episode=0, step=0, observation=observations[0], policy_action=action, executed_action=action,
            source=ActionSource.POLICY, reward=0.0, terminated=False, truncated=False, weights_version=1,
            weights_age_s=0.5, wall_time_s=0.0, monotonic_time_s=0.0,
        )  # fmt: skip

    def transition(self, index: int) -> Transition:
        """Return the index-th step of a long run, made now."""
        episode, step = divmod(index, EPISODE_STEPS)
        is_last = step == EPISODE_STEPS - 1
        return replace(
            self._template,
            episode=episode,
            step=step,
            observation=self._observations[index % len(self._observations)],
            truncated=is_last,
            final_observation=self._observations[(index + 1) % len(self._observations)] if is_last else None,
            wall_time_s=time.time(),
            monotonic_time_s=time.monotonic(),
        )

    def transitions(self) -> Iterator[Transition]:
        return map(self.transition, itertools.count())
