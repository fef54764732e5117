"""Frozen config objects from TOML presets and key=value overrides; unknown keys are refused with the nearest name."""

import copy
import dataclasses
import difflib
import json
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import tomli_w

from policy.errors import ConfigError, unknown_name

Config = TypeVar("Config")
Tables = Mapping[str, Mapping[str, Any]]

PRESET_TABLES = ("policy", "learner", "actor")


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """Architecture of everything that crosses the wire as weights. Learner and actor must agree on all of it."""

    distribution: Literal["diffusion", "gaussian", "deterministic"] = "diffusion"
    """What acts: a diffusion policy (CGPO, QVPO, DIPO, cloning), a tanh-Gaussian (SAC, TQC, HIL-SERL's SAC), or one
    action for each state (TD3)."""
    encoder: Literal["none", "resnet10"] = "none"
    """Image encoder; none for observations without images."""
    encoder_weights: str = ""
    """The frozen backbone: the SHA-256 of its converted file, or "random" (a fixed seed; for tests and trials only)."""
    image_feature_dim: int = 256
    """Width of each camera's feature."""
    proprioception_feature_dim: int = 64
    """Width of the vector's feature beside images."""
    spatial_blocks: int = 8
    """Spatial learned embeddings per channel of the backbone's map."""
    gripper_critic_hidden: tuple[int, ...] = (256, 256)
    """Hidden layers of the three-way gripper critic (actor.gripper = discrete)."""
    gaussian_hidden: tuple[int, ...] = (256, 256)
    """Hidden layers of the Gaussian policy."""
    gaussian_layer_norm: bool = True
    """LayerNorm and tanh in the Gaussian policy, and its deviation from 1e-5 to 5 (HIL-SERL); false: relu, and from
    exp(-20) to exp(2) (SAC, TQC)."""
    deterministic_hidden: tuple[int, ...] = (256, 256)
    """Hidden layers of the deterministic policy (relu)."""
    exploration_noise: float = 0.1
    """Standard deviation of what a deterministic policy adds to its actions while data are collected."""
    success_classifier: bool = False
    """Whether a success classifier is published with the policy."""
    success_classifier_vector: bool = False
    """Whether the success classifier sees the observation's vector beside the images. It then may learn where the arm
    usually is in success instead of what the cameras show."""
    denoising_steps: int = 20
    """T, length of the reverse diffusion chain."""
    schedule: Literal["cosine", "vp"] = "cosine"
    """Noise schedule."""
    denoiser_hidden: tuple[int, ...] = (256, 256, 256)
    """Widths of the denoiser's hidden layers (mish)."""
    time_embedding_dim: int = 32
    """Size of the sinusoidal embedding of the denoising step."""
    critic_hidden: tuple[int, ...] = (256, 256, 256)
    """Widths of each critic's hidden layers."""
    num_critics: int = 5
    """N, critics in the ensemble."""
    num_quantiles: int = 25
    """M, quantiles per critic."""
    drop_quantiles: int = 2
    """k, highest quantiles of each critic left out of the conservative value (Eq 14) and of targets."""
    critic_activation: Literal["mish", "relu"] = "mish"
    """relu: with layers that start as PyTorch makes them, as in the codes of SAC, TD3 and TQC."""
    critic_layer_norm: bool = False
    """LayerNorm and tanh in the critic instead of mish (RLPD, HIL-SERL); needed for sparse rewards with
    demonstrations."""
    behavior_candidates: int = 4
    """K_b, unguided samples per decision; the critic picks one. 1 means that no critic is published."""

    def __post_init__(self) -> None:
        if self.denoising_steps < 2:
            raise ConfigError(f"denoising_steps = {self.denoising_steps}: the chain needs at least 2 steps")
        if not 0 <= self.drop_quantiles < self.num_quantiles:
            raise ConfigError(
                f"drop_quantiles = {self.drop_quantiles} must be at least 0 and below "
                f"num_quantiles = {self.num_quantiles}"
            )
        if min(self.image_feature_dim, self.proprioception_feature_dim, self.spatial_blocks) < 1:
            raise ConfigError("image_feature_dim, proprioception_feature_dim and spatial_blocks must be positive")
        if self.num_critics < 1:
            raise ConfigError(f"num_critics = {self.num_critics}: at least one critic is needed")
        if self.time_embedding_dim < 4 or self.time_embedding_dim % 2:
            raise ConfigError(f"time_embedding_dim = {self.time_embedding_dim} must be even and at least 4")
        if self.behavior_candidates < 1:
            raise ConfigError(f"behavior_candidates = {self.behavior_candidates}: at least one sample is needed to act")
        if self.exploration_noise < 0:
            raise ConfigError(f"exploration_noise = {self.exploration_noise} must not be negative")
        if self.critic_layer_norm and self.critic_activation == "relu":
            raise ConfigError("critic_layer_norm = true has tanh for activation: set critic_activation to 'mish'")
        for name in (
            "denoiser_hidden",
            "critic_hidden",
            "gaussian_hidden",
            "deterministic_hidden",
            "gripper_critic_hidden",
        ):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: give at least one positive width")

    def to_json(self) -> str:
        return to_json(self)


def to_json(config: Any) -> str:
    """Return the canonical JSON text of a config object."""
    return json.dumps(dataclasses.asdict(config), sort_keys=True, default=str)  # str: paths


def preset_names() -> list[str]:
    return sorted(path.stem for path in presets_dir().glob("*.toml"))


def presets_dir() -> Path:
    return Path(__file__).resolve().parent.parent / "launch" / "presets"


def load_preset(name_or_path: str) -> dict[str, Any]:
    """Read the tables of a preset by name (launch/presets/NAME.toml) or path; a ConfigError lists the valid ones."""
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = presets_dir() / f"{name_or_path}.toml"
        if not path.exists():
            raise unknown_name("preset", name_or_path, preset_names())
    try:
        tables = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read preset {path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"preset {path} is not valid TOML: {error}") from error
    for name, value in tables.items():
        if not isinstance(value, dict):
            raise ConfigError(f"preset {path}: {name} = {value!r} stands outside the tables {', '.join(PRESET_TABLES)}")
    return tables


def from_dict(cls: type[Config], raw: Mapping[str, Any], where: str = "") -> Config:
    """Build the frozen dataclass `cls` from nested tables; missing keys take their defaults.

    Raises ConfigError for an unknown key (with the nearest valid one) or a value of the wrong type.
    """
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in raw.items():
        if key not in names:
            raise _unknown_key(f"{where}{key}", [f"{where}{name}" for name in names])
        values[key] = _convert(hints[key], value, f"{where}{key}")
    return cls(**values)


def to_toml(programs: Mapping[str, Any]) -> str:
    """Return the text of a preset that holds every value of the programs' configurations ({"learner": config, ...}).

    A field that is None is left out, as TOML has no null; so None must be the default of a field that may be None.
    """
    tables: dict[str, Any] = {}
    for section, config in programs.items():
        table = _plain(config)
        tables["policy"] = table.pop("policy")
        tables[section] = table
    return tomli_w.dumps(tables)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {name: _plain(item) for name, item in fields.items() if item is not None}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def apply_overrides(raw: dict[str, Any], assignments: Sequence[str], valid: Sequence[str]) -> dict[str, Any]:
    """Return a copy of nested tables `raw` with each "key=value" set.

    A key is a dotted path in `valid`, or any unambiguous tail of one (`guidance.type`). Values are TOML, bare words
    are strings. Raises ConfigError for a malformed, unknown (nearest name given) or ambiguous key.
    """
    result = copy.deepcopy(raw)
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator:
            raise ConfigError(f"override {assignment!r} is not of the form key=value")
        path = _match_key(key.strip(), valid)
        table = result
        *parents, leaf = path.split(".")
        for parent in parents:
            table = table.setdefault(parent, {})
        table[leaf] = _parse_value(text.strip())
    return result


def valid_keys(cls: type, prefix: str = "") -> list[str]:
    """Return the dotted path of every leaf field of a (nested) config dataclass."""
    keys: list[str] = []
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            keys += valid_keys(typing.cast(type, hints[field.name]), f"{prefix}{field.name}.")
        else:
            keys.append(f"{prefix}{field.name}")
    return keys


def _match_key(key: str, valid: Sequence[str]) -> str:
    if key in valid:
        return key
    matches = [path for path in valid if path.endswith(f".{key}")]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ConfigError(f"key {key!r} is ambiguous: it could be {' or '.join(matches)}. Give a longer path.")
    raise _unknown_key(key, valid)


def _unknown_key(key: str, valid: Sequence[str]) -> ConfigError:
    tails = {path: path for path in valid}
    for path in valid:  # a typo in a tail should still find its path
        for start in range(path.count(".")):
            tails.setdefault(path.split(".", start + 1)[-1], path)
    nearest = difflib.get_close_matches(key, tails, n=1, cutoff=0.5)
    hint = f"Did you mean {tails[nearest[0]]!r}?" if nearest else f"Valid keys: {', '.join(valid)}."
    return ConfigError(f"unknown configuration key {key!r}. {hint}")


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, typing.cast(type, hint)):
            return value
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} = {value!r}: expected a table")
        return from_dict(typing.cast(type, hint), value, f"{where}.")
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise unknown_name(where, str(value), [str(choice) for choice in typing.get_args(hint)])
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} = {value!r}: expected a list")
        return tuple(_convert(typing.get_args(hint)[0], item, where) for item in value)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        (inner,) = [choice for choice in typing.get_args(hint) if choice is not type(None)]
        return _convert(inner, value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{where} = {value!r}: expected {hint.__name__}, got {type(value).__name__}")
    return value
