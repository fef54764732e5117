"""What the tasks share: a Cartesian action, and an observation of the arm with the objects' places or two images."""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from actor.reference_frame import ReferenceFrame
from actor.tasks.base import ObjectPoses, Operator, Outcome, TaskOptions
from actor.tasks.cartesian import CartesianDelta
from policy.errors import ConfigError
from policy.spec import Field, GripperMode, ImageField, Observation, ObservationSpec
from robot.geometry import GRIPPER_OPEN_M
from robot.interface import Array, RobotCommand, RobotState, ScenePlacement
from robot.pose import translation
from robot.scenes import SCENES

IMAGE_NAMES = ("wrist", "third_person")
MAX_SPEED_M_S = 0.2  # of EE; bounds of the observation, not limits
MAX_SPEED_RAD_S = 0.6
MAX_TILT_RAD = 0.3


class CartesianTask(ABC):
    """Satisfies Task. A subclass says where episodes start, which differences are observed, and what success is.

    With pixels the policy is told about the arm only, and has to see the rest.
    """

    name: str
    scene: str
    time_limit_s: float  # of an episode
    gripper_modes: ClassVar[tuple[str, ...]] = ("fixed",)  # what the task can have, its recommendation first

    def __init__(
        self,
        options: TaskOptions,
        *,
        workspace_min_m: Array,
        workspace_max_m: Array,
        travel_m: Array,
        differences: tuple[Field, ...],
        rotation: bool = False,
        max_step_m: float = 0.02,
    ) -> None:
        """workspace: box (3,), (3,) in O that EE is kept in; travel_m: how far along each axis EE gets from its start.

        differences: fields (3,) of a state observation, along O's axes; `measure` returns their values.
        Raises ConfigError for a gripper mode that the task cannot have.
        """
        self._pixels = options.pixels
        self._shift = translation(*options.offset_m)
        workspace_min_m, workspace_max_m = workspace_min_m + options.offset_m, workspace_max_m + options.offset_m
        self.control_rate_hz = options.control_rate_hz
        self.max_episode_steps = round(self.time_limit_s * options.control_rate_hz)
        self._frame = ReferenceFrame(options.frame)
        self.cartesian = CartesianDelta(
            max_step_m=max_step_m,
            rotation=rotation,
            gripper=self._gripper_mode(options.gripper),
            frame=self._frame,
            control_rate_hz=self.control_rate_hz,
        )
        self.action_spec = self.cartesian.spec
        self.safety = self.cartesian.safety(workspace_min_m, workspace_max_m)
        if self._frame.is_relative:
            position = Field(name="reset_p_EE", unit="m", low=_bounds(-travel_m), high=_bounds(travel_m))
        else:
            position = Field(name="O_p_EE", unit="m", low=_bounds(workspace_min_m), high=_bounds(workspace_max_m))
        size = options.image_size_px
        self.observation_spec = (
            ObservationSpec(
                (position, *self._pixel_fields()),
                tuple(ImageField(name=name, height=size, width=size) for name in IMAGE_NAMES),
            )
            if options.pixels
            else ObservationSpec((position, *self._state_fields(), *map(self._frame.field, differences)))
        )

    def _gripper_mode(self, chosen: str) -> GripperMode:
        mode = self.gripper_modes[0] if chosen == "task" else chosen
        if mode not in self.gripper_modes:
            raise ConfigError(
                f"task {self.name!r} cannot have gripper = {chosen!r}: it "
                + ("never opens or closes it. " if self.gripper_modes == ("fixed",) else "cannot do without it. ")
                + f"Valid: task, {', '.join(self.gripper_modes)}."
            )
        if mode == "continuous":
            return "continuous"
        return "discrete" if mode == "discrete" else "none"

    @property
    def _has_gripper(self) -> bool:
        return self.action_spec.gripper != "none"

    def _state_fields(self) -> list[Field]:
        name = "EE_v_EE" if self._frame.is_relative else "O_v_EE"
        fields = [Field(name=name, unit="m/s", low=(-MAX_SPEED_M_S,) * 3, high=(MAX_SPEED_M_S,) * 3)]
        return fields + [_GRIPPER_FIELD] * self._has_gripper

    def _pixel_fields(self) -> list[Field]:
        rotation, twist = (
            ("reset_rotvec_EE", "EE_twist_EE") if self._frame.is_relative else ("O_rotvec_EE", "O_twist_EE")
        )
        speeds = (MAX_SPEED_M_S,) * 3 + (MAX_SPEED_RAD_S,) * 3
        return [
            Field(name=rotation, unit="rad", low=(-MAX_TILT_RAD,) * 3, high=(MAX_TILT_RAD,) * 3),
            Field(name=twist, unit="m/s, rad/s", low=tuple(-speed for speed in speeds), high=speeds),
            _GRIPPER_FIELD,
        ]

    def observe(self, state: RobotState, objects: ObjectPoses, O_T_reset: Array) -> Observation:
        """Return the vectors of the observation; images come from the cameras."""
        position, rotvec = self._frame.pose(state.O_T_EE, O_T_reset)
        twist = self._frame.twist(state.O_twist_EE, state.O_T_EE)
        width = np.array([state.gripper_width])
        if self._pixels:
            values = [position, rotvec, twist, width]
        else:
            differences = [self._frame.from_base(vector, state.O_T_EE) for vector in self.measure(state, objects)]
            values = [position, twist[:3], *[width] * self._has_gripper, *differences]
        names = [field.name for field in self.observation_spec.fields]
        return {name: value.astype(np.float32) for name, value in zip(names, values, strict=True)}

    def command(self, action: NDArray[np.float32], state: RobotState) -> RobotCommand:
        return self.cartesian.command(action, state)

    def sayable(self, command: RobotCommand, state: RobotState) -> RobotCommand:
        return self.cartesian.sayable(command, state)

    def action_of(self, command: RobotCommand, state: RobotState) -> NDArray[np.float32]:
        return self.cartesian.action_of(command, state)

    def action_from_twist(self, twist: Array, gripper: float, state: RobotState) -> NDArray[np.float32]:
        return self.cartesian.action_from_twist(twist, gripper, state)

    @abstractmethod
    def measure(self, state: RobotState, objects: ObjectPoses) -> list[Array]:
        """Return the values (3,) of the differences, along O's axes."""

    def sample_placement(self, rng: np.random.Generator) -> ScenePlacement:
        """Draw where an episode starts, at the task's place on the table."""
        drawn = self.draw_placement(rng)
        frames = SCENES[self.scene]
        objects = {name: self._shift @ pose if frames[name] == "O" else pose for name, pose in drawn.objects.items()}
        return ScenePlacement(O_T_EE=self._shift @ drawn.O_T_EE, objects=objects)

    @abstractmethod
    def draw_placement(self, rng: np.random.Generator) -> ScenePlacement:
        """Draw where an episode starts, around the task's nominal place."""

    @abstractmethod
    def outcome(self, state: RobotState, objects: ObjectPoses) -> Outcome: ...

    @abstractmethod
    def make_operator(self) -> Operator: ...


_GRIPPER_FIELD = Field(name="gripper_width", unit="m", low=(0.0,), high=(GRIPPER_OPEN_M,))


def _bounds(vector: Array) -> tuple[float, ...]:
    return tuple(vector.tolist())
