"""Observation and action specs: names, units and bounds, and the map to [-1, 1] and back."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from policy.errors import ConfigError, WireError

Observation = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Field:
    """One named float32 vector of an observation or action.

    low and high are physical bounds in `unit`, one value per element.
    fine_scale (observation only, in `unit`): adds tanh(value / fine_scale) beside the linear channel, so that a
    millimetre near zero is as visible to a network as a decimetre at the edge. 0 adds nothing.
    """

    name: str
    unit: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    fine_scale: float = 0.0

    def __post_init__(self) -> None:
        if len(self.low) != len(self.high) or not self.low:
            raise ConfigError(f"field {self.name}: {len(self.low)} low bounds, {len(self.high)} high bounds")
        for index, (low, high) in enumerate(zip(self.low, self.high, strict=True)):
            if not (np.isfinite(low) and np.isfinite(high) and low < high):
                raise ConfigError(f"field {self.name}[{index}]: bounds [{low}, {high}] {self.unit} are not an interval")

    @property
    def size(self) -> int:
        return len(self.low)


@dataclass(frozen=True)
class ObservationSpec:
    """The named vectors of one observation. Order matters: it fixes the network's input layout."""

    fields: tuple[Field, ...]

    def __post_init__(self) -> None:
        _check_names(self.fields)

    @property
    def feature_dim(self) -> int:
        """Length of the vector that `normalise` returns."""
        return sum(field.size * (2 if field.fine_scale else 1) for field in self.fields)

    def check(self, observation: Observation) -> None:
        """Raise WireError unless every field is there with the right size and finite values."""
        _check_fields(self.fields, observation, "observation")

    def normalise(self, observation: Observation) -> NDArray[np.float32]:
        """Return the network input (feature_dim,): each bound at -1 and 1, values beyond clipped at +-1.5."""
        parts: list[NDArray[np.float32]] = []
        for field in self.fields:
            value = np.asarray(observation[field.name], dtype=np.float32)
            low, high = np.asarray(field.low, np.float32), np.asarray(field.high, np.float32)
            parts.append(np.clip((2 * value - low - high) / (high - low), -1.5, 1.5))
            if field.fine_scale:
                parts.append(np.tanh(value / np.float32(field.fine_scale)))
        return np.concatenate(parts, dtype=np.float32)


@dataclass(frozen=True)
class ActionSpec:
    """The elements of one action. Networks, replay and wire use [-1, 1]; the robot uses physical units."""

    fields: tuple[Field, ...]

    def __post_init__(self) -> None:
        _check_names(self.fields)

    @property
    def dim(self) -> int:
        return sum(field.size for field in self.fields)

    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return (low, high), each (dim,), in physical units."""
        low = np.concatenate([np.asarray(field.low) for field in self.fields])
        high = np.concatenate([np.asarray(field.high) for field in self.fields])
        return low, high

    def to_physical(self, action: NDArray[np.float32]) -> NDArray[np.float64]:
        """Map (dim,) from [-1, 1] to physical units. Raises WireError on a wrong shape or non-finite value."""
        if action.shape != (self.dim,) or not np.isfinite(action).all():
            raise WireError(f"action {action.tolist()} is not {self.dim} finite values")
        low, high = self.bounds()
        return (np.clip(action.astype(np.float64), -1, 1) * (high - low) + (high + low)) / 2

    def to_normalised(self, physical: NDArray[np.float64]) -> NDArray[np.float32]:
        """Map (dim,) from physical units to [-1, 1], clipped."""
        low, high = self.bounds()
        return np.clip((2 * physical - low - high) / (high - low), -1, 1).astype(np.float32)


@dataclass(frozen=True)
class Specs:
    """What learner and actor must agree on before they exchange data (see Hello in link.proto)."""

    observation: ObservationSpec
    action: ActionSpec

    def to_json(self) -> str:
        """Return the canonical text that is hashed and shown to the operator on a mismatch."""
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> "Specs":
        """Rebuild from `to_json`. Raises WireError when the text is not a valid pair of specs."""
        try:
            raw = json.loads(text)
            observation = ObservationSpec(tuple(_field_from_dict(field) for field in raw["observation"]["fields"]))
            action = ActionSpec(tuple(_field_from_dict(field) for field in raw["action"]["fields"]))
        except (ValueError, KeyError, TypeError, ConfigError) as error:
            raise WireError(f"not a pair of observation and action specs: {error}") from error
        return Specs(observation, action)

    def digest(self) -> str:
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]


def _check_names(fields: tuple[Field, ...]) -> None:
    names = [field.name for field in fields]
    if len(set(names)) != len(names):
        raise ConfigError(f"a spec names a field twice: {names}")


def _field_from_dict(raw: Mapping[str, object]) -> Field:
    values = dict(raw)
    for bound in ("low", "high"):
        values[bound] = tuple(values[bound])  # type: ignore[arg-type]
    return Field(**values)  # type: ignore[arg-type]


def _check_fields(fields: tuple[Field, ...], values: Observation, what: str) -> None:
    expected = {field.name for field in fields}
    if set(values) != expected:
        raise WireError(f"{what} has fields {sorted(values)}, expected {sorted(expected)}")
    for field in fields:
        value = np.asarray(values[field.name])
        if value.shape != (field.size,):
            raise WireError(f"{what} {field.name} has shape {value.shape}, expected ({field.size},)")
        if not np.isfinite(value).all():
            raise WireError(f"{what} {field.name} = {value.tolist()} {field.unit} is not finite; check its sensor")
