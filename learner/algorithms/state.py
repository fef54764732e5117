"""Flatten networks, optimisers and generators to named tensors and back, for checkpoints without pickle."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from policy.errors import WeightsError

Stateful = nn.Module | torch.optim.Adam | torch.Generator


def collect_state(parts: Mapping[str, Stateful]) -> dict[str, Tensor]:
    """Return one flat dict: `part.tensor` for modules, `part.index.key` for Adam moments, `part` for generators."""
    state: dict[str, Tensor] = {}
    for name, part in parts.items():
        if isinstance(part, torch.Generator):
            state[name] = part.get_state()
        elif isinstance(part, nn.Module):
            state.update({f"{name}.{key}": tensor.detach().cpu().clone() for key, tensor in part.state_dict().items()})
        else:
            for index, moments in part.state_dict()["state"].items():
                state.update({f"{name}.{index}.{key}": tensor.cpu().clone() for key, tensor in moments.items()})
    return state


def restore_state(parts: Mapping[str, Stateful], state: Mapping[str, Tensor]) -> None:
    """Load `collect_state` back. Raises WeightsError when anything is missing or of another shape."""
    for name, part in parts.items():
        own = {key.removeprefix(f"{name}."): tensor for key, tensor in state.items() if key.startswith(f"{name}.")}
        try:
            if isinstance(part, torch.Generator):
                part.set_state(state[name])
            elif isinstance(part, nn.Module):
                part.load_state_dict(own, strict=True)
            else:
                _restore_adam(part, own)
        except (KeyError, RuntimeError) as error:
            raise WeightsError(f"checkpoint does not fit this configuration: {name}: {error}") from error


def _restore_adam(optimiser: torch.optim.Adam, own: Mapping[str, Tensor]) -> None:
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in own.items():
        index, _, moment = key.partition(".")
        moments.setdefault(int(index), {})[moment] = tensor.clone()
    full = optimiser.state_dict()
    full["state"] = moments
    optimiser.load_state_dict(full)
