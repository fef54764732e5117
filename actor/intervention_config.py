"""When a human acts instead of the policy, and how the scripted stand-in for one behaves. Imports no torch."""

from dataclasses import dataclass
from typing import Literal

from policy.errors import ConfigError

Assistance = Literal["none", "random", "on_deviation"]
"""How the scripted operator helps in a training episode; a person is always free to take over."""


@dataclass(frozen=True, kw_only=True)
class InterventionConfig:
    """When the scripted operator takes over from the policy, and for how long a human keeps control."""

    probability: float = 0.7
    """Probability of a take-over in a training episode with random assistance, at the start of training."""
    decay_steps: int = 5000
    """Training steps over which that probability falls linearly to 0; 0 means that the operator never takes over."""
    latest_start: float = 0.6
    """A take-over starts at a random step in this first part of the episode's step limit, and lasts to its end."""
    action_noise: float = 0.1
    """Standard deviation of noise on the operator's corrections, in normalised action units."""
    demonstration_noise: float = 0.0
    """The same for demonstrations."""
    deviation_steps: int = 8
    """On-deviation assistance (thresholds are ours): the arm's progress is judged over this many steps."""
    deviation_progress: float = 0.1
    """It takes over when the arm made less than this share of the way that the operator would have commanded."""
    deviation_latest: float = 0.6
    """It also takes over, to the end, past this part of the step limit; 1 leaves such episodes to the policy."""
    correction_steps: int = 15
    """Steps after which a correction of a deviation ends and the policy tries again."""
    hold_s: float = 0.5
    """A human keeps control for this long after letting go of the input device."""

    def __post_init__(self) -> None:
        for name in ("probability", "latest_start", "deviation_latest"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"intervention.{name} = {getattr(self, name)} must be between 0 and 1")
        if self.latest_start == 0:
            raise ConfigError(
                "intervention.latest_start = 0 leaves no step to take over at; try probability 0"
            )
        for name in ("decay_steps", "action_noise", "demonstration_noise", "hold_s"):
            if getattr(self, name) < 0:
                raise ConfigError(f"intervention.{name} = {getattr(self, name)} must not be negative")
        for name in ("deviation_steps", "correction_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"intervention.{name} = {getattr(self, name)} must be at least 1")
