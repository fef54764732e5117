"""The doctor's checks of this computer as a controller: does what a step needs fit into the control period?"""

import gc
import time
from collections.abc import Mapping

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from actor.camera_rig import crop_and_resize
from actor.config import ActorConfig
from actor.doctor.check import Check, Percentiles, Result, failed, judged, refused, skipped
from actor.rate import RateKeeper
from actor.tasks.base import Task
from policy.acting import ActingPolicy
from policy.errors import CgpoError
from policy.image_codec import CodedImage, code_images
from policy.spec import Observation, Specs

_SAMPLER_S = 2.0
_LOOP_S = 5.0
_WARM_UP = 3
_WARN_SHARE, _FAIL_SHARE = 0.7, 1.0  # of the control period; the rest is for cameras, arm and spool
_WARN_PERIODS, _FAIL_PERIODS = 1.05, 1.5
_CAMERA_SIZE = (480, 640)  # height and width of a RealSense's image, px
_NOISE = 2.0  # grey levels of a sensor's noise, which decides how long encoding takes


def loop_checks(task: Task, config: ActorConfig) -> list[Check]:
    """Checks that keep one core busy for some seconds."""
    load: list[_Load] = []

    def sampler() -> Result:
        try:
            load.append(_Load(task, config))
        except CgpoError as error:  # no backbone for the images
            return refused(error)
        return check_sampler(load[0], task.control_rate_hz)

    def jitter() -> Result:
        return check_jitter(load[0], task.control_rate_hz) if load else skipped("there is no policy to sample from")

    return [
        Check(group="control", name="sampler", run=sampler, timeout_s=30.0),
        Check(group="control", name="loop jitter", run=jitter, timeout_s=30.0),
    ]


class _Load:
    """What a step computes: crop, resize and encode each image, then sample candidates and choose one of them."""

    def __init__(self, task: Task, config: ActorConfig) -> None:
        torch.set_num_threads(1)  # as the actor does
        self.candidates = config.policy.behavior_candidates
        self.steps = config.policy.denoising_steps
        self.num_images = len(task.observation_spec.images)
        self._codec, self._size_px = config.cameras.codec, config.cameras.image_size_px
        self._observations = ObservationSource(task)
        self._policy = ActingPolicy(Specs(task.observation_spec, task.action_spec), config.policy, seed=0)
        self._coded = self.code()
        for _ in range(_WARM_UP):
            self.sample()

    def code(self) -> Mapping[str, NDArray[np.float32] | CodedImage]:
        return code_images(self._observations.draw(self._size_px), self._codec)

    def sample(self) -> None:
        self._policy.select_action(self._coded)

    def step(self) -> None:
        self._coded = self.code()
        self.sample()


class ObservationSource:
    """Observations of a task that look like a camera's, without one."""

    def __init__(self, task: Task) -> None:
        self._spec = task.observation_spec
        rng = np.random.default_rng(0)
        self._vectors = {
            field.name: np.zeros(field.size, np.float32)
            for field in self._spec.fields
        }  # fmt: skip
        smooth = cv2.resize(rng.uniform(0, 255, (6, 8, 3)), _CAMERA_SIZE[::-1], interpolation=cv2.INTER_CUBIC)
        self._image = np.clip(smooth + rng.normal(0, _NOISE, smooth.shape), 0, 255).astype(np.uint8)

    def draw(self, size_px: int) -> Observation:
        height, width = _CAMERA_SIZE
        crop = ((width - height) // 2, 0, height, height)
        images = {image.name: crop_and_resize(self._image, crop, size_px) for image in self._spec.images}
        return {**self._vectors, **images}


def check_sampler(load: _Load, rate_hz: float) -> Result:
    durations_s: list[float] = []
    end_s = time.monotonic() + _SAMPLER_S
    while time.monotonic() < end_s or len(durations_s) < 10:
        start_s = time.monotonic()
        load.sample()
        durations_s.append(time.monotonic() - start_s)
    figures, period_ms = Percentiles.of(durations_s), 1e3 / rate_hz
    return judged(
        figures.p99,
        f"{figures} ({load.candidates} candidates, {load.steps} denoising steps, {load.num_images} images)",
        warn=_WARN_SHARE * period_ms,
        fail=_FAIL_SHARE * period_ms,
        limit=f"{_WARN_SHARE:.0%} of {period_ms:.0f} ms ({rate_hz:g} Hz)",
        fix="--control-rate-hz lower, or fewer --policy.behavior-candidates or --policy.denoising-steps, on both sides",
    )


def check_jitter(load: _Load, rate_hz: float) -> Result:
    """Run at the control rate, as the loop does."""
    period_ms = 1e3 / rate_hz
    gc.collect()
    keeper = RateKeeper(1.0 / rate_hz)
    keeper.start()
    end_s = time.monotonic() + _LOOP_S
    while time.monotonic() < end_s:
        load.step()
        keeper.wait()
    figures = keeper.statistics()
    if figures.count == 0:
        return failed("no period ended", fix="--control-rate-hz lower")
    return judged(
        figures.p99_ms / period_ms,
        f"period p50 {figures.p50_ms:.4g} ms, p99 {figures.p99_ms:.4g} ms, longest {figures.max_ms:.4g} ms, "
        f"{figures.overruns} of {figures.count} late",
        warn=_WARN_PERIODS,
        fail=_FAIL_PERIODS,
        limit=f"p99 {_WARN_PERIODS * period_ms:.4g} ms",
        fix="close other programs (top shows which compute), see `cpu governor` above, or --control-rate-hz lower",
    )


def coded_bytes(task: Task, config: ActorConfig) -> int:
    """Return how many bytes a step of this task takes on the wire, roughly: its images and vectors."""
    observation = code_images(ObservationSource(task).draw(config.cameras.image_size_px), config.cameras.codec)
    return sum(len(value.data) if isinstance(value, CodedImage) else value.nbytes for value in observation.values())
