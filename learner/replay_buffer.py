"""One ring of observations and the transitions between them, with what a later judgement of an episode needs."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.mirror import Mirror
from learner.noise import Noise
from learner.replay_images import FrameStore
from learner.row_set import RowSet
from policy.transition import Transition

_NONE = -1

Stream = tuple[str, str]  # (actor_id, incarnation)


@dataclass
class _OpenRow:
    """A row whose next observation has not arrived yet."""

    row: int
    episode: int
    step: int


class ReplayBuffer:
    """A ring of rows, one per observation; a row is a transition once it points to the row of its next observation.

    Rows of several actors may interleave. A row always points to a younger one, so the ring evicts a transition before
    the observation that it needs. Images stay in a FrameStore; a row holds its frame's slot there.

    Rows are written on the host and drawn on `device`, as they were at the last `update`.
    """

    def __init__(
        self,
        capacity: int,
        feature_dim: int,
        action_dim: int,
        frames: FrameStore | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self._feature = np.zeros((capacity, feature_dim), np.float32)
        self._action = np.zeros((capacity, action_dim), np.float32)
        self._reward = np.zeros(capacity, np.float32)
        self._is_terminal = np.zeros(capacity, np.float32)
        self._is_human = np.zeros(capacity, np.bool_)
        self._gripper_toggled = np.zeros(capacity, np.bool_)
        self._next_row = np.full(capacity, _NONE)
        # Whose step a row is; step is _NONE in a row that is only another one's next observation, or was removed.
        self._stream = np.zeros(capacity, np.int32)
        self._episode = np.zeros(capacity, np.int64)
        self._step = np.full(capacity, _NONE)
        self._frames = frames
        self._frame = np.full(0 if frames is None else capacity, _NONE)
        self._stream_numbers: dict[Stream, int] = {}
        self._open: dict[Stream, _OpenRow] = {}
        self._cursor = 0
        device = torch.device(device)
        self._valid = RowSet(capacity, device)
        columns = [self._feature, self._action, self._reward, self._is_terminal, self._is_human, self._gripper_toggled]
        self._columns = Mirror(columns, device)
        self._next_rows = Mirror([self._next_row], device)
        self._frame_slots = Mirror([self._frame], device)

    def __len__(self) -> int:
        """Number of transitions that can be sampled."""
        return len(self._valid)

    def add(
        self,
        stream: Stream,
        transition: Transition,
        feature: NDArray[np.float32],
        frame: int | None,
        reward: float,
        is_terminal: bool,
    ) -> None:
        """Store a step of one actor's stream; it becomes a transition when its next observation is known."""
        row = self.observe(stream, transition, feature, frame)
        self._action[row] = transition.executed_action
        self._reward[row] = reward
        self._is_terminal[row] = is_terminal
        self._is_human[row] = transition.is_human
        self._gripper_toggled[row] = transition.gripper_toggled
        self._stream[row] = self._stream_numbers.setdefault(stream, len(self._stream_numbers))
        self._episode[row] = transition.episode
        self._step[row] = transition.step
        self._open[stream] = _OpenRow(row, transition.episode, transition.step)

    def finish(self, stream: Stream, final_feature: NDArray[np.float32], final_frame: int | None) -> None:
        """Give the stream's open row its final observation."""
        opened = self._open.pop(stream)
        self._link(opened.row, self._write(final_feature, final_frame))

    def observe(self, stream: Stream, transition: Transition, feature: NDArray[np.float32], frame: int | None) -> int:
        """Store an observation and link the step before it, if that is open here; returns the observation's row."""
        is_next = self.is_waiting_for(stream, transition)
        row = self._write(feature, frame)  # may evict the open row, if others filled the ring since
        opened = self._open.pop(stream, None)
        if opened is not None and is_next:
            self._link(opened.row, row)
        return row

    def is_waiting_for(self, stream: Stream, transition: Transition) -> bool:
        """Whether the step before `transition` is here and lacks its next observation."""
        opened = self._open.get(stream)
        return opened is not None and (opened.episode, opened.step + 1) == (transition.episode, transition.step)

    def judge(self, stream: Stream, episode: int, step: int, reward: float, is_terminal: bool | None) -> bool:
        """Change a step's reward and, unless None, whether it is terminal; returns whether the step is here."""
        rows = self._rows_of(stream, episode, self._step == step)
        self._reward[rows] = reward
        if is_terminal is not None:
            self._is_terminal[rows] = is_terminal
        self._columns.note(rows.tolist())
        return len(rows) > 0

    def remove_after(self, stream: Stream, episode: int, step: int) -> bool:
        """Remove an episode's steps after `step` (-1: all of them); returns whether there were any."""
        rows = self._rows_of(stream, episode, self._step > step)
        opened = self._open.get(stream)
        if opened is not None and opened.row in rows:
            del self._open[stream]
        for row in rows.tolist():
            self._valid.discard(row)
        self._step[rows] = _NONE
        return len(rows) > 0

    def update(self) -> None:
        """Let the device see all rows as they are now; does not wait for it."""
        for mirror in (self._valid, self._columns, self._next_rows, self._frame_slots):
            mirror.update()

    def sample_rows(self, count: int, noise: Noise) -> Tensor:
        """Draw rows (count,) of transitions, uniformly and with replacement."""
        return self._valid.at(noise.below(self._valid.size, count))

    def gather(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return the columns of a Batch for `rows`, in its order."""
        feature, action, reward, is_terminal, is_human, gripper_toggled = self._columns.tensors
        following = self._next_rows.tensors[0].index_select(0, rows)
        return (
            feature.index_select(0, rows),
            action.index_select(0, rows),
            reward.index_select(0, rows),
            feature.index_select(0, following),
            is_terminal.index_select(0, rows),
            is_human.index_select(0, rows),
            gripper_toggled.index_select(0, rows),
        )

    def frames(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the frame slots of the rows' observations and next observations."""
        slots = self._frame_slots.tensors[0]
        following = self._next_rows.tensors[0].index_select(0, rows)
        return slots.index_select(0, rows), slots.index_select(0, following)

    def _rows_of(self, stream: Stream, episode: int, has_step: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Scan all rows: a person's marks are rare, an index of every step would cost each of them."""
        number = self._stream_numbers.get(stream, _NONE)
        is_step = has_step & (self._step != _NONE)
        return np.flatnonzero(is_step & (self._episode == episode) & (self._stream == number))

    def _link(self, row: int, next_row: int) -> None:
        self._next_row[row] = next_row
        self._next_rows.note((row,))
        self._valid.add(row)

    def _write(self, feature: NDArray[np.float32], frame: int | None) -> int:
        row = self._cursor
        self._cursor = (row + 1) % len(self._feature)
        for stream, opened in list(self._open.items()):
            if opened.row == row:  # the ring came round before the step's next observation did
                del self._open[stream]
        self._feature[row] = feature
        self._columns.note((row,))
        self._step[row] = _NONE
        self._valid.discard(row)
        if self._frames is not None and frame is not None:
            self._frames.hold(frame)
            if self._frame[row] != _NONE:
                self._frames.release(int(self._frame[row]))
            self._frame[row] = frame
            self._frame_slots.note((row,))
        return row
