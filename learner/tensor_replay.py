"""Replay of vector observations for agents that step together: a ring of tensors on the device.

Unlike learner.replay it is filled by the process that trains, one step of every agent at a time, and holds each next
observation itself. Drawing a batch reads nothing back from the device, so it may be part of a captured graph.
"""

import os
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from learner.noise import Noise
from learner.replay import Batch
from policy.encoder import EncoderInput
from policy.errors import WeightsError
from policy.files import sync_directory, write_durably

_FILE_BYTES = 64e6  # of one file: bounds the memory that saving and restoring take

Values = Any  # a tensor, array or number


class TensorReplay:
    """Shapes: `...` is nothing for one agent and (P,) for a population, whose agents have as many rows as each other.

    It takes 4 (2 F + A + 2) bytes for each row and agent: on a GPU from the start, on a CPU as rows come.
    """

    def __init__(
        self,
        num_agents: int | None,
        capacity: int,
        observation_dim: int,
        action_dim: int,
        device: torch.device | str = "cpu",
    ) -> None:
        """`num_agents` None is one agent without the leading axis."""
        self.capacity = capacity
        self._leading = () if num_agents is None else (num_agents,)
        self._widths = (observation_dim, action_dim, 1, observation_dim, 1)
        self._device = torch.device(device)
        # One row holds a whole transition: a batch is one gather.
        shape = (*self._leading, capacity, sum(self._widths))
        self._rows = torch.empty(shape, device=self._device)
        self._no_flag = torch.zeros((), dtype=torch.bool, device=self._device)
        # Where each agent's rows begin when those of all agents are numbered through, (...) and an axis for the batch.
        self._first_row = torch.arange(num_agents or 1, device=self._device).view(*self._leading, 1) * capacity
        self._total = 0  # steps that were ever added; a step's number is what this was before it
        # The same for sample, on the device: the oldest step that is still here, and how many are.
        self._oldest, self._count = torch.zeros(2, dtype=torch.int64, device=self._device)
        self._saved_total = 0

    def __len__(self) -> int:
        """Number of rows that each agent can draw."""
        return min(self._total, self.capacity)

    @property
    def total(self) -> int:
        """Steps added so far, those that were overwritten since included."""
        return self._total

    def add(
        self, observation: Values, action: Values, reward: Values, next_observation: Values, is_terminal: Values
    ) -> None:
        """Add one step of every agent: observations (..., F), action (..., A), reward and is_terminal (...).

        Tensors of any device or arrays; the oldest step is overwritten when the ring is full. Does not wait for the
        device.
        """
        columns = (observation, action, reward, next_observation, is_terminal)
        tensors = [
            torch.as_tensor(column, dtype=torch.float32).reshape(*self._leading, width)
            for column, width in zip(columns, self._widths, strict=True)
        ]
        if len({tensor.device for tensor in tensors}) > 1:
            tensors = [tensor.to(self._device, non_blocking=True) for tensor in tensors]
        self._rows[..., self._total % self.capacity, :].copy_(torch.cat(tensors, dim=-1), non_blocking=True)
        self._set_total(self._total + 1)

    def sample(self, batch_size: int, noise: Noise) -> Batch:
        """Draw `batch_size` steps of every agent, uniformly and with replacement; (..., B) and (..., B, width).

        `Batch.rows` are their numbers, by which an algorithm can keep what belongs to a step: step n is the n-th that
        was added, from 0, and is at n modulo capacity. At least one must have been added. Agent p of a population draws
        what it would draw alone.
        """
        numbers = self._oldest + noise.below(self._count, batch_size)
        rows = numbers % self.capacity
        numbered = (rows + self._first_row).flatten() if self._leading else rows
        drawn = self._rows.view(-1, sum(self._widths)).index_select(0, numbered)
        columns = drawn.view(*self._leading, batch_size, -1).split_with_sizes(self._widths, dim=-1)
        observation, action, reward, next_observation, is_terminal = columns
        no_flags = self._no_flag.expand(numbers.shape)
        return Batch(
            EncoderInput(observation),
            action,
            reward.squeeze(-1),
            EncoderInput(next_observation),
            is_terminal.squeeze(-1),
            is_human=no_flags,
            gripper_toggled=no_flags,
            rows=numbers,
        )

    # --- resume ---------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> int:
        """Write the rows added since the last `save` or `restore` to `folder`; returns the total to restore with.

        Files that are there are not changed, so the rows of the save before can still be restored. Those that neither
        needs any more, because the ring has overwritten their rows, are deleted. Waits for device and disk. Raises
        OSError, as on a full disk; the next call then writes what is missing.
        """
        folder.mkdir(parents=True, exist_ok=True)
        before = self._saved_total
        for start, _, path in _row_files(folder):
            if start >= before:  # of a save that failed, or of a run that was begun anew
                path.unlink()
        first = max(before, self._total - self.capacity)
        most = max(1, int(_FILE_BYTES / self._rows[..., 0, :].nbytes))
        while first < self._total:
            place = first % self.capacity
            count = min(self._total - first, most, self.capacity - place)  # no file wraps around the ring
            rows = self._rows[..., place : place + count, :].cpu().contiguous()
            _write_rows(folder, first, rows)
            first += count
        sync_directory(folder)
        self._saved_total = self._total
        for _, end, path in _row_files(folder):
            if end <= before - self.capacity:
                path.unlink()
        return self._total

    def restore(self, folder: Path, total: int) -> None:
        """Hold the rows that it held when `save` returned `total`; deletes what was saved later.

        Raises WeightsError when rows are missing, damaged or of other agents or shapes.
        """
        held = max(0, total - self.capacity)  # rows up to here are back, or were overwritten
        for start, end, path in _row_files(folder):
            if start >= total:
                path.unlink()
            elif start <= held < end <= total:
                self._put(
                    held, _read_rows(path, (*self._leading, end - start, sum(self._widths)))[..., held - start :, :]
                )
                held = end
        if held != total:
            raise WeightsError(
                f"rows {held} to {total} of this run's replay are not in {folder}. Its files were moved, or belong to "
                "another run: start again without them."
            )
        self._set_total(total)
        self._saved_total = total

    def _set_total(self, total: int) -> None:
        self._total = total
        self._count.fill_(len(self))
        self._oldest.fill_(total - len(self))

    def _put(self, first: int, rows: Tensor) -> None:
        """Store rows (..., n, width), the first of which was added as number `first`."""
        places = torch.arange(first, first + rows.shape[-2], device=self._device) % self.capacity
        self._rows.index_copy_(-2, places, rows.to(self._device))


def _write_rows(folder: Path, first: int, rows: Tensor) -> None:
    """Write rows (..., n, width) as one file, whole or not at all; its name says which of the run's rows it holds."""
    checksum = _checksum(rows)
    path = folder / f"rows_{first:012d}_{first + rows.shape[-2]:012d}.safetensors"
    temporary = path.with_suffix(".tmp")
    try:
        write_durably(temporary, save({"rows": rows}, metadata={"crc32": str(checksum)}))
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _read_rows(path: Path, shape: tuple[int, ...]) -> Tensor:
    try:
        with safe_open(path, framework="pt") as file:
            rows: Tensor = file.get_tensor("rows")
            checksum = int(file.metadata()["crc32"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise WeightsError(f"replay file {path} cannot be read: {error}.") from error
    if rows.shape != shape:
        raise WeightsError(
            f"replay file {path} holds rows of shape {tuple(rows.shape)}, this run's are {shape} (agents, rows, "
            "width): it was written for another task or number of seeds."
        )
    if _checksum(rows) != checksum:
        raise WeightsError(f"replay file {path} is corrupt: its content does not have the checksum {checksum}.")
    return rows


def _checksum(rows: Tensor) -> int:
    return zlib.crc32(rows.numpy().data)


def _row_files(folder: Path) -> list[tuple[int, int, Path]]:
    """Return first row, end and path of each file, in order."""
    files = []
    for path in sorted(folder.glob("rows_*.safetensors")):
        _, first, end = path.stem.split("_")
        files.append((int(first), int(end), path))
    return files
