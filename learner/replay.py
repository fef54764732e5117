"""Replay: observations stored once, next observations found within the episode, half of each batch from humans.

The episode log is the truth; this is a cache of it, rebuilt by feeding the same records in the same order.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.config import ReplayConfig
from policy.encoder import EncoderInput
from policy.spec import ObservationSpec
from policy.transition import EpisodeMark, Recordable, RecordId, Transition

_NO_NEXT = -1

Stream = tuple[str, str]  # (actor_id, incarnation)


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


@dataclass
class _OpenRow:
    """A row whose next observation has not arrived yet."""

    row: int
    episode: int
    step: int


class ReplayBuffer:
    """A ring of rows, one per observation; a row is a transition once it points to the row of its next observation.

    Rows of several actors may interleave. A row always points to a younger one, so the ring evicts a transition before
    the observation that it needs.
    """

    def __init__(self, capacity: int, feature_dim: int, action_dim: int) -> None:
        self._feature = np.zeros((capacity, feature_dim), np.float32)
        self._action = np.zeros((capacity, action_dim), np.float32)
        self._reward = np.zeros(capacity, np.float32)
        self._is_terminal = np.zeros(capacity, np.float32)
        self._is_human = np.zeros(capacity, np.bool_)
        self._gripper_toggled = np.zeros(capacity, np.bool_)
        self._next_row = np.full(capacity, _NO_NEXT)
        self._open: dict[Stream, _OpenRow] = {}
        self._cursor = 0
        self._valid_rows: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        """Number of transitions that can be sampled."""
        return len(self._rows())

    def add(
        self, stream: Stream, transition: Transition, feature: NDArray[np.float32], reward: float, is_terminal: bool
    ) -> None:
        """Store a step of one actor's stream; it becomes a transition when its next observation is known."""
        row = self.observe(stream, transition, feature)
        self._action[row] = transition.executed_action
        self._reward[row] = reward
        self._is_terminal[row] = is_terminal
        self._is_human[row] = transition.is_human
        self._gripper_toggled[row] = transition.gripper_toggled
        self._open[stream] = _OpenRow(row, transition.episode, transition.step)

    def finish(self, stream: Stream, final_feature: NDArray[np.float32]) -> None:
        """Give the stream's open row its final observation."""
        opened = self._open.pop(stream)
        self._next_row[opened.row] = self._write(final_feature)

    def observe(self, stream: Stream, transition: Transition, feature: NDArray[np.float32]) -> int:
        """Store an observation and link the step before it, if that is open here; returns the observation's row."""
        is_next = self.is_waiting_for(stream, transition)
        row = self._write(feature)  # may evict the open row, if others filled the ring since
        opened = self._open.pop(stream, None)
        if opened is not None and is_next:
            self._next_row[opened.row] = row
        return row

    def is_waiting_for(self, stream: Stream, transition: Transition) -> bool:
        """Whether the step before `transition` is here and lacks its next observation."""
        opened = self._open.get(stream)
        return opened is not None and (opened.episode, opened.step + 1) == (transition.episode, transition.step)

    def sample_rows(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        rows = self._rows()
        return rows[rng.integers(len(rows), size=count)]

    def gather(self, rows: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        """Return the columns of a Batch for `rows`, in its order."""
        return (
            self._feature[rows],
            self._action[rows],
            self._reward[rows],
            self._feature[self._next_row[rows]],
            self._is_terminal[rows],
            self._is_human[rows],
            self._gripper_toggled[rows],
        )

    def _write(self, feature: NDArray[np.float32]) -> int:
        row = self._cursor
        self._cursor = (row + 1) % len(self._feature)
        for stream, opened in list(self._open.items()):
            if opened.row == row:  # the ring came round before the step's next observation did
                del self._open[stream]
        self._feature[row] = feature
        self._next_row[row] = _NO_NEXT
        self._valid_rows = None
        return row

    def _rows(self) -> NDArray[np.int64]:
        if self._valid_rows is None:
            self._valid_rows = np.flatnonzero(self._next_row != _NO_NEXT)
        return self._valid_rows


class Replay:
    """The online and the demonstration buffer, and batches mixed from both.

    Demonstrations go to the demonstration buffer, policy steps to the online one, interventions to both (HIL-SERL).
    """

    def __init__(self, config: ReplayConfig, observation_spec: ObservationSpec, action_dim: int, seed: int) -> None:
        self._config = config
        self._spec = observation_spec
        feature_dim = observation_spec.vector_dim
        self.online = ReplayBuffer(config.capacity, feature_dim, action_dim)
        self.demonstrations = ReplayBuffer(config.capacity, feature_dim, action_dim)
        self.rng = np.random.default_rng(seed)
        self.num_transitions = 0

    def add(self, record_id: RecordId, body: Recordable) -> None:
        """Add the next record of the log. Records of one incarnation must come in sequence order."""
        if isinstance(body, EpisodeMark):
            return  # applied by the caller's next change
        transition = body
        stream = (record_id.actor_id, record_id.incarnation)
        feature = self._spec.normalise(transition.observation)
        is_terminal = transition.terminated or (self._config.timeout_is_terminal and transition.truncated)
        reward = transition.reward * self._config.reward_scale
        homes = self._homes(transition)
        for buffer in (self.online, self.demonstrations):
            if buffer in homes:
                buffer.add(stream, transition, feature, reward, is_terminal)
            elif buffer.is_waiting_for(stream, transition):
                buffer.observe(stream, transition, feature)
            if buffer in homes and transition.final_observation is not None:
                buffer.finish(stream, self._spec.normalise(transition.final_observation))
        self.num_transitions += 1

    def is_ready(self) -> bool:
        has_samples = len(self.online) + len(self.demonstrations) > 0
        return has_samples and self.num_transitions >= self._config.training_starts

    def sample(self, device: torch.device | str = "cpu") -> Batch:
        """Draw a batch: demonstration_fraction from the demonstration buffer, the rest online; an empty one yields."""
        size = self._config.batch_size
        num_demonstration = round(size * self._config.demonstration_fraction)
        if not len(self.demonstrations):
            num_demonstration = 0
        elif not len(self.online):
            num_demonstration = size
        parts = []
        for buffer, count in ((self.online, size - num_demonstration), (self.demonstrations, num_demonstration)):
            if count:
                parts.append(buffer.gather(buffer.sample_rows(count, self.rng)))
        columns = (np.concatenate(column) for column in zip(*parts, strict=True))
        vector, action, reward, next_vector, *flags = (torch.from_numpy(column).to(device) for column in columns)
        return Batch(EncoderInput(vector), action, reward, EncoderInput(next_vector), *flags)

    def _homes(self, transition: Transition) -> tuple[ReplayBuffer, ...]:
        if not transition.is_human:
            return (self.online,)
        return (self.online, self.demonstrations) if transition.is_intervention else (self.demonstrations,)
