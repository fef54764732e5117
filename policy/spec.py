"""Observation and action specs: names, units and bounds, and the map to [-1, 1] and back."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from policy.errors import ConfigError, WireError
from policy.image_codec import CodedImage
from policy.text import MAX_REASON, clean

Observation = Mapping[str, Any]
"""Field name -> float32 vector, image name -> CodedImage (policy.image_codec)."""

GripperMode = Literal["none", "continuous", "discrete"]

_MAX_FIELDS = 256
_MAX_NAME_LENGTH = 128
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")  # of files and of HDF5 datasets too


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
        if len(self.unit) > _MAX_NAME_LENGTH or not self.unit.isprintable():
            raise ConfigError(f"field {self.name}: {self.unit!r} cannot be a unit")
        for index, (low, high) in enumerate(zip(self.low, self.high, strict=True)):
            if not (np.isfinite(low) and np.isfinite(high) and low < high):
                raise ConfigError(f"field {self.name}[{index}]: bounds [{low}, {high}] {self.unit} are not an interval")
        if not (np.isfinite(self.fine_scale) and self.fine_scale >= 0):
            raise ConfigError(f"field {self.name}: fine_scale = {self.fine_scale} {self.unit} is no length of a scale")

    @property
    def size(self) -> int:
        return len(self.low)


@dataclass(frozen=True, kw_only=True)
class ImageField:
    """One camera's image in an observation: uint8 RGB, cropped and resized."""

    name: str
    height: int
    width: int

    def __post_init__(self) -> None:
        if not (8 <= self.height <= 1024 and 8 <= self.width <= 1024):
            raise ConfigError(f"image {self.name}: {self.width} x {self.height} pixels is not within 8 to 1024 a side")


@dataclass(frozen=True)
class ObservationSpec:
    """The named vectors and images of one observation. Order matters: it fixes the network's input layout."""

    fields: tuple[Field, ...]
    images: tuple[ImageField, ...] = ()

    def __post_init__(self) -> None:
        _check_names((*self.fields, *self.images))

    @property
    def names(self) -> list[str]:
        """All names of an observation: vectors, then images."""
        return [field.name for field in self.fields] + [image.name for image in self.images]

    @property
    def vector_dim(self) -> int:
        """Length of the vector that `normalise` returns."""
        return sum(field.size * (2 if field.fine_scale else 1) for field in self.fields)

    def check(self, observation: Observation) -> None:
        """Raise WireError unless every field and image is there with the right size and finite values.

        An image may be coded or still a plain uint8 array.
        """
        expected = set(self.names)
        if set(observation) != expected:
            raise WireError(f"observation has fields {sorted(observation)}, expected {sorted(expected)}")
        for field in self.fields:
            value = np.asarray(observation[field.name])
            if value.shape != (field.size,):
                raise WireError(f"observation {field.name} has shape {value.shape}, expected ({field.size},)")
            if not np.isfinite(value).all():
                raise WireError(
                    f"observation {field.name} = {value.tolist()} {field.unit} is not finite; check its sensor"
                )
        for image in self.images:
            coded = observation[image.name]
            pixels = coded.pixels if isinstance(coded, CodedImage) else np.asarray(coded)
            if pixels.shape != (image.height, image.width, 3) or pixels.dtype != np.uint8:
                raise WireError(
                    f"image {image.name} has shape {pixels.shape} and type {pixels.dtype}, expected "
                    f"({image.height}, {image.width}, 3) uint8"
                )

    def normalise(self, observation: Observation) -> NDArray[np.float32]:
        """Return the vectors as network input (vector_dim,): each bound at -1 and 1, values beyond clipped at +-1.5."""
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
    """The elements of one action. Networks, replay and wire use [-1, 1]; the robot uses physical units.

    gripper other than none: the last element is the gripper's, below -0.5 close, above 0.5 open, between them stay.
    continuous: the policy's continuous head draws it like any other. discrete: it is -1, 0 or 1, chosen by a critic of
    its own (HIL-SERL's hybrid), and the continuous head draws the elements before it only.
    """

    fields: tuple[Field, ...]
    gripper: GripperMode = "none"

    def __post_init__(self) -> None:
        _check_names(self.fields)
        if not self.fields or self.gripper not in get_args(GripperMode):
            raise ConfigError(f"an action of {len(self.fields)} fields with gripper {self.gripper!r} cannot be one")
        if self.gripper != "none" and (self.fields[-1].name, self.fields[-1].size) != ("gripper", 1):
            raise ConfigError(f"an action with gripper {self.gripper!r} must end with one element named 'gripper'")

    @property
    def dim(self) -> int:
        return sum(field.size for field in self.fields)

    @property
    def continuous_dim(self) -> int:
        """Elements that the diffusion (or Gaussian) policy and the arm's critic see."""
        return self.dim - (self.gripper == "discrete")

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
            observation = ObservationSpec(
                tuple(_field_from_dict(field) for field in raw["observation"]["fields"]),
                tuple(_image_from_dict(image) for image in raw["observation"].get("images", ())),
            )
            action = ActionSpec(
                tuple(_field_from_dict(field) for field in raw["action"]["fields"]),
                raw["action"].get("gripper", "none"),
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ConfigError) as error:
            reason = clean(str(error), MAX_REASON)
            raise WireError(f"not a pair of observation and action specs: {reason}") from error
        return Specs(observation, action)

    def digest(self) -> str:
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]


def _check_names(fields: tuple[Field | ImageField, ...]) -> None:
    names = [field.name for field in fields]
    if len(names) > _MAX_FIELDS:
        raise ConfigError(f"a spec has {len(names)} fields, at most {_MAX_FIELDS} are allowed")
    for name in names:
        if len(name) > _MAX_NAME_LENGTH or not _NAME.fullmatch(name):
            raise ConfigError(
                f"{clean(name, _MAX_NAME_LENGTH)!r} cannot name a field or image: 1 to {_MAX_NAME_LENGTH} "
                "letters, digits, _, - and . can, of which . is not the first"
            )
    if len(set(names)) != len(names):
        raise ConfigError(f"a spec names a field twice: {names}")


def _field_from_dict(raw: Mapping[str, object]) -> Field:
    values = dict(raw)
    for bound in ("low", "high"):
        values[bound] = tuple(values[bound])  # type: ignore[arg-type]
    numbers = (*values["low"], *values["high"], values.get("fine_scale", 0.0))  # type: ignore[misc]
    if not (_are(str, values["name"], values["unit"]) and _are((int, float), *numbers)):
        raise TypeError(f"a field of {values} has a text where a number belongs, or the reverse")
    return Field(**values)  # type: ignore[arg-type]


def _image_from_dict(raw: Mapping[str, object]) -> ImageField:
    if not (_are(str, raw["name"]) and _are(int, raw["height"], raw["width"])):
        raise TypeError(f"an image of {raw} has a text where a number belongs, or the reverse")
    return ImageField(**raw)  # type: ignore[arg-type]


def _are(kind: type | tuple[type, ...], *values: object) -> bool:
    return all(isinstance(value, kind) and not isinstance(value, bool) for value in values)
