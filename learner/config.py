"""Everything that can be set on the learner. Defaults are the paper's; presets depart from them with a reason."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from learner.algorithm_config import (
    BcConfig,
    CgpoConfig,
    DipoConfig,
    HilSerlSacConfig,
    QvpoConfig,
    SacConfig,
    Td3Config,
    TqcConfig,
)
from policy.config import PolicyConfig
from policy.errors import ConfigError

# What acts under each algorithm; a diffusion policy under all others.
_DISTRIBUTIONS = {"hil_serl_sac": "gaussian", "sac": "gaussian", "tqc": "gaussian", "td3": "deterministic"}
_SCALAR_CRITICS = ("hil_serl_sac", "sac", "td3", "qvpo", "dipo")


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """What is kept and how batches are drawn."""

    capacity: int = 1_000_000
    """Rows of the online buffer, and of the demonstration buffer."""
    batch_size: int = 256
    """Transitions per update."""
    demonstration_fraction: float = 0.0
    """Share of each batch drawn from human transitions (RLPD: 0.5); an empty buffer leaves its share to the other."""
    training_starts: int = 10_000
    """Transitions before the first update."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this. Sparse 0/1 rewards need about 10: returns must be large against huber_kappa."""
    timeout_bootstrap: bool = True
    """A time limit bootstraps from the next observation. false: it counts as the task's end, as in the code that the
    paper builds on (QVPO, HIL-SERL)."""
    image_storage: Literal["pixels", "maps"] = "pixels"
    """pixels: shift and encode a frame whenever it is drawn, which needs a GPU. maps: encode it once, in map_variants
    random shifts, and draw one of them; for learners on a CPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Memory that holds rows and images, where batches are drawn; auto is the trainer's device. A batch from elsewhere
    is copied to it, and keeps a GPU's update from being captured as a graph."""
    random_shift_px: int = 4
    """DrQ: every image that is drawn is shifted by up to this many pixels; 0 leaves images as they are."""
    map_variants: int = 2
    """Shifted variants of each frame with image_storage = maps."""

    def __post_init__(self) -> None:
        if self.random_shift_px < 0 or self.map_variants < 1:
            raise ConfigError(
                f"replay: random_shift_px = {self.random_shift_px} must not be negative, map_variants = "
                f"{self.map_variants} at least 1"
            )
        if not 0 <= self.demonstration_fraction <= 1:
            raise ConfigError(f"replay.demonstration_fraction = {self.demonstration_fraction} is outside [0, 1]")
        if self.batch_size < 1 or self.capacity < 2:
            raise ConfigError(f"replay: batch_size = {self.batch_size}, capacity = {self.capacity} are too small")


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """The success classifier: examples, training, and retraining beside the trainer."""

    retrain: bool = False
    """Keep training it from the log in a third process, and publish it with the policy
    (needs policy.success_classifier)."""
    initial: Path | None = None
    """Folder of a trained classifier to begin with; without one the first is trained once there are enough examples."""
    threshold: float = 0.85
    """Least probability of a frame that counts as success (HIL-SERL: 0.7 to 0.85)."""
    held_frames: int = 1
    """Frames that show success when a person declares it: as many as they wait in success before pressing the key."""
    reaction_steps: int = 3
    """Frames left out before a success that a person declared: the key comes later than the eye."""
    negatives_per_positive: int = 3
    """Frames without success that are kept for each one with it (HIL-SERL: 2 to 3)."""
    held_out_fraction: float = 0.2
    """Share of the episodes that is only tested on."""
    min_positives: int = 20
    """Refuse to train on fewer frames of success."""
    shifted_copies: int = 3
    """Randomly shifted copies of each training frame, beside the frame itself."""
    shift_px: int = 4
    """Largest shift of a copy, as in DrQ."""
    batches: int = 150
    """Batches of a first training (HIL-SERL)."""
    retrain_batches: int = 30
    """Batches of a retraining, which goes on from the last weights."""
    frames_per_batch: int = 256
    """Half of them with success."""
    learning_rate: float = 1e-4
    """Adam step size."""
    corrections_per_version: int = 1
    """Retrain after an operator has marked or overruled this many episodes that the classifier judged."""
    episodes_per_version: int = 20
    """Retrain after this many episodes more that task or operator judged."""
    drift_episodes: int = 20
    """Latest episodes over which the classifier is compared with marks."""
    min_agreement: float = 0.9
    """Warn when it agrees with fewer of them, or is right on fewer held-out frames."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1 or not 0 < self.held_out_fraction < 1:
            raise ConfigError(
                f"classifier.threshold = {self.threshold} and held_out_fraction = {self.held_out_fraction} must be "
                "between 0 and 1"
            )
        for name in (
            "held_frames",
            "min_positives",
            "negatives_per_positive",
            "batches",
            "retrain_batches",
            "corrections_per_version",
            "episodes_per_version",
            "drift_episodes",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"classifier.{name} = {getattr(self, name)} must be at least 1")
        if self.frames_per_batch < 4 or min(self.reaction_steps, self.shifted_copies, self.shift_px) < 0:
            raise ConfigError(
                f"classifier: frames_per_batch = {self.frames_per_batch} must be at least 4; reaction_steps, "
                "shifted_copies and shift_px cannot be negative"
            )


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """One learner: ingest process and trainer process under one command."""

    policy: PolicyConfig = field(default_factory=PolicyConfig)
    cgpo: CgpoConfig = field(default_factory=CgpoConfig)
    hil_serl_sac: HilSerlSacConfig = field(default_factory=HilSerlSacConfig)
    bc: BcConfig = field(default_factory=BcConfig)
    sac: SacConfig = field(default_factory=SacConfig)
    td3: Td3Config = field(default_factory=Td3Config)
    tqc: TqcConfig = field(default_factory=TqcConfig)
    qvpo: QvpoConfig = field(default_factory=QvpoConfig)
    dipo: DipoConfig = field(default_factory=DipoConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    algorithm: str = "cgpo"
    """Name in learner.algorithms."""
    gripper_penalty: float = 0.02
    """Taken off the reward that a discrete gripper learns from, for each step on which it opened or closed
    (HIL-SERL)."""
    run_dir: Path = Path("runs/learner")
    """Episode log, weights, checkpoints and metrics. Started again on the same folder, the learner resumes."""
    from_log: tuple[Path, ...] = ()
    """Earlier runs to reuse: their folders or log.sqlite files. Before training, their records are copied into this
    run's log, each once; they must have this run's observations and actions."""
    from_log_take: Literal["demonstrations", "all"] = "demonstrations"
    """What to take from them: whole demonstration episodes, or every episode. Marks come along."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 50051
    """Port to listen on; 0 lets the system choose (see RUN_DIR/ingest.json)."""
    credentials: Path | None = None
    """Folder of the learner's credentials (`python -m learner.certs init`): only actors of the same set are let in, and
    the link is encrypted. Without it the learner listens on this machine only."""
    max_actors: int = 16
    """Actors that may be connected at a time."""
    insecure_lab_network: bool = False
    """Listen beyond this machine without credentials: whoever reaches the port is let in. Warns every minute."""
    seed: int = 0
    """Seed of networks, noise and sampling."""
    device: str = "auto"
    """torch device of the trainer; auto is cuda where there is one."""
    kernels: Literal["auto", "plain", "fast"] = "auto"
    """Inner loops of the update: plain is the readable reference, fast computes the same sooner; auto is the fast ones
    wherever they exist."""
    cuda_graph: Literal["auto", "off"] = "auto"
    """auto: on a GPU the whole learner step is captured as one CUDA graph, where the algorithm allows it."""
    matmul_precision: Literal["fp32", "tf32"] = "fp32"
    """Matrix products and convolutions on a GPU. tf32 rounds their operands to 10 bits, sums in fp32, and leaves all
    else (the chain's state, losses, optimisers) as it is; fp32 is for comparisons to 1e-5."""
    torch_threads: int = 1
    """CPU threads of a trainer."""
    num_trainers: int = 1
    """Trainers of `python -m learner` that share each batch and average their gradients; on CUDA each has a GPU of its
    own. Started again with another number of them, a run goes on, but not bit for bit."""
    trainer_timeout_s: float = 120.0
    """One that does not answer the others for so long has failed, and all start again from the newest checkpoint. Must
    be longer than a learner step, publishing and reading 512 entries of the log take."""
    steps_per_update: int = 50
    """Learner steps between two published weights."""
    learner_steps_per_transition: float = 0.0
    """The trainer waits rather than exceed this ratio of learner steps to transitions; 0 lets it run freely."""
    max_learner_steps: int = 0
    """Stop training (and keep serving) after this many learner steps; 0 has no limit."""
    checkpoint_period_s: float = 60.0
    """Time between checkpoints; one more is written at the end."""
    min_free_gb: float = 2.0
    """A checkpoint is not written while less is free on its disk: recorded steps come first. 0 writes until it is full.
    """
    metrics_every: int = 50
    """Learner steps averaged into one line of metrics.jsonl."""

    def __post_init__(self) -> None:
        policy, cgpo = self.policy, self.cgpo
        self._check_policy()
        if self.max_actors < 1:
            raise ConfigError(f"learner.max_actors = {self.max_actors} must be at least 1")
        self._check_trainers()
        if self.min_free_gb < 0:
            raise ConfigError(f"learner.min_free_gb = {self.min_free_gb} is negative; 0 switches the limit off")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"learner.port = {self.port} is outside 0 to 65535; 0 lets the system choose")
        if self.algorithm == "cgpo":
            is_mixed, remedy = cgpo.entropy_reduction == "concat", "cgpo.entropy_reduction = 'mean'"
        else:
            is_mixed, remedy = self.algorithm == "qvpo" and self.qvpo.entropy_weight > 0, "qvpo.entropy_weight = 0"
        if policy.behavior_candidates == 1 and is_mixed:
            raise ConfigError(
                "policy.behavior_candidates = 1 publishes no critic, and about one raw sample in eight is a uniform "
                f"random action, by which the policy keeps its entropy. Set {remedy}, or behavior_candidates = 4."
            )
        is_scalar = policy.num_quantiles == 1
        is_twin = is_scalar and policy.num_critics == 2
        fits = is_twin if cgpo.critic.type == "twin_scalar" else not is_scalar
        if self.algorithm == "cgpo" and not fits:
            raise ConfigError(
                f"cgpo.critic.type = {cgpo.critic.type!r} with policy.num_critics = {policy.num_critics} and "
                f"num_quantiles = {policy.num_quantiles}: twin_scalar goes with 2 critics of 1 quantile (and "
                "drop_quantiles 0), nothing else does."
            )
        if self.classifier.retrain and not policy.success_classifier:
            raise ConfigError(
                "classifier.retrain = true publishes a success classifier with the policy: set "
                "policy.success_classifier = true on both sides, or retrain to false"
            )

    def _check_trainers(self) -> None:
        count, size = self.num_trainers, self.replay.batch_size
        if count < 1 or self.trainer_timeout_s <= 0:
            raise ConfigError(
                f"learner.num_trainers = {count} must be at least 1 and trainer_timeout_s = {self.trainer_timeout_s} "
                "positive"
            )
        if size % count:
            raise ConfigError(
                f"replay.batch_size = {size} cannot be shared equally by learner.num_trainers = {count}; take a "
                "multiple of that"
            )
        if count > 1 and self.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(
                f"device = {self.device!r} is one device, and learner.num_trainers = {count} of them: choose cuda (the "
                "first GPUs that CUDA_VISIBLE_DEVICES lists), cpu or auto."
            )

    def _check_policy(self) -> None:
        """Raise ConfigError for a policy or critics of another kind than the algorithm trains."""
        policy, name = self.policy, self.algorithm
        distribution = _DISTRIBUTIONS.get(name, "diffusion")
        presets = "presets hil_serl_sac and sim_quick_sac fit" if "hil" in name else f"preset paper_mujoco_{name} fits"
        hint = f" The {presets}." if name in _DISTRIBUTIONS or name in _SCALAR_CRITICS else ""
        if policy.distribution != distribution:
            raise ConfigError(
                f"algorithm = {name!r} with policy.distribution = {policy.distribution!r}: it goes with "
                f"{distribution!r}.{hint}"
            )
        if distribution != "diffusion" and policy.behavior_candidates != 1:
            raise ConfigError(
                f"{name} acts without a critic: set policy.behavior_candidates = 1 (not {policy.behavior_candidates})."
                f"{hint}"
            )
        if name in _SCALAR_CRITICS and policy.num_quantiles != 1:
            raise ConfigError(
                f"{name} has scalar critics: set policy.num_quantiles = 1 (not {policy.num_quantiles}) and "
                f"drop_quantiles = 0.{hint}"
            )
        if name == "tqc" and policy.num_quantiles == 1:
            raise ConfigError(f"tqc has critics of several quantiles: set policy.num_quantiles = 25 (not 1).{hint}")
        if name == "hil_serl_sac" and self.hil_serl_sac.critic_subset > policy.num_critics:
            raise ConfigError(
                f"hil_serl_sac.critic_subset = {self.hil_serl_sac.critic_subset} of policy.num_critics = "
                f"{policy.num_critics} critics"
            )
