"""One ring of observations and the transitions between them, with what a later judgement of an episode needs."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learner.replay_images import FrameStore
from policy.transition import Transition

_NONE = -1

Stream = tuple[str, str]  # (actor_id, incarnation)


class RowSet:
    """A subset of the rows 0 to capacity - 1, addressed by rank in ascending order.

    Adding and removing are O(1), and what a rank stands for follows from the members alone, not from their history.
    """

    _BLOCK = 32  # at most 255: counts within a block are uint8

    def __init__(self, capacity: int) -> None:
        blocks = -(-capacity // self._BLOCK)
        self._is_member = np.zeros((blocks, self._BLOCK), np.bool_)
        self._flat = self._is_member.reshape(-1)  # a view
        self._counts = np.zeros(blocks, np.int64)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, row: int) -> None:
        if not self._flat[row]:
            self._flat[row] = True
            self._counts[row // self._BLOCK] += 1
            self._size += 1

    def discard(self, row: int) -> None:
        if self._flat[row]:
            self._flat[row] = False
            self._counts[row // self._BLOCK] -= 1
            self._size -= 1

    def at(self, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows with these ranks, each in [0, len)."""
        ends = np.cumsum(self._counts)
        blocks = np.searchsorted(ends, ranks, side="right")
        rank_in_block = (ranks - ends[blocks] + self._counts[blocks]).astype(np.uint8)
        seen = np.cumsum(self._is_member[blocks], axis=1, dtype=np.uint8)  # (n, _BLOCK)
        rows: NDArray[np.int64] = blocks * self._BLOCK + (seen > rank_in_block[:, None]).argmax(axis=1)
        return rows


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
    """

    def __init__(self, capacity: int, feature_dim: int, action_dim: int, frames: FrameStore | None = None) -> None:
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
        self._valid = RowSet(capacity)

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

    def sample_rows(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        return self._valid.at(rng.integers(len(self._valid), size=count))

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

    def frames(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the frame slots of the rows' observations and next observations."""
        return self._frame[rows], self._frame[self._next_row[rows]]

    def _rows_of(self, stream: Stream, episode: int, has_step: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Scan all rows: a person's marks are rare, an index of every step would cost each of them."""
        number = self._stream_numbers.get(stream, _NONE)
        is_step = has_step & (self._step != _NONE)
        return np.flatnonzero(is_step & (self._episode == episode) & (self._stream == number))

    def _link(self, row: int, next_row: int) -> None:
        self._next_row[row] = next_row
        self._valid.add(row)

    def _write(self, feature: NDArray[np.float32], frame: int | None) -> int:
        row = self._cursor
        self._cursor = (row + 1) % len(self._feature)
        for stream, opened in list(self._open.items()):
            if opened.row == row:  # the ring came round before the step's next observation did
                del self._open[stream]
        self._feature[row] = feature
        self._step[row] = _NONE
        self._valid.discard(row)
        if self._frames is not None and frame is not None:
            self._frames.hold(frame)
            if self._frame[row] != _NONE:
                self._frames.release(int(self._frame[row]))
            self._frame[row] = frame
        return row
