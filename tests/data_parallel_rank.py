"""One rank of a data-parallel learner, for test_data_parallel: updates on its share of a joint batch and joint noise.

python -m tests.data_parallel_rank RANK NUM_RANKS FOLDER; what it came to is in FOLDER/ALGORITHM.RANK.safetensors.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from learner.agents import Agents
from learner.algorithms import make_algorithm
from learner.algorithms.base import Algorithm
from learner.config import LearnerConfig
from learner.data_parallel import joined, share_of
from learner.noise import Noise
from learner.rank_state import largest_difference, synchronise
from learner.replay import Batch
from policy.encoder import EncoderInput
from tests.oracles import make_specs, random_batch, small_config

ALGORITHMS = ("cgpo", "sac")
BATCH_SIZE = 12
FEATURE_DIM, ACTION_DIM = 3, 2
UPDATES = 3


class ShareOfNoise(Noise):
    """A rank's rows of what a single process would draw for the joint batch."""

    rank, num_ranks = 0, 1

    def normal(self, *shape: int) -> Tensor:
        return self._share(super().normal(*self._joint(shape)))

    def uniform(self, *shape: int) -> Tensor:
        return self._share(super().uniform(*self._joint(shape)))

    def integers(self, high: int, *shape: int) -> Tensor:
        return self._share(super().integers(high, *self._joint(shape)))

    def chains(self, num_steps: int, rows: int, action_dim: int) -> Tensor:
        joint = super().normal(num_steps + 1, rows * self.num_ranks, action_dim)
        return joint.chunk(self.num_ranks, dim=1)[self.rank]

    def _joint(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[0] * self.num_ranks, *shape[1:])

    def _share(self, joint: Tensor) -> Tensor:
        return joint.chunk(self.num_ranks)[self.rank]


def joint_config(algorithm: str) -> LearnerConfig:
    tables = {"replay": {"batch_size": BATCH_SIZE}, "kernels": "plain", "seed": 5}
    return small_config(algorithm=algorithm, **tables)


def rows_of(batch: Batch, rank: int, num_ranks: int) -> Batch:
    def share(value: Any) -> Any:
        if isinstance(value, EncoderInput):
            return EncoderInput(value.vector.chunk(num_ranks)[rank])
        return value.chunk(num_ranks)[rank] if isinstance(value, Tensor) else value

    return Batch(**{field.name: share(getattr(batch, field.name)) for field in dataclasses.fields(batch)})


def make(algorithm: str, rank: int, num_ranks: int) -> Algorithm:
    """An algorithm whose noise is that of the joint batch, whatever seed its share of the configuration has."""
    joint = joint_config(algorithm)
    ShareOfNoise.rank, ShareOfNoise.num_ranks = rank, num_ranks

    def noise(self: Agents, purpose: int) -> Noise:
        return ShareOfNoise([joint.seed * 1000 + purpose], self.device, is_population=False)

    Agents.noise = noise  # type: ignore[method-assign]
    return make_algorithm(share_of(joint, rank, num_ranks), make_specs(FEATURE_DIM, ACTION_DIM))


def update(algorithm: Algorithm, rank: int, num_ranks: int) -> None:
    for index in range(UPDATES):
        batch = rows_of(random_batch(BATCH_SIZE, FEATURE_DIM, ACTION_DIM, seed=index), rank, num_ranks)
        algorithm.update_step(lambda batch=batch: batch)  # type: ignore[misc]


def results(algorithm: Algorithm) -> dict[str, Tensor]:
    """Networks and moments, without the state of random generators."""
    state = algorithm.state().items()
    return {name: tensor.contiguous() for name, tensor in state if tensor.is_floating_point()}


def main() -> None:
    rank, num_ranks, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    with joined(rank, num_ranks, folder / "rendezvous", "cpu"):
        for name in ALGORITHMS:
            safetensors.torch.save_file(train(name, rank, num_ranks), folder / f"{name}.{rank}.safetensors")


def train(name: str, rank: int, num_ranks: int) -> dict[str, Tensor]:
    algorithm = make(name, rank, num_ranks)
    found = {"difference_before": torch.tensor(largest_difference(algorithm, "cpu"))}
    synchronise(algorithm, "cpu")
    update(algorithm, rank, num_ranks)
    found |= results(algorithm)
    batch = rows_of(random_batch(BATCH_SIZE, FEATURE_DIM, ACTION_DIM), rank, num_ranks)
    if rank == 1:
        batch.reward[0] = torch.nan
    algorithm.update_step(lambda: batch)
    found["skipped"] = torch.tensor(sum(steps.total for steps in algorithm.skipped_steps().values()))
    found["is_finite"] = torch.tensor(is_finite(algorithm))
    found["difference"] = torch.tensor(largest_difference(algorithm, "cpu"))
    return found


def is_finite(algorithm: Algorithm) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in algorithm.policy_tensors().values())


if __name__ == "__main__":
    main()
