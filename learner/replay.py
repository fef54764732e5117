"""Replay: observations stored once, next observations found within the episode, half of each batch from humans.

The episode log is the truth; this is a cache of it, rebuilt by feeding the same records in the same order. What can be
drawn follows from the records and the state of `noise` alone, not from when they were read.
"""

import logging
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.config import ReplayConfig
from learner.noise import Noise
from learner.replay_buffer import ReplayBuffer, Stream
from learner.replay_images import make_images
from policy.encoder import EncoderInput, ObservationEncoder
from policy.errors import ConfigError
from policy.spec import Observation, ObservationSpec
from policy.transition import EpisodeMark, MarkKind, Recordable, RecordId, Transition

logger = logging.getLogger(__name__)

_BEFORE_FIRST_STEP = -1


@dataclass(frozen=True)
class Batch:
    """Transitions as an algorithm sees them. All tensors float32 but is_human and gripper_toggled (bool)."""

    observation: EncoderInput
    action: Tensor  # (B, A) executed, in [-1, 1]
    reward: Tensor  # (B,) scaled
    next_observation: EncoderInput
    is_terminal: Tensor  # (B,) 1 where nothing is bootstrapped
    is_human: Tensor  # (B,) the executed action was a person's
    gripper_toggled: Tensor  # (B,) the action really opened or closed the gripper
    rows: Tensor | None = None  # (B,) int64, numbers of a TensorReplay's steps: what an algorithm keeps of each


class Replay:
    """The online and the demonstration buffer, and batches mixed from both.

    Demonstrations go to the demonstration buffer, policy steps to the online one, interventions to both (HIL-SERL).
    """

    def __init__(
        self,
        config: ReplayConfig,
        observation_spec: ObservationSpec,
        action_dim: int,
        seed: int,
        encoder: ObservationEncoder | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """`encoder` is needed for images only; `device` is the trainer's, where batches go.

        Rows and images are on replay.device; auto is `device`. Raises ConfigError for one that is not there.
        """
        self._config = config
        self._spec = observation_spec
        self._device = device
        home = _home(config, device)
        self._images = make_images(config, observation_spec, encoder, home)
        frames = self._images.store if self._images else None
        sizes = (config.capacity, observation_spec.vector_dim, action_dim)
        self.online = ReplayBuffer(*sizes, frames, home)
        self.demonstrations = ReplayBuffer(*sizes, frames, home)
        self.noise = Noise([seed], home, is_population=False)
        self.num_transitions = 0
        self.transitions_by_actor: Counter[str] = Counter()
        self._last_steps: dict[Stream, dict[int, int]] = {}  # of marked episodes; steps after it are left out

    def add(self, record_id: RecordId, body: Recordable) -> None:
        """Add the next record of the log. Records of one incarnation must come in sequence order."""
        stream = (record_id.actor_id, record_id.incarnation)
        if isinstance(body, EpisodeMark):
            self._apply(stream, body)
        else:
            self._add_step(stream, record_id, body)
            self.num_transitions += 1
            self.transitions_by_actor[record_id.actor_id] += 1

    def _add_step(self, stream: Stream, record_id: RecordId, step: Transition) -> None:
        homes = () if self._is_left_out(stream, step) else self._homes(step)
        buffers = (self.online, self.demonstrations)
        takers = [buffer for buffer in buffers if buffer in homes or buffer.is_waiting_for(stream, step)]
        if not takers:
            return
        feature, frame = self._stored(step.observation, record_id, is_final=False)
        for buffer in takers:
            if buffer in homes:
                is_terminal = step.terminated or (step.truncated and not self._config.timeout_bootstrap)
                buffer.add(stream, step, feature, frame, step.reward * self._config.reward_scale, is_terminal)
            else:
                buffer.observe(stream, step, feature, frame)
        if homes and step.final_observation is not None:
            feature, frame = self._stored(step.final_observation, record_id, is_final=True)
            for buffer in homes:
                buffer.finish(stream, feature, frame)

    def _stored(
        self, observation: Observation, record_id: RecordId, is_final: bool
    ) -> tuple[NDArray[np.float32], int | None]:
        """Return the vector to store in rows, and the slot of the images, which are stored already."""
        frame = self._images.put(observation, record_id, is_final) if self._images else None
        return self._spec.normalise(observation), frame

    def _apply(self, stream: Stream, mark: EpisodeMark) -> None:
        """Apply an operator's mark.

        DISCARD: nothing of the episode is drawn again, also steps that are still to come. SUCCESS: the step is worth 1,
        nothing is bootstrapped from it and later steps are left out. FAILURE: it is worth 0; if it was terminated it is
        truncated now, and bootstraps from its next observation.
        """
        buffers = (self.online, self.demonstrations)
        last_steps = self._last_steps.setdefault(stream, {})
        if mark.kind is MarkKind.DISCARD:
            last_steps[mark.episode] = _BEFORE_FIRST_STEP
            found = [buffer.remove_after(stream, mark.episode, _BEFORE_FIRST_STEP) for buffer in buffers]
        elif mark.kind is MarkKind.SUCCESS:
            reward = self._config.reward_scale
            found = [buffer.judge(stream, mark.episode, mark.step, reward, True) for buffer in buffers]
            if any(found):
                last_steps[mark.episode] = mark.step
                for buffer in buffers:
                    buffer.remove_after(stream, mark.episode, mark.step)
        elif mark.kind is MarkKind.FAILURE:
            # Where time limits count as terminal, a truncated step stays terminal.
            is_terminal = False if self._config.timeout_bootstrap else None
            found = [buffer.judge(stream, mark.episode, mark.step, 0.0, is_terminal) for buffer in buffers]
            if any(found) and last_steps.get(mark.episode) == mark.step:
                del last_steps[mark.episode]  # the success that ended the episode here is taken back
        else:
            return
        if not any(found):
            logger.info(
                "%s of episode %d, step %d of %s, changes nothing here: the step is no longer kept or never was",
                mark.kind.name, mark.episode, mark.step, stream[0],
            )  # fmt: skip

    def _is_left_out(self, stream: Stream, step: Transition) -> bool:
        last_steps = self._last_steps.get(stream)
        if not last_steps:
            return False
        for episode in [episode for episode in last_steps if episode < step.episode]:
            del last_steps[episode]  # nothing of it can come any more
        return step.step > last_steps.get(step.episode, step.step)

    def is_ready(self) -> bool:
        has_samples = len(self.online) + len(self.demonstrations) > 0
        return has_samples and self.num_transitions >= self._config.training_starts

    def resume_noise(self, state: Tensor) -> None:
        """Draw on from a generator's state; from the seed if that is of another kind than this one."""
        generator = self.noise.generators[0]
        if state.shape == generator.get_state().shape:
            generator.set_state(state)
            return
        logger.warning(
            "the run's batches were drawn by another kind of generator than that of %s: they are drawn anew from the "
            "seed, and training goes on, but not bit for bit as without the restart. A changed replay.device does "
            "that, and a checkpoint of an earlier version of this program.", generator.device,
        )  # fmt: skip

    def prepare(self) -> Hashable:
        """Let the device see what was added; returns what the shapes of a batch's making depend on.

        While that stays the same, a graph may repeat what `sample` does.
        """
        self.online.update()
        self.demonstrations.update()
        return self._counts(), self._images.store.num_chunks if self._images else 0

    def _counts(self) -> tuple[int, int]:
        """Return how many rows of a batch are drawn from the online and from the demonstration buffer."""
        size = self._config.batch_size
        num_demonstration = round(size * self._config.demonstration_fraction)
        if not len(self.demonstrations):
            num_demonstration = 0
        elif not len(self.online):
            num_demonstration = size
        return size - num_demonstration, num_demonstration

    def sample(self) -> Batch:
        """Draw a batch: demonstration_fraction from the demonstrations, the rest online; an empty buffer yields.

        Reads nothing back from the device, and sends it nothing right after `prepare`.
        """
        self.prepare()
        shares = zip((self.online, self.demonstrations), self._counts(), strict=True)
        drawn = [(buffer, buffer.sample_rows(count, self.noise)) for buffer, count in shares if count]
        parts = [buffer.gather(rows) for buffer, rows in drawn]
        columns = (torch.cat(column).to(self._device) for column in zip(*parts, strict=True))
        vector, action, reward, next_vector, *flags = columns
        maps, next_maps = self._maps(drawn)
        return Batch(EncoderInput(vector, maps), action, reward, EncoderInput(next_vector, next_maps), *flags)

    def _maps(self, drawn: list[tuple[ReplayBuffer, Tensor]]) -> tuple[tuple[Tensor, ...], ...]:
        """Return each camera's maps of the drawn rows' observations, and of their next observations."""
        if self._images is None:
            return (), ()
        now, following = zip(*(buffer.frames(rows) for buffer, rows in drawn), strict=True)
        both = self._images.maps(torch.cat([*now, *following]), self.noise)
        return tuple(zip(*(maps.chunk(2) for maps in both), strict=True))

    def _homes(self, transition: Transition) -> tuple[ReplayBuffer, ...]:
        if not transition.is_human:
            return (self.online,)
        return (self.online, self.demonstrations) if transition.is_intervention else (self.demonstrations,)


def _home(config: ReplayConfig, device: torch.device | str) -> torch.device:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("replay.device = 'cuda', but PyTorch finds no CUDA device here. Choose auto or cpu.")
    return torch.device(device if config.device == "auto" else config.device)
