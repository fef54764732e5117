"""Fingers that move: two pads on slides, closed and opened like a Robotiq 2F-85's, with its stroke, speed and force.

The linkage that really carries the pads is left out. Its tips also rise by 10 mm while it opens from a cube's edge to
its stroke; these pads stay at the height they have around a cube. Both are always equally far from the middle.
"""

from typing import Any

import mujoco

from robot.geometry import FINGER_TIP_M, GRIPPER_OPEN_M, GRIPPER_SPEED_M_S
from robot.interface import Array

FINGER_BIT = 2  # contact type of the hand's shapes

_FORCE_N = 30.0  # of each pad; the 2F-85's range is 20 to 235 N, HIL-SERL's setting is near its lower end
_STIFFNESS_N_M = 8000.0  # reaches that force 4 mm behind the set point
_MASS_KG = 0.02  # of a pad; the rest of the finger is part of the hand, where the frozen linkage has it
_ARMATURE_KG = 0.5  # of motor and gear, at the pad
_AT_REST_M_S = 0.002
_SQUEEZE_M = 2.0 * _FORCE_N / _STIFFNESS_N_M  # of the width, between where the pads are and where they are told to be
_DAMPING_N_S_M = 2.0 * (_STIFFNESS_N_M * (_MASS_KG + _ARMATURE_KG)) ** 0.5  # critical

# Pads 22 mm wide turn a cube straight only if they slide on it: friction has to be below 22 / 45. The time constant is
# the least that 2 ms steps allow with some room.
_FRICTION = (0.4, 0.0, 0.0)
_SOLREF = (0.006, 1.0)
_SOLIMP = (0.95, 0.99, 0.0005, 0.5, 2.0)
_PAD_HALF_M = (0.011, 0.004, 0.01875)  # along x, in the closing direction y, along z of EE
_LINK_HALF_M = (0.010, 0.006, 0.018)  # of the part above a pad, behind its face


def add_fingers(spec: Any, site_name: str) -> None:
    """Add two sliding pads around the site, whose y axis they close along, with their motors."""
    site = spec.site(site_name)
    for side, sign in (("left", -1.0), ("right", 1.0)):
        body = site.parent.add_body(name=f"{side}_finger", pos=site.pos, quat=site.quat)
        body.add_joint(
            name=f"{side}_finger", type=mujoco.mjtJoint.mjJNT_SLIDE, axis=(0.0, sign, 0.0), armature=_ARMATURE_KG,
            range=(0.0, GRIPPER_OPEN_M / 2), limited=True, solref_limit=_SOLREF,
        )  # fmt: skip
        contact = {
            "type": mujoco.mjtGeom.mjGEOM_BOX, "group": 3, "contype": FINGER_BIT, "conaffinity": 0,
            "friction": _FRICTION, "solref": _SOLREF, "solimp": _SOLIMP, "priority": 2,
        }  # fmt: skip
        pad_z, link_z = FINGER_TIP_M - _PAD_HALF_M[2], FINGER_TIP_M - 2 * _PAD_HALF_M[2] - _LINK_HALF_M[2]
        body.add_geom(
            name=f"{side}_pad", pos=(0.0, sign * _PAD_HALF_M[1], pad_z), size=_PAD_HALF_M, mass=_MASS_KG, **contact
        )
        behind_m = 2 * _PAD_HALF_M[1] + _LINK_HALF_M[1]
        body.add_geom(name=f"{side}_link", pos=(0.0, sign * behind_m, link_z), size=_LINK_HALF_M, mass=0.0, **contact)
        motor = spec.add_actuator(
            name=f"{side}_finger", trntype=mujoco.mjtTrn.mjTRN_JOINT, target=f"{side}_finger",
            forcelimited=True, forcerange=(-_FORCE_N, _FORCE_N),
        )  # fmt: skip
        motor.set_to_position(kp=_STIFFNESS_N_M, kv=_DAMPING_N_S_M)
    spec.add_equality(
        name="fingers", type=mujoco.mjtEq.mjEQ_JOINT, name1="left_finger", name2="right_finger",
        objtype=mujoco.mjtObj.mjOBJ_JOINT, data=[0.0, 1.0] + [0.0] * 9, solref=_SOLREF,
    )  # fmt: skip


class Fingers:
    """Where the fingers are and where they are told to go. Reads and writes the simulation's own arrays."""

    def __init__(self, model: Any, data: Any) -> None:
        joints = [model.joint(f"{side}_finger") for side in ("left", "right")]
        motors = [model.actuator(f"{side}_finger").id for side in ("left", "right")]
        self._first_qpos = int(joints[0].qposadr[0])
        assert int(joints[1].qposadr[0]) == self._first_qpos + 1
        self._qpos: Array = data.qpos[self._first_qpos : self._first_qpos + 2]
        self._set_points: Array = data.ctrl[motors[0] : motors[1] + 1]
        self._timestep_s = float(model.opt.timestep)
        self._step_m = GRIPPER_SPEED_M_S * self._timestep_s
        self._set_point = self._commanded = self._last_width = GRIPPER_OPEN_M
        self._speed_m_s = 0.0

    @property
    def width(self) -> float:
        """The measured distance of the pads, m."""
        return float(self._qpos[0] + self._qpos[1])

    def reset(self) -> None:
        """Open, at rest, at the gripper's speed."""
        self._step_m = GRIPPER_SPEED_M_S * self._timestep_s
        self._set_point = self._commanded = self._last_width = GRIPPER_OPEN_M
        self._speed_m_s = 0.0
        self._qpos[:] = self._set_points[:] = GRIPPER_OPEN_M / 2

    @property
    def is_moving(self) -> bool:
        """Whether the pads are on their way. What is between them stops them when it takes the whole force."""
        is_stopped = abs(self.width - self._set_point) >= _SQUEEZE_M
        return (self._set_point != self._commanded and not is_stopped) or self._speed_m_s > _AT_REST_M_S

    def command(self, width: float, speed_m_s: float = GRIPPER_SPEED_M_S) -> None:
        """Close or open to `width`, m, at that speed of it; what is in between is gripped with the gripper's force."""
        self._commanded = width
        self._step_m = speed_m_s * self._timestep_s

    def step(self) -> None:
        """Move the set point on by one physics step."""
        width = self.width
        self._speed_m_s = abs(width - self._last_width) / self._timestep_s
        self._last_width = width
        # A gripper that turns round starts from where it is, not from where the object kept it from going.
        if self._commanded > width:
            start = max(self._set_point, width)
            self._set_point = min(start + self._step_m, self._commanded)
        else:
            start = min(self._set_point, width)
            self._set_point = max(start - self._step_m, self._commanded)
        self._set_points[:] = self._set_point / 2
