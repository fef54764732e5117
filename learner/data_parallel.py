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
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor

from policy.errors import ConfigError

if TYPE_CHECKING:  # which import the optimiser, which imports this
    from learner.algorithms.base import Algorithm
    from learner.config import LearnerConfig

_TIMEOUT = timedelta(minutes=10)  # for a rank that is late: the others wait, then fail
_SEED_STRIDE = 1_000_003  # between ranks; far from seeds that a person would choose


@contextlib.contextmanager
def joined(rank: int, num_ranks: int, rendezvous: Path, device: str | torch.device) -> Iterator[None]:
    """Make this process one of `num_ranks` on this machine, numbered from 0, that meet at a file none of them made yet.

    Waits for all of them. Raises torch.distributed.DistError when they do not come within ten minutes. Every rank must
    do the same steps in the same order from here on; one that leaves early ends the others' next step with that error.
    """
    backend = "nccl" if torch.device(device).type == "cuda" else "gloo"
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # gloo would look up this machine's name
    address = f"file://{rendezvous.absolute()}"
    dist.init_process_group(backend, init_method=address, rank=rank, world_size=num_ranks, timeout=_TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def share_of(config: "LearnerConfig", rank: int, num_ranks: int) -> "LearnerConfig":
    """Return a rank's own configuration: an equal share of each batch, and random numbers of its own.

    Rank 0 keeps its seed. Raises ConfigError when a batch cannot be shared equally.
    """
    size = config.replay.batch_size
    if size % num_ranks:
        raise ConfigError(
            f"replay.batch_size = {size} cannot be shared equally by {num_ranks} trainers; take a multiple of that"
        )
    replay = dataclasses.replace(config.replay, batch_size=size // num_ranks)
    return dataclasses.replace(config, replay=replay, seed=config.seed + rank * _SEED_STRIDE)


def average_over_ranks(gradients: Sequence[Tensor | None], loss: Tensor) -> tuple[list[Tensor | None], Tensor]:
    """Return the means over all ranks of gradients and loss, by one message; what came in where there is one rank.

    What is not finite on one rank is not finite on all of them afterwards.
    """
    if not dist.is_initialized():
        return list(gradients), loss
    present = [loss.detach(), *(gradient for gradient in gradients if gradient is not None)]
    message = torch.cat([tensor.reshape(-1) for tensor in present])
    dist.all_reduce(message)
    message /= dist.get_world_size()
    parts = torch.split_with_sizes(message, [tensor.numel() for tensor in present])
    means = iter([part.view(tensor.shape) for part, tensor in zip(parts, present, strict=True)])
    mean_loss = next(means)
    return [None if gradient is None else next(means) for gradient in gradients], mean_loss


def synchronise(algorithm: "Algorithm", device: str | torch.device) -> None:
    """Give every rank the networks, optimisers and counters of rank 0; each keeps its own random numbers."""
    own = algorithm.state()
    shared = _from_first_rank({name: own[name] for name in own if not _is_generator(own[name])}, device)
    if dist.get_rank() != 0:
        algorithm.load_state({**{name: tensor for name, tensor in own.items() if _is_generator(tensor)}, **shared})


def largest_difference(algorithm: "Algorithm", device: str | torch.device) -> float:
    """Return by how much this rank's published policy differs from rank 0's in its worst element: 0, as it should."""
    own = algorithm.policy_tensors()
    first = _from_first_rank(own, device)
    return max(float((own[name] - first[name]).abs().max()) for name in own)


def _is_generator(tensor: Tensor) -> bool:
    return tensor.dtype == torch.uint8  # nothing else in an algorithm's state is made of bytes


def _from_first_rank(tensors: dict[str, Tensor], device: str | torch.device) -> dict[str, Tensor]:
    data = safetensors.torch.save(tensors) if dist.get_rank() == 0 else b""
    size = torch.tensor([len(data)], device=device)
    dist.broadcast(size, src=0)
    message = torch.empty(int(size), dtype=torch.uint8, device=device)
    if data:
        message.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    dist.broadcast(message, src=0)
    return safetensors.torch.load(message.cpu().numpy().tobytes())
