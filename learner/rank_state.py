"""What the ranks of a data-parallel learner have in common, and what each has for itself."""

import torch
import torch.distributed as dist
from torch import Tensor

from learner.algorithms.base import Algorithm
from learner.data_parallel import broadcast_tensors


def synchronise(algorithm: Algorithm, device: str | torch.device) -> None:
    """Give every rank the networks, optimisers and counters of rank 0; each keeps its own random numbers."""
    generators, rest = generators_and_rest(algorithm)
    shared = broadcast_tensors(rest, device)
    if dist.get_rank() != 0:
        algorithm.load_state({**generators, **shared})


def largest_difference(algorithm: Algorithm, device: str | torch.device) -> float:
    """Return by how much this rank's published policy differs from rank 0's in its worst element: 0, as it should."""
    own = algorithm.policy_tensors()
    first = broadcast_tensors(own, device)
    return max(float((own[name] - first[name]).abs().max()) for name in own)


def generators_and_rest(algorithm: Algorithm) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what each rank has for itself of an algorithm's state, and what is the same on all of them."""
    state = algorithm.state()
    generators = {
        name: tensor for name, tensor in state.items() if tensor.dtype == torch.uint8
    }  # nothing else is bytes
    return generators, {name: tensor for name, tensor in state.items() if name not in generators}
