"""People at the robot: when they act instead of the policy, with which device, and what their keys mean. No torch."""

from dataclasses import asdict, dataclass, replace
from typing import Literal

from policy.errors import ConfigError

Assistance = Literal["none", "random", "on_deviation"]
"""How the scripted operator helps in a training episode; a person is always free to take over."""
Trigger = Literal["deflection", "button", "toggle"]
GripperLatch = Literal["neutral", "latch"]
Style = Literal["hil_serl", "serl", "ours"]


@dataclass(frozen=True, kw_only=True)
class InterventionSettings:
    """How an input device takes over; the same fields of InterventionConfig explain them."""

    trigger: Trigger
    dead_zone: float
    hold_s: float
    gripper_latch: GripperLatch


STYLES: dict[Style, InterventionSettings] = {
    # SpacemouseIntervention of each: any deflection or gripper button; HIL-SERL returns control in the same step, SERL
    # half a second later. RLinf is SERL with gripper_latch = "latch", SiLRI has trigger "toggle" and dead_zone 0.2.
    "hil_serl": InterventionSettings(trigger="deflection", dead_zone=0.0, hold_s=0.0, gripper_latch="neutral"),
    "serl": InterventionSettings(trigger="deflection", dead_zone=0.0, hold_s=0.5, gripper_latch="neutral"),
    # SERL's, and a touch of the table does not take over.
    "ours": InterventionSettings(trigger="deflection", dead_zone=0.1, hold_s=0.5, gripper_latch="neutral"),
}


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
    deviation_progress: float = 0.15
    """It takes over when the arm made less than this share of the way that the operator would have commanded."""
    deviation_latest: float = 0.6
    """It also takes over, to the end, past this part of the step limit; 1 leaves such episodes to the policy."""
    correction_steps: int = 15
    """Steps after which a correction of a deviation ends and the policy tries again."""
    style: Style = "ours"
    """Named set of the four values below; each that is given replaces the style's."""
    trigger: Trigger | None = None
    """What takes over. deflection: moving the device or pressing its gripper buttons; button: holding its intervention
    button; toggle: pressing that once. The operator's key for intervening works in any case."""
    dead_zone: float | None = None
    """An axis deflected less than this part of its way is at rest; motion begins at 0 at the zone's edge."""
    hold_s: float | None = None
    """A human keeps control for this long after letting go of the device."""
    gripper_latch: GripperLatch | None = None
    """neutral: without a pressed button the gripper stays as it is (its action is 0). latch: the last button's action
    is repeated until another one."""

    @property
    def settings(self) -> InterventionSettings:
        """The style's values with those that were given."""
        given = {name: getattr(self, name) for name in asdict(STYLES[self.style])}
        return replace(STYLES[self.style], **{name: value for name, value in given.items() if value is not None})

    def explicit(self) -> "InterventionConfig":
        """Return the same configuration with the style's values written out, for the record of a run."""
        return replace(self, **asdict(self.settings))

    def __post_init__(self) -> None:
        for name in ("probability", "latest_start", "deviation_latest"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"intervention.{name} = {getattr(self, name)} must be between 0 and 1")
        if self.latest_start == 0:
            raise ConfigError("intervention.latest_start = 0 leaves no step to take over at; try probability 0")
        for name in ("decay_steps", "action_noise", "demonstration_noise"):
            if getattr(self, name) < 0:
                raise ConfigError(f"intervention.{name} = {getattr(self, name)} must not be negative")
        settings = self.settings
        if settings.hold_s < 0 or not 0 <= settings.dead_zone < 1:
            raise ConfigError(
                f"intervention.hold_s = {settings.hold_s} must not be negative, and dead_zone = {settings.dead_zone} "
                "must be at least 0 and below 1"
            )
        for name in ("deviation_steps", "correction_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"intervention.{name} = {getattr(self, name)} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class TeleopConfig:
    """The input device of the person who demonstrates and corrects."""

    device: str = "scripted"
    """scripted: the task's own operator, in simulation. Otherwise a name in robot.teleop."""
    path: str = ""
    """Which one: the device file of a gamepad or SpaceMouse, the device log to replay; empty: the only one."""
    layout: Literal["arrows", "wasd"] = "arrows"
    """Keys of the keyboard that move the arm. wasd takes S and D, so the operator's marks need other keys."""
    axis_scale: tuple[float, float, float, float, float, float] = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    """SpaceMouse: factor of each axis (forward, left, up, rotation about them); negative: turned round, 0: left out."""
    yaw_deg: float = 0.0
    """Where the person stands: 0 looks along the robot's x axis, from behind its base; 180 faces the robot."""
    translation_scale: float = 1.0
    """Full deflection moves by this part of the action's largest step."""
    rotation_scale: float = 1.0
    """The same for turning."""
    close_button: int = 0
    """The device's button that closes the gripper, counted from 0."""
    open_button: int = 1
    """The one that opens it."""
    intervene_button: int = 2
    """The one that takes over, for the triggers button and toggle."""
    silent_after_s: float = 0.3
    """A device that is deflected and says nothing for this long has failed: it would report its return to rest."""
    keep_log: bool = True
    """Write what the device said in each step to run_dir/device_log.jsonl, which the device "replay" plays back."""

    def __post_init__(self) -> None:
        if not (0 < self.translation_scale <= 1 and 0 < self.rotation_scale <= 1 and self.silent_after_s > 0):
            raise ConfigError(
                f"teleop.translation_scale = {self.translation_scale} and rotation_scale = {self.rotation_scale} must "
                f"be above 0 and at most 1, silent_after_s = {self.silent_after_s} above 0"
            )
        if min(self.close_button, self.open_button, self.intervene_button) < 0:
            raise ConfigError("teleop: buttons are counted from 0")
        if self.device != "spacemouse" and any(factor != 1.0 for factor in self.axis_scale):
            raise ConfigError(f"teleop.axis_scale = {list(self.axis_scale)} is for the device spacemouse alone")


@dataclass(frozen=True, kw_only=True)
class KeysConfig:
    """The operator's keys in the terminal: a character, or a name such as space, enter, escape, up, page_down."""

    success: str = "s"
    """The episode solved the task."""
    failure: str = "f"
    """It did not, whatever else says so."""
    discard: str = "d"
    """Learn nothing from this episode."""
    pause: str = "space"
    """Hold the arm; again: go on."""
    reset: str = "r"
    """End the episode and go back to the start."""
    bookmark: str = "m"
    """Remember this step."""
    intervene: str = "i"
    """Drive from now on; again: let the policy drive."""
    acknowledge: str = "x"
    """First step out of a fault: it has been seen, and the arm is clear."""
    confirm: str = "y"
    """Second step, within 10 s: the arm may move again."""

    def __post_init__(self) -> None:
        keys = list(asdict(self).values())
        if len(set(keys)) < len(keys) or not all(keys):
            raise ConfigError(f"keys: each needs a key of its own, got {', '.join(map(repr, keys))}")
