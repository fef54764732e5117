"""Flatten networks, optimisers, generators and counters to named tensors and back, for checkpoints without pickle."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from learner.agents import PopulationAdam
from learner.algorithms.guarded_adam import GuardedAdam, SkippedSteps, read_counters
from learner.noise import Noise
from policy.errors import WeightsError

SKIPPED = "skipped"

Part = nn.Module | GuardedAdam | torch.Generator | Tensor
Stateful = Part | PopulationAdam | Noise


class Resumable(ABC):
    """State of an algorithm from the parts it is made of."""

    @abstractmethod
    def _parts(self) -> dict[str, Stateful]:
        """Return everything that changes while it learns, by unique name."""

    def state(self) -> dict[str, Tensor]:
        return collect_state(_single_parts(self._parts()))

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        restore_state(_single_parts(self._parts()), state)

    def counters(self) -> dict[str, Tensor]:
        parts = _single_parts(self._parts())
        return {name: part.counters() for name, part in parts.items() if isinstance(part, GuardedAdam)}

    def skipped_steps(self) -> dict[str, SkippedSteps]:
        return read_counters(self.counters())

    def is_warming_up(self) -> bool:
        return False


def _single_parts(parts: Mapping[str, Stateful]) -> dict[str, Part]:
    """Take apart what holds one thing for each agent: `name` for the first, `name#1` and so on for the others."""
    single: dict[str, Part] = {}
    for name, part in parts.items():
        each: Sequence[Part]
        if isinstance(part, PopulationAdam):
            each = part.members
        elif isinstance(part, Noise):
            each = part.generators
        else:
            each = [part]
        single |= {f"{name}#{index}" if index else name: own for index, own in enumerate(each)}
    return single


def collect_state(parts: Mapping[str, Part]) -> dict[str, Tensor]:
    """Return one flat dict: `part.tensor` for modules, `part` for generators and tensors; of optimisers Adam's moments
    as `part.index.key`, and as `part.skipped` how many steps were left out, in all and in a row.
    """
    state: dict[str, Tensor] = {}
    for name, part in parts.items():
        if isinstance(part, torch.Generator):
            state[name] = part.get_state()
        elif isinstance(part, Tensor):
            state[name] = part.clone()
        elif isinstance(part, nn.Module):
            state.update({f"{name}.{key}": tensor.detach().cpu().clone() for key, tensor in part.state_dict().items()})
        else:
            for index, moments in part.state_dict()["state"].items():
                state.update({f"{name}.{index}.{key}": tensor.cpu().clone() for key, tensor in moments.items()})
            state[f"{name}.{SKIPPED}"] = part.skipped().cpu().clone()
    return state


def restore_state(parts: Mapping[str, Part], state: Mapping[str, Tensor]) -> None:
    """Load `collect_state` back. Raises WeightsError when anything is missing or of another shape."""
    for name, part in parts.items():
        own = {key.removeprefix(f"{name}."): tensor for key, tensor in state.items() if key.startswith(f"{name}.")}
        try:
            if isinstance(part, torch.Generator):
                part.set_state(state[name])
            elif isinstance(part, Tensor):
                part.copy_(state[name])
            elif isinstance(part, nn.Module):
                part.load_state_dict(own, strict=True)
            else:
                _restore_adam(part, own)
        except (LookupError, RuntimeError) as error:
            problem = " ".join(line.strip() for line in str(error).splitlines()[:2])  # PyTorch lists every tensor
            raise WeightsError(
                f"the run's checkpoint does not fit this configuration: {name}: {problem} Start with the preset and "
                "options that the run was started with, or with another --run-dir."
            ) from error


def _restore_adam(optimiser: GuardedAdam, own: Mapping[str, Tensor]) -> None:
    moments: dict[int, dict[str, Tensor]] = {}
    skipped = own[SKIPPED] if own else torch.zeros(2)  # of one without any entry nothing was ever asked
    for key, tensor in own.items():
        if key == SKIPPED:
            continue
        index, _, moment = key.partition(".")
        moments.setdefault(int(index), {})[moment] = tensor.clone()
    parameters = optimiser.param_groups[0]["params"]
    # Adam itself would accept anything, and fail or drift at its next step.
    for parameter_index, found in moments.items():
        shape = parameters[parameter_index].shape
        expected = {"step": torch.Size(), "exp_avg": shape, "exp_avg_sq": shape}
        if {moment: tensor.shape for moment, tensor in found.items()} != expected:
            raise RuntimeError(f"moments of parameter {parameter_index} are not {expected}")
    full = optimiser.state_dict()
    full["state"] = moments
    optimiser.load_state_dict(full)
    optimiser.set_skipped(skipped)
