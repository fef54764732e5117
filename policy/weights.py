"""Named tensors as weights of a policy: to bytes and back, checked, and into a module whole or not at all."""

from collections.abc import Mapping
from dataclasses import dataclass

import safetensors
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from policy.errors import WeightsError
from policy.text import MAX_REASON, clean
from policy.weights_store import check_header, sha256

_NAMED = 5  # differing tensors that a message names


@dataclass(frozen=True)
class PolicyWeights:
    """One published version of the policy. Version 1 is the first; tensors are on the CPU and finite."""

    version: int
    learner_step: int
    published_wall_s: float
    tensors: dict[str, Tensor]


def serialise(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the safetensors file of `tensors`, which may be on any device."""
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def deserialise(data: bytes, expected_sha256: str) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file. Raises WeightsError on another hash, damage or non-finite values."""
    digest = sha256(data)
    if digest != expected_sha256:
        raise WeightsError(
            f"weights are corrupt: {len(data)} bytes with SHA-256 {digest[:12]}…, expected {expected_sha256[:12]}…"
        )
    check_header(data)
    try:
        tensors = load(data)
        broken = [name for name, tensor in sorted(tensors.items()) if not _is_finite(tensor)]
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{len(data)} bytes are not a safetensors file: {clean(str(error), MAX_REASON)}") from error
    except (KeyError, RuntimeError) as error:  # kinds of numbers that safetensors has and torch has not, or in part
        reason = clean(repr(error), MAX_REASON)
        raise WeightsError(f"{len(data)} bytes hold a tensor that no policy has: {reason}") from error
    if broken:
        raise _error([f"{name} holds non-finite values" for name in broken])
    return tensors


def load_strict(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str = "") -> None:
    """Copy the tensors whose names start with `prefix` into `module`; the others belong to other modules.

    Raises WeightsError naming the first differing tensors, with nothing loaded, when a parameter or buffer has no
    tensor, a tensor has no parameter, a shape or dtype differs, or a value is not finite.
    """
    own = dict(module.state_dict())
    given = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    problems = []
    for name in sorted(own.keys() | given.keys()):
        if name not in given:
            problems.append(f"{prefix}{name} is missing")
        elif name not in own:
            problems.append(f"{prefix}{name} is not part of this policy")
        elif (own[name].shape, own[name].dtype) != (given[name].shape, given[name].dtype):
            problems.append(f"{prefix}{name} is {_describe(given[name])}, this policy has {_describe(own[name])}")
        elif not _is_finite(given[name]):
            problems.append(f"{prefix}{name} holds non-finite values")
    if problems:
        raise _error(problems)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(given[name])


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _error(problems: list[str]) -> WeightsError:
    named = "; ".join(clean(problem, MAX_REASON) for problem in problems[:_NAMED])
    more = f" and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
    return WeightsError(f"weights do not fit, nothing was loaded: {named}{more}.")
