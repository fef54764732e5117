"""Everything that can be set on the actor."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from actor.address import parse_address
from actor.intervention_config import InterventionConfig, KeysConfig, TeleopConfig
from actor.protocol_stages import StagesConfig
from policy.config import PolicyConfig
from policy.errors import ConfigError
from policy.image_codec import ImageCodec
from robot.backends.deoxys.options import DeoxysOptions
from robot.errors import RobotConfigError
from robot.grippers.options import GripperOptions
from robot.safety import SafetyConfig


@dataclass(frozen=True, kw_only=True)
class CameraConfig:
    """One camera of an observation with images."""

    driver: str = ""
    """Name in robot.cameras; empty: the camera that belongs to the simulated backend."""
    device: str = ""
    """Which one, as its driver names it (serial number, path); empty: the driver's only one."""
    width: int = 0
    """Pixels of its image, before the crop; 0: the driver's own choice, the size that the twin draws too."""
    height: int = 0
    """The same for its height."""
    fps: int = 0
    """Images a second; 0: the driver's own choice, 30."""
    exposure_us: int = 0
    """Exposure of every image; 0: automatic, which changes with what it sees."""
    white_balance_k: int = 0
    """Colour temperature, K; 0: automatic."""
    crop: tuple[int, ...] = ()
    """Region of its image that the policy sees, as x, y, width, height in pixels; empty: the largest central square."""

    def __post_init__(self) -> None:
        for name, value in self.options().items():
            if value < 0:
                raise ConfigError(f"a camera's {name} = {value} must not be negative")
        if self.crop and (len(self.crop) != 4 or min(self.crop) < 0 or min(self.crop[2:]) < 1):
            raise ConfigError(
                f"a camera's crop = {list(self.crop)} must be x, y, width, height in pixels, or [] for the largest "
                "central square"
            )

    def options(self) -> dict[str, int]:
        """Return what is set for the driver's constructor."""
        names = ("width", "height", "fps", "exposure_us", "white_balance_k")
        return {name: value for name in names if (value := getattr(self, name))}


@dataclass(frozen=True, kw_only=True)
class CamerasConfig:
    """The cameras of a task with image observations, and when an image is too old."""

    wrist: CameraConfig = field(default_factory=CameraConfig)
    """On the hand (ZED Mini, left lens, 672 x 376)."""
    third_person: CameraConfig = field(default_factory=CameraConfig)
    """Beside the table (RealSense D435i, 640 x 480)."""
    image_size_px: int = 128
    """Images are cropped and resized to this many pixels a side."""
    codec: ImageCodec = "jpeg"
    """How images are sent and stored; the policy acts on what is left of them. jpeg: quality 95, 4:4:4."""
    stale_after_s: float = 0.15
    """A step that acts on an older image is counted and logged."""
    fail_after_s: float = 0.5
    """With an older image the arm holds; after 5 s of that the episode ends."""
    return_within_s: float = 60.0
    """A camera that failed has this long to come back before the actor ends."""

    def __post_init__(self) -> None:
        if not 8 <= self.image_size_px <= 1024:
            raise ConfigError(f"cameras.image_size_px = {self.image_size_px} must be from 8 to 1024")
        if self.return_within_s < 0:
            raise ConfigError(f"cameras.return_within_s = {self.return_within_s} must not be negative")
        if not 0 < self.stale_after_s <= self.fail_after_s:
            raise ConfigError(
                f"cameras.stale_after_s = {self.stale_after_s} must be above 0 and at most fail_after_s = "
                f"{self.fail_after_s}"
            )


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """Where rewards come from, and when a classifier's word is taken."""

    source: Literal["task", "classifier", "human"] = "task"
    """task: the simulator's ground truth. classifier: the success classifier ends episodes. human: only keys do. In all
    three the operator's keys go first."""
    classifier: str = "learner"
    """Folder that `python -m learner.reward_classifier train` wrote, or "learner": what arrives with the policy."""
    threshold: float = 0.0
    """Least probability of a frame that counts as success; 0 takes the one the classifier was measured with."""
    consecutive_frames: int = 2
    """Frames in a row that must count."""
    minimum_steps: int = 10
    """No success by the classifier in the first so many steps (SiLRI)."""
    hold_steps: int = 0
    """Source task: steps that success must last before it is paid. They record what held success looks like."""
    reviewer: Literal["none", "task"] = "none"
    """Simulation only. task: the ground truth plays an operator who vetoes false successes and declares missed ones."""

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 1:
            raise ConfigError(f"reward.threshold = {self.threshold} is outside [0, 1)")
        if self.consecutive_frames < 1 or min(self.minimum_steps, self.hold_steps) < 0:
            raise ConfigError(
                f"reward.consecutive_frames = {self.consecutive_frames} must be at least 1, minimum_steps = "
                f"{self.minimum_steps} and hold_steps = {self.hold_steps} must not be negative"
            )
        if (self.source == "task" and self.reviewer != "none") or (self.source != "task" and self.hold_steps):
            raise ConfigError(
                f"reward.source = {self.source!r}: reviewer goes with classifier and human (the task needs no review), "
                "hold_steps with task"
            )


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """Limits of the safety gate (robot/safety.py, docs/safety.md) that replace the task's; none: the task's stays."""

    workspace_min_m: tuple[float, float, float] | None = None
    """Lower corner of the box, in O, that the gripper's tip is kept in."""
    workspace_max_m: tuple[float, float, float] | None = None
    soft_force_n: float | None = None
    """External force at which a step may no longer push against it, and backs off."""
    max_force_n: float | None = None
    """External force at which the arm is stopped."""
    soft_torque_nm: float | None = None
    max_torque_nm: float | None = None
    joint_margin_rad: float | None = None
    """No step drives a joint nearer to its limit than this."""
    max_gripper_force_n: float | None = None
    """The largest grip force that hand.force_n may be."""

    def applied_to(self, safety: SafetyConfig) -> SafetyConfig:
        """Return the task's limits with those that are given here. Raises ConfigError when they contradict."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        try:
            return replace(safety, **given)
        except RobotConfigError as error:
            raise ConfigError(f"actor.limits: {error}") from error


@dataclass(frozen=True, kw_only=True)
class ActorConfig:
    """One actor: a robot, a task and a learner to send every step to."""

    policy: PolicyConfig = field(default_factory=PolicyConfig)
    intervention: InterventionConfig = field(default_factory=InterventionConfig)
    teleop: TeleopConfig = field(default_factory=TeleopConfig)
    keys: KeysConfig = field(default_factory=KeysConfig)
    task: str = "peg_in_hole"
    """Name in actor.tasks."""
    pixels: bool = False
    """Observe the two cameras and the arm instead of the objects' poses."""
    gripper: Literal["task", "fixed", "continuous", "discrete"] = "task"
    """fixed: no action for it. continuous: one more element of the policy's action. discrete: close, stay or open,
    chosen by a critic of its own (HIL-SERL's hybrid). task: what the task recommends."""
    frame: Literal["base", "reset"] = "base"
    """Frame of poses, velocities and actions: the robot's base O, or relative to where the episode began (HIL-SERL's
    relative frame)."""
    cameras: CamerasConfig = field(default_factory=CamerasConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    stages: StagesConfig = field(default_factory=StagesConfig)
    verdict_window_s: float = 0.0
    """After an episode the arm holds for this long, while the operator may declare or veto success, or discard it."""
    realtime_priority: int = 0
    """Priority, 1 to 99, at which the kernel runs the actor before everything ordinary (SCHED_FIFO); 0: like everything
    else. For a computer that has other work to do; needs the right to (docs/robot_setup.md)."""
    offset_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Where the task's place is, in the robot's base frame O, relative to where its file puts it: start poses, objects
    and the workspace of the safety gate move with it. For a peg in a hole, the middle of the rim is nominally at
    (0.5, 0.0, 0.06)."""
    control_rate_hz: float = 10.0
    """Steps a second. An episode's time limit stays the same, and so does the longest step."""
    backend: str = "twin"
    """Name in robot.backends: twin (MuJoCo), fake (kinematic) or deoxys (a Franka arm)."""
    deoxys: DeoxysOptions = field(default_factory=DeoxysOptions)
    hand: GripperOptions = field(default_factory=GripperOptions)
    """The gripper on an arm behind Deoxys."""
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    room: str = ""
    """Simulation only: address HOST:PORT of the room around a twin NUC (python -m robot.backends.twin.nuc), where
    objects are, who puts them back and whether a task is solved."""
    looks_variation: float = 0.0
    """The twin only: how much light, colours and camera mounts differ from episode to episode; 1 is moderate."""
    learner: str = "127.0.0.1:50051"
    """Address HOST:PORT of the learner. It need not be up: steps are spooled and sent when it is."""
    credentials: Path | None = None
    """Folder of this actor's credentials, which `python -m learner.certs` made on the learner's machine; none: the link
    is neither encrypted nor authenticated."""
    actor_id: str = "actor-0"
    """Name of this robot in the learner's log; each actor of one learner needs its own."""
    take_over: bool = False
    """Take the actor id over from another process that holds it: for one that hangs. One that does not goes on moving
    its arm for 15 s while it tries to come back, then ends; if this one ends before, it has the id again."""
    run_dir: Path = Path("runs/actor")
    """Spool, cached weights, episode lines, evaluations, videos and summary. Started again here, the actor resumes."""
    seed: int = 0
    """Seed of placements, scripted operator and policy noise. Evaluation placements are the same for every seed."""
    demonstrations: int = 20
    """Demonstration episodes before training, those recorded earlier in run_dir included."""
    pace: float = 1.0
    """Multiple of real time: 1 on a robot; a simulation may run at 0, as fast as it can."""
    eval_pace: float = 1.0
    """The same for evaluations."""
    max_env_steps: int = 0
    """Training ends after this many training steps of this run_dir; 0 has no limit."""
    max_minutes: float = 0.0
    """Wall time of the whole process, the final evaluation included; 0 has no limit."""
    max_steps_per_version: int = 0
    """Simulation only: on average no more training steps than this per published version of the weights; 0 never
    waits. Keeps a fast simulation from outrunning its learner."""
    max_version_wait_s: float = 30.0
    """Longest such wait before the next episode starts all the same."""
    max_weights_age_s: float = 0.0
    """With older weights no episode of the policy begins: the arm holds until newer ones come, or the learner waits for
    data; 0 never holds for this. Demonstrations need no weights."""
    min_free_gb: float = 1.0
    """With less room on the disk of run_dir no episode begins: the arm holds until there is; 0 does not look."""
    eval_episodes: int = 50
    """Unassisted episodes at the end; 0 skips them."""
    eval_every_steps: int = 0
    """Training steps between interim evaluations; 0 has none."""
    interim_eval_episodes: int = 10
    """Episodes of each interim evaluation."""
    eval_candidates: int = 0
    """Samples among which the critic chooses in evaluations; 0 takes policy.behavior_candidates. A policy without
    critic acts as it explores with 0, and by its mean, without noise, with 1."""
    videos: int = 2
    """Episodes of the final evaluation that are filmed."""
    drain_timeout_s: float = 10.0
    """At the end, time for the learner to acknowledge what is still in the spool; the rest stays there."""

    def __post_init__(self) -> None:
        for name in (
            "verdict_window_s",
            "looks_variation",
            "demonstrations",
            "pace",
            "eval_pace",
            "max_env_steps",
            "max_minutes",
            "max_steps_per_version",
            "max_version_wait_s",
            "max_weights_age_s",
            "min_free_gb",
            "eval_episodes",
            "eval_every_steps",
            "interim_eval_episodes",
            "eval_candidates",
            "videos",
            "drain_timeout_s",
        ):
            if getattr(self, name) < 0:
                raise ConfigError(f"actor.{name} = {getattr(self, name)} must not be negative")
        parse_address(self.learner)
        if not 0 <= self.realtime_priority <= 99:
            raise ConfigError(f"actor.realtime_priority = {self.realtime_priority} must be from 0 to 99")
        if not 1.0 <= self.control_rate_hz <= 100.0:
            raise ConfigError(f"actor.control_rate_hz = {self.control_rate_hz} must be from 1 to 100")
        if self.eval_candidates > 1 and self.policy.behavior_candidates == 1:
            raise ConfigError(
                f"actor.eval_candidates = {self.eval_candidates} needs a published critic to choose with: set "
                "policy.behavior_candidates above 1, or eval_candidates to 0"
            )


@dataclass(frozen=True, kw_only=True)
class RecorderConfig(ActorConfig):
    """The recorder of demonstrations: an actor that only demonstrates."""

    episodes: int = 0
    """Demonstrations to be kept in run_dir, those recorded earlier included; 0 takes `demonstrations`."""
    auto: bool = False
    """Ask nobody: keep successes, discard everything else, and go on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.episodes < 0:
            raise ConfigError(f"actor.episodes = {self.episodes} must not be negative")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ActorConfig):
    """Trials of one published policy, or of two against each other."""

    policy: tyro.conf.Suppress[tyro.conf.Fixed[PolicyConfig]] = field(default_factory=PolicyConfig)
    """Each policy brings its own."""
    run_dir: Annotated[Path, tyro.conf.arg(name="out")] = Path("runs/evaluation")
    """Trials, videos and report. Started again here, the evaluation goes on where it was."""
    seed: int = 0
    """Seed of the start states and of the policies' noise: equal seeds, equal starts."""
    checkpoint: Path | None = None
    """The policy: a run folder of the learner or of launch/sim.sh, or a weights file in one."""
    against: Path | None = None
    """Another policy, which has each start state too, in an order that nobody knows before the end."""
    episodes: int = 20
    """Start states; each policy has one trial of each."""
    starts: Path | None = None
    """trials.jsonl of an earlier evaluation, to begin from its start states. Empty: drawn with `seed`."""
    film: bool = True
    """A video of each trial, where the backend can draw."""
    auto: bool = False
    """On a robot: begin each trial without waiting for enter."""
    export: Path | None = None
    """Zip file of everything but the policies, written at the end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.episodes < 1:
            raise ConfigError(f"actor.episodes = {self.episodes}: at least one start state is needed")
        if self.export is not None and self.export.suffix != ".zip":
            raise ConfigError(f"--export {self.export} must be the name of a .zip file")
        if self.reward.source == "classifier" and self.reward.classifier == "learner":
            raise ConfigError(
                "an evaluation needs a judge of its own: the classifier that comes with a policy is not the same for "
                "two of them. Name the folder of one with --reward.classifier."
            )
