"""One learner step on several devices: each rank takes its share of the batch, all take the same optimiser step.

A rank is a process with one device. Ranks begin with the same networks (`synchronise`), draw different rows and noise
(`share_of`), and average gradients and loss before `GuardedAdam` looks at them: so they leave the same steps out, and
their networks stay the same to the bit. Outside of `joined` nothing here does anything.

The average of the ranks' gradients is that of the joint batch as long as a loss is a mean over rows. Ours are, but for
cgpo.weight_norm = mean and the means over human rows, which are taken over each rank's rows by itself.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor

from learner.config import LearnerConfig
from policy.errors import CgpoError, ConfigError

_TIMEOUT_S = 600.0
_SEED_STRIDE = 1_000_003  # between ranks; far from seeds that a person would choose


class LostRankError(CgpoError):
    """Another rank has ended, or has not answered in time."""


@contextlib.contextmanager
def joined(
    rank: int, num_ranks: int, rendezvous: Path, device: str | torch.device, timeout_s: float = _TIMEOUT_S
) -> Iterator[dist.ProcessGroup]:
    """Make this process one of `num_ranks` on this machine, numbered from 0, that meet at a file none of them made yet.

    Yields a second group of the same ranks, for what is on the CPU. Every rank must do the same steps in the same order
    from here on. Raises LostRankError, here and in each step, when one of them has ended or is timeout_s late.
    """
    backend = "nccl" if torch.device(device).type == "cuda" else "gloo"
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # gloo would look up this machine's name
    address = f"file://{rendezvous.absolute()}"
    timeout = timedelta(seconds=timeout_s)
    with expecting_all_ranks():
        dist.init_process_group(backend, init_method=address, rank=rank, world_size=num_ranks, timeout=timeout)
    try:
        with expecting_all_ranks():
            on_cpu = dist.new_group(backend="gloo", timeout=timeout)
        yield on_cpu
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def expecting_all_ranks() -> Iterator[None]:
    """Let an exchange between ranks fail with LostRankError: whatever goes wrong there, one was not there."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LostRankError(f"another of the learner's trainers has ended or does not answer: {reason}") from error


def share_of(config: LearnerConfig, rank: int, num_ranks: int) -> LearnerConfig:
    """Return a rank's own configuration: an equal share of each batch, and random numbers of its own.

    Rank 0 keeps its seed. Raises ConfigError when a batch cannot be shared equally.
    """
    size = config.replay.batch_size
    if size % num_ranks:
        raise ConfigError(
            f"replay.batch_size = {size} cannot be shared equally by {num_ranks} trainers; take a multiple of that"
        )
    replay = dataclasses.replace(config.replay, batch_size=size // num_ranks)
    return dataclasses.replace(config, replay=replay, seed=config.seed + rank * _SEED_STRIDE, num_trainers=1)


def average_over_ranks(gradients: Sequence[Tensor | None], loss: Tensor) -> tuple[list[Tensor | None], Tensor]:
    """Return the means over all ranks of gradients and loss, by one message; what came in where there is one rank.

    What is not finite on one rank is not finite on all of them afterwards.
    """
    if not dist.is_initialized():
        return list(gradients), loss
    present = [loss.detach(), *(gradient for gradient in gradients if gradient is not None)]
    message = torch.cat([tensor.reshape(-1) for tensor in present])
    with expecting_all_ranks():
        dist.all_reduce(message)
    message /= dist.get_world_size()
    parts = torch.split_with_sizes(message, [tensor.numel() for tensor in present])
    means = iter([part.view(tensor.shape) for part, tensor in zip(parts, present, strict=True)])
    mean_loss = next(means)
    return [None if gradient is None else next(means) for gradient in gradients], mean_loss


def broadcast_tensors(
    tensors: Mapping[str, Tensor],
    device: str | torch.device,
    *,
    source: int = 0,
    group: dist.ProcessGroup | None = None,
) -> dict[str, Tensor]:
    """Return, on every rank and on the CPU, the `tensors` of rank `source`; `device` is where the group's data is."""
    data = safetensors.torch.save(dict(tensors)) if dist.get_rank() == source else b""
    with expecting_all_ranks():
        size = torch.tensor([len(data)], device=device)
        dist.broadcast(size, source, group=group)
        message = torch.empty(int(size), dtype=torch.uint8, device=device)
        if data:
            message.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        dist.broadcast(message, source, group=group)
    return safetensors.torch.load(message.cpu().numpy().tobytes())
