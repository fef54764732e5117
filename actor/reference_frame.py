"""In which frame a policy is told poses and velocities and gives its actions: the robot's base, or the episode's start.

base:  everything in O.
reset: the pose relative to the one at reset, reset_T_EE; velocities, differences and actions along the axes of the
       present EE. A policy then neither knows nor needs to know where in the workspace an episode began.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from policy.spec import Field
from robot.interface import Array
from robot.pose import O_R_DOWN, inverse, make_pose, rotvec_from_rotation

FrameName = Literal["base", "reset"]


def adjoint(A_T_B: Array) -> Array:
    """Return the (6, 6) matrix that takes a twist from B to A: A_twist = adjoint(A_T_B) @ B_twist.

    Twists are (v, omega): v is the velocity of the moving body's point at the frame's origin. In this order the cross
    term, the velocity that a rotation gives to a displaced origin, belongs in the upper right block.
    """
    A_R_B, (x, y, z) = A_T_B[:3, :3], A_T_B[:3, 3]
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.block([[A_R_B, cross @ A_R_B], [np.zeros((3, 3)), A_R_B]])


@dataclass(frozen=True)
class ReferenceFrame:
    """Turns what is measured in O into what the policy sees, and its actions back."""

    name: FrameName = "base"

    @property
    def is_relative(self) -> bool:
        return self.name == "reset"

    def pose(self, O_T_EE: Array, O_T_reset: Array) -> tuple[Array, Array]:
        """Return position (3,) m and rotation vector (3,) rad of EE: reset_T_EE, or in O from straight down."""
        if self.is_relative:
            reset_T_EE = inverse(O_T_reset) @ O_T_EE
            return reset_T_EE[:3, 3], rotvec_from_rotation(reset_T_EE[:3, :3])
        return O_T_EE[:3, 3], rotvec_from_rotation(O_T_EE[:3, :3] @ O_R_DOWN.T)

    def twist(self, O_twist_EE: Array, O_T_EE: Array) -> Array:
        """Return the twist (6,) of EE along the axes of O, or of EE.

        A robot reports the velocity of EE's own origin along O's axes, so between the two lies a rotation and no
        displacement: the cross term of the adjoint is zero here.
        """
        if not self.is_relative:
            return O_twist_EE
        EE_twist_EE: Array = adjoint(make_pose(O_T_EE[:3, :3].T, np.zeros(3))) @ O_twist_EE
        return EE_twist_EE

    def from_base(self, O_vector: Array, O_T_EE: Array) -> Array:
        """Return a difference or step (3,), given in O, along the axes that the policy uses."""
        return O_T_EE[:3, :3].T @ O_vector if self.is_relative else O_vector

    def to_base(self, vector: Array, O_T_EE: Array) -> Array:
        """Undo `from_base`.

        Both halves of an action are only rotated. They are steps of a pose, not a twist: with the adjoint's cross term
        a pure turn of the hand would also move it, by as much as the base is far away.
        """
        return O_T_EE[:3, :3] @ vector if self.is_relative else vector

    def field(self, field: Field) -> Field:
        """Return a field (3,) whose bounds are meant in O with those along EE's axes, the hand pointing down."""
        if not self.is_relative:
            return field
        corners = np.stack([O_R_DOWN.T @ field.low, O_R_DOWN.T @ field.high])
        return replace(field, low=tuple(corners.min(axis=0).tolist()), high=tuple(corners.max(axis=0).tolist()))
