"""The values of a configuration that decide a curve: whether two runs may be averaged, and how far from the paper."""

import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from benchmarks.mujoco.settings import default_preset, flatten, resolve_config
from learner.config import LearnerConfig
from policy.config import to_json
from policy.errors import ConfigError

Values = Mapping[str, Any]
"""JSON values by dotted name."""

_DIGITS = 8  # of a hash: enough to tell a few thousand configurations apart
_SHARED = ("learner_steps_per_transition", "matmul_precision")
# Smaller ones make an update cheaper, and the algorithm another one than at its size. Lists are widths of layers.
_SIZES = (
    "policy.denoising_steps", "policy.denoiser_hidden", "policy.critic_hidden", "policy.gaussian_hidden",
    "policy.deterministic_hidden", "policy.num_critics", "policy.num_quantiles", "replay.batch_size",
    "cgpo.guidance.steps", "cgpo.critic.target_candidates", "cgpo.value_hidden", "cgpo.entropy_samples",
    "qvpo.candidates", "qvpo.target_candidates", "qvpo.entropy_samples", "dipo.action_steps",
)  # fmt: skip


def deciding_values(learner: Mapping[str, Any], algorithm: str) -> dict[str, Any]:
    """Return what decides a curve of nested values; what they do not name, as an older program's, has its default."""
    of_it = ("policy.", "replay.", f"{algorithm}.")
    every = _defaults() | flatten(learner)
    return {name: every[name] for name in sorted(every) if name in _SHARED or name.startswith(of_it)}


def digest_of(values: Values, *more: Any) -> str:
    """Return a short hash of values, and of whatever else tells runs apart, that new settings do not change."""
    defaults = _defaults()
    changed = {name: value for name, value in values.items() if name not in defaults or defaults[name] != value}
    text = json.dumps([changed, *more], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def differences(values: Values, algorithm: str) -> dict[str, tuple[Any, Any]]:
    """Return (value, value of the algorithm's paper_mujoco preset) where they differ; nothing if it has no preset."""
    paper = _paper_values(algorithm)
    return {name: (values.get(name), paper[name]) for name in paper if values.get(name) != paper[name]}


def is_reduction(name: str, value: Any, paper: Any) -> bool:
    """Whether a value is smaller than the paper's and stands for a size."""
    return name in _SIZES and (sum(value) < sum(paper) if isinstance(value, list) else value < paper)


@functools.cache
def _defaults() -> dict[str, Any]:
    return flatten(json.loads(to_json(LearnerConfig())))


@functools.cache
def _paper_values(algorithm: str) -> dict[str, Any]:
    try:
        preset = default_preset(algorithm, is_reduced=False)
    except ConfigError:
        return {}
    config = resolve_config(preset, (), algorithm=algorithm, device="cpu", threads=1)
    return deciding_values(json.loads(to_json(config)), algorithm)
