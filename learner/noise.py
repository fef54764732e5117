"""Random numbers of one agent, or of each of a population, from generators whose states are saved."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Noise:
    """Random numbers of all agents, each drawn from its own generator."""

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu", *, is_population: bool) -> None:
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        self._device = device
        self._is_population = is_population

    def normal(self, *shape: int) -> Tensor:
        """Standard normal (..., *shape)."""
        return self._of_each(lambda generator: torch.randn(shape, generator=generator, device=self._device))

    def uniform(self, *shape: int) -> Tensor:
        """Uniform in [0, 1), (..., *shape)."""
        return self._of_each(lambda generator: torch.rand(shape, generator=generator, device=self._device))

    def integers(self, high: int, *shape: int) -> Tensor:
        """Uniform integers in [0, high), (..., *shape)."""
        return self._of_each(lambda generator: torch.randint(high, shape, generator=generator, device=self._device))

    def below(self, limit: Tensor, *shape: int) -> Tensor:
        """Uniform integers in [0, limit), (..., *shape), for a limit () that is on the device and not read back.

        Their bias is limit / 2**62.
        """
        return self.integers(2**62, *shape) % limit

    def chains(self, num_steps: int, rows: int, action_dim: int) -> Tensor:
        """All noise of `rows` reverse chains, (T + 1, ..., rows, A), as policy.sampler.sample takes it."""
        drawn = self.normal(num_steps + 1, rows, action_dim)
        return drawn.movedim(-3, 0)

    def _of_each(self, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        if not self._is_population:
            return draw(self.generators[0])
        return torch.stack([draw(generator) for generator in self.generators])
