"""The settings of each algorithm. Defaults are its paper's, or its authors' code's; presets depart from them."""

from dataclasses import dataclass, field
from typing import Literal

from policy.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class GuidanceConfig:
    """How the training target of a state is synthesised (CGPO section 4.2, ablations of Figs 5a, 7, 8a)."""

    type: Literal["dsg", "naive", "none"] = "dsg"
    """dsg: spherical guidance. naive: add the scaled critic gradient. none: the target is an unguided sample."""
    rate: float = 0.95
    """rho of Eq 12: 0 keeps the sampled direction, 1 follows the critic alone."""
    steps: int = 10
    """G: the last G steps of the chain are guided."""
    clip_grad: Literal["projected", "hard", "ste", "none"] = "projected"
    """Gradient where the predicted clean action is outside [-1, 1]: projected drops it where it points outward, hard
    always, ste never; none also evaluates the critic at the unclipped action (the paper's letter)."""
    through_denoiser: bool = True
    """Differentiate the critic with respect to the noisy action through the denoiser (Eq 10), or only at x0_hat."""
    naive_scale: float = 1.0
    """eta of naive guidance; a step adds eta sigma^2 times the gradient."""
    naive_normalised: bool = False
    """Naive guidance with a gradient of unit length times the shell radius, free of the reward's scale."""
    best_of: int = 1
    """With type none: the target is the best of this many unguided samples (64 is QVPO's choice)."""

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ConfigError(f"guidance.rate = {self.rate} is outside [0, 1]")
        if self.steps < 0 or self.best_of < 1:
            raise ConfigError(
                f"guidance.steps = {self.steps} must not be negative, best_of = {self.best_of} at least 1"
            )


@dataclass(frozen=True, kw_only=True)
class CriticConfig:
    """Critic targets and loss (CGPO section 4.3, ablations of Figs 5b, 5c, 8b, 8c)."""

    learning_rate: float = 3e-4
    """Adam step size."""
    ddqn: bool = True
    """The online critic chooses the next action and the target critic rates it; false: the target critic does both."""
    target_candidates: int = 4
    """K_t: target-policy samples among which the next action is chosen."""
    target_truncation: Literal["pooled", "per_net", "none"] = "pooled"
    """Which target quantiles are dropped: the highest N k of all (TQC), the highest k of each critic, or none."""
    target_type: Literal["quantile", "scalar"] = "quantile"
    """scalar: the literal reading in which a target is one conservative value; quantiles then collapse."""
    type: Literal["quantile", "twin_scalar"] = "quantile"
    """twin_scalar: two scalar critics, mean squared error, minimum as value (needs num_critics 2, num_quantiles 1)."""
    huber_kappa: float = 1.0
    """Threshold of the quantile Huber loss, in units of scaled reward."""

    def __post_init__(self) -> None:
        if self.target_candidates < 1:
            raise ConfigError(f"critic.target_candidates = {self.target_candidates}: at least one sample is needed")
        if not self.huber_kappa > 0:
            raise ConfigError(f"critic.huber_kappa = {self.huber_kappa} must be positive")


@dataclass(frozen=True, kw_only=True)
class CgpoConfig:
    """Critic-guided diffusion policy optimisation, arXiv:2605.30056."""

    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    shared_prefix: bool = True
    """The guided and the unguided sample of a state share the noise of the steps before guidance begins, so that the
    fast path computes these once. Each sample is distributed as without it; the two of one state are correlated."""
    actor_learning_rate: float = 3e-4
    """Adam step size of the denoiser."""
    value_learning_rate: float = 3e-4
    """Adam step size of the base value network."""
    value_hidden: tuple[int, ...] = (256, 256)
    """Hidden layers of the base value network."""
    adam_eps: float = 1e-5
    """QVPO's code."""
    grad_clip: float = 0.0
    """Largest gradient norm of actor and critic; 0 leaves gradients alone, as the paper does."""
    discount: float = 0.99
    """gamma."""
    target_update_rate: float = 0.005
    """EMA rate of both target networks."""
    cta_ratio: int = 1
    """Critic updates per learner step; the last of them is followed by an actor update (HIL-SERL: 2)."""
    vbase: Literal["learned", "zero", "sampled"] = "learned"
    """Baseline of the target's weight: a value network, 0, or the mean over vbase_samples unguided samples."""
    vbase_samples: int = 16
    """Unguided samples of vbase = sampled."""
    vbase_critic: Literal["online", "target"] = "online"
    """Which critic the value network regresses on; online keeps the advantage a difference inside one function."""
    weight_norm: Literal["none", "mean"] = "none"
    """mean: divide weights by their batch mean, which removes drift of the value scale from Adam's memory."""
    entropy_weight: float = 0.02
    """lambda_ent of Eq 19."""
    entropy_samples: int = 10
    """N_e: uniform actions per state."""
    entropy_reduction: Literal["concat", "mean"] = "concat"
    """concat: mean over target and uniform rows together (QVPO's code: uniform mass N_e lambda relative to the target);
    mean: the literal Eq 19 (uniform mass lambda), required for acting without a published critic, and what the MuJoCo
    presets have (benchmarks/results/mujoco.md shows both)."""
    entropy_anneal_steps: int = 1_000_000
    """lambda falls linearly to a tenth over this many actor updates; 0 keeps it constant."""
    bc_warmup_steps: int = 0
    """Ours: actor updates that only imitate human rows before the first guided update."""
    human_targets: bool = False
    """Ours: on human rows the human's action is the target when the critic values it above the guided one."""

    def __post_init__(self) -> None:
        if self.cta_ratio < 1:
            raise ConfigError(f"cgpo.cta_ratio = {self.cta_ratio}: at least one critic update per learner step")
        if not 0 < self.discount < 1:
            raise ConfigError(f"cgpo.discount = {self.discount} is outside (0, 1)")
        if self.vbase_samples < 1:
            raise ConfigError(f"cgpo.vbase_samples = {self.vbase_samples}: at least one sample is needed")
        if self.entropy_samples < 1:
            raise ConfigError("cgpo.entropy_samples must be at least 1; set entropy_weight = 0 to switch the term off")


@dataclass(frozen=True, kw_only=True)
class HilSerlSacConfig:
    """HIL-SERL's SAC, its code's values (`examples/experiments/config.py`); the Gaussian needs its own [policy]."""

    actor_learning_rate: float = 3e-4
    """Adam step size of the policy."""
    critic_learning_rate: float = 3e-4
    """Adam step size of critics and encoder heads."""
    temperature_learning_rate: float = 3e-4
    """Adam step size of alpha."""
    initial_temperature: float = 1e-2
    """alpha at the start, and for good with tune_temperature = false."""
    tune_temperature: bool = True
    """Move alpha towards an entropy of minus half the number of action elements."""
    backup_entropy: bool = False
    """Count entropy as reward in the critics' targets, as plain SAC does."""
    critic_subset: int = 0
    """Critics drawn at random for each target's minimum; 0 takes all (HIL-SERL, of 2). RLPD: 2 of 10."""
    discount: float = 0.97
    """gamma."""
    target_update_rate: float = 0.005
    """EMA rate of the target critics."""
    cta_ratio: int = 2
    """Critic updates per learner step; the last of them is followed by an actor update."""

    def __post_init__(self) -> None:
        if not self.initial_temperature > 0:
            raise ConfigError(f"hil_serl_sac.initial_temperature = {self.initial_temperature} must be positive")
        if not 0 < self.discount < 1 or self.cta_ratio < 1 or self.critic_subset < 0:
            raise ConfigError(
                f"hil_serl_sac: discount = {self.discount} must be between 0 and 1, cta_ratio = {self.cta_ratio} at "
                f"least 1, critic_subset = {self.critic_subset} not negative"
            )


@dataclass(frozen=True, kw_only=True)
class BcConfig:
    """Behaviour cloning of the human rows with the same diffusion policy."""

    learning_rate: float = 3e-4
    """Adam step size of the denoiser."""
    target_update_rate: float = 0.005
    """EMA rate of the published denoiser."""


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
