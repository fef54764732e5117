"""Settings of the algorithms that CGPO is compared with. Defaults are each paper's; its file says where it departs."""

from dataclasses import dataclass
from typing import Literal

from policy.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SacConfig:
    """SAC, arXiv:1812.05905, by Stable-Baselines3's values; with policy.num_critics 2, num_quantiles 1."""

    actor_learning_rate: float = 3e-4
    """Adam step size of the policy."""
    critic_learning_rate: float = 3e-4
    """Adam step size of the critics."""
    temperature_learning_rate: float = 3e-4
    """Adam step size of log alpha."""
    initial_temperature: float = 1.0
    """alpha at the start, and for good with tune_temperature = false (CGPO's Table 4: 0.2)."""
    tune_temperature: bool = True
    """Move alpha towards the target entropy."""
    target_entropy_per_element: float = -1.0
    """Target entropy over the number of action elements, in nats."""
    discount: float = 0.99
    """gamma."""
    target_update_rate: float = 0.005
    """EMA rate of the target critics."""

    def __post_init__(self) -> None:
        if not 0 < self.discount < 1:
            raise ConfigError(f"sac or tqc: discount = {self.discount} is outside (0, 1)")
        if not self.initial_temperature > 0:
            raise ConfigError(f"sac or tqc: initial_temperature = {self.initial_temperature} must be positive")


@dataclass(frozen=True, kw_only=True)
class TqcConfig(SacConfig):
    """TQC, arXiv:2005.04269: SAC's values; its critics are policy.num_critics, num_quantiles and drop_quantiles."""


@dataclass(frozen=True, kw_only=True)
class Td3Config:
    """TD3, arXiv:1802.09477, by its authors' present code; with policy.num_critics 2, num_quantiles 1. Its exploration
    noise is policy.exploration_noise."""

    actor_learning_rate: float = 3e-4
    """Adam step size of the policy (paper: 1e-3)."""
    critic_learning_rate: float = 3e-4
    """Adam step size of the critics (paper: 1e-3)."""
    policy_delay: int = 2
    """Critic updates for each update of actor and targets."""
    target_noise: float = 0.2
    """Standard deviation of the noise on the target actor's actions."""
    noise_clip: float = 0.5
    """Largest magnitude of that noise."""
    discount: float = 0.99
    """gamma."""
    target_update_rate: float = 0.005
    """EMA rate of the targets, each time they move."""

    def __post_init__(self) -> None:
        if not 0 < self.discount < 1:
            raise ConfigError(f"td3.discount = {self.discount} is outside (0, 1)")
        if self.policy_delay < 1 or self.target_noise < 0 or self.noise_clip < 0:
            raise ConfigError(
                f"td3: policy_delay = {self.policy_delay} must be at least 1, target_noise = {self.target_noise} and "
                f"noise_clip = {self.noise_clip} not negative"
            )


@dataclass(frozen=True, kw_only=True)
class QvpoConfig:
    """QVPO, arXiv:2405.16173; with policy.num_critics 2, num_quantiles 1."""

    actor_learning_rate: float = 3e-4
    """Adam step size of the denoiser (CGPO's Table 4; QVPO's code: 1e-4)."""
    critic_learning_rate: float = 3e-4
    """Adam step size of both critics."""
    adam_eps: float = 1e-5
    """QVPO's code."""
    grad_clip: float = 0.0
    """Largest gradient norm of actor and critic; 0 leaves gradients alone (CGPO's Table 4; QVPO's code: 2)."""
    discount: float = 0.99
    """gamma."""
    target_update_rate: float = 0.005
    """EMA rate of both target networks."""
    candidates: int = 64
    """K: unguided samples per state; the best is the target, their mean value the baseline of its weight."""
    target_candidates: int = 4
    """K_t: target-policy samples among which the target critic chooses the next action."""
    weight: Literal["qadv", "qrelu"] = "qadv"
    """qadv: what the best candidate is worth above the mean of all, if anything. qrelu: its value, if positive."""
    entropy_weight: float = 0.02
    """lambda: weight of a uniform action relative to its state's target."""
    entropy_samples: int = 10
    """N_e: uniform actions per state."""
    entropy_anneal_steps: int = 1_000_000
    """lambda falls linearly to a tenth over this many updates (QVPO's code: over the run's length); 0: constant."""

    def __post_init__(self) -> None:
        if not 0 < self.discount < 1:
            raise ConfigError(f"qvpo.discount = {self.discount} is outside (0, 1)")
        if self.candidates < 2 or self.target_candidates < 1:
            raise ConfigError(
                f"qvpo: candidates = {self.candidates} must be at least 2, or nothing is ever better than the mean; "
                f"target_candidates = {self.target_candidates} at least 1"
            )
        if self.entropy_samples < 1:
            raise ConfigError("qvpo.entropy_samples must be at least 1; set entropy_weight = 0 to switch the term off")


@dataclass(frozen=True, kw_only=True)
class DipoConfig:
    """DIPO, arXiv:2305.13122; with policy.num_critics 2, num_quantiles 1 and behavior_candidates 1."""

    actor_learning_rate: float = 3e-4
    """Adam step size of the denoiser."""
    critic_learning_rate: float = 3e-4
    """Adam step size of both critics."""
    adam_eps: float = 1e-5
    """DIPO's code, of the networks and of the actions."""
    grad_clip: float = 2.0
    """Largest gradient norm of actor and critic; 0 leaves gradients alone."""
    discount: float = 0.99
    """gamma."""
    target_update_rate: float = 0.005
    """EMA rate of both target networks."""
    action_steps: int = 20
    """Adam steps that an action is moved uphill each time it is drawn (README: 40 on HalfCheetah)."""
    action_learning_rate: float = 0.03
    """Adam step size of the actions."""
    action_grad_ratio: float = 0.1
    """Largest gradient norm of a whole batch of actions, per action element; 0 leaves it alone (README: 0.08 on
    HalfCheetah and Walker2d, 0.1 on Ant and Humanoid, 0.3 on Hopper)."""
    write_back: bool = True
    """A moved action is kept, and moved on when its state is drawn again (the paper). false: it starts from the action
    that was executed each time, which is what DIPO's code does."""
    evaluation_noise: bool = False
    """Whether reverse steps are noisy in evaluation too, not only while data are collected. Without it (DIPO's code)
    all samples of a state are nearly the same."""

    def __post_init__(self) -> None:
        if not 0 < self.discount < 1:
            raise ConfigError(f"dipo.discount = {self.discount} is outside (0, 1)")
        if self.action_steps < 0 or self.action_grad_ratio < 0:
            raise ConfigError(
                f"dipo: action_steps = {self.action_steps} and action_grad_ratio = {self.action_grad_ratio} cannot be "
                "negative"
            )
