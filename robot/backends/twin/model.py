"""Build the physics' model: Panda and Robotiq 2F-85 from the gym-hil wheel, a table, and the objects of one scene.

Nothing of gym-hil is copied or imported; only its model files are read. Of them this keeps the arm's chain and inertia;
pictures have a model of their own (picture_model.py). The gripper's linkage is frozen around a peg (see docs/twin.md);
with cubes there are pads that move beside it (fingers.py). Contact is left to the few shapes that can matter: peg,
plate, table, cubes and finger tips.
"""

import importlib.util
import math
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from robot.backends.twin.fingers import FINGER_BIT, add_fingers
from robot.errors import MissingDependencyError
from robot.geometry import CUBE_EDGE_M, HOLE_DEPTH_M, HOLE_RADIUS_M, PEG_RADIUS_M
from robot.pose import rotation_from_rotvec
from robot.scenes import SCENES

PHYSICS_STEP_S = 0.002

VISUAL_GROUP = 2  # of the wheel's geoms that are drawn
EE_SITE = "pinch"  # between the finger pads; with q7 = pi/4 its axes are libfranka's EE axes

# Linkage angles of the 2F-85 with its pads 24 mm apart, found by closing the wheel's gripper model in simulation.
# With these the linkage's loops are closed and the pads touch the peg: see tests/unit/test_twin_model.py.
_LINKAGE_RAD = {"driver": 0.5746, "coupler": 0.0014, "spring_link": 0.5761, "follower": -0.5546}

# A regular polygon whose sides touch the hole's circle from outside: the peg finds 1 mm everywhere, and at the corners
# HOLE_RADIUS_M (1 / cos(pi / 16) - 1) = 0.25 mm more.
HOLE_SIDES = 16
# To contacts the peg is a prism with its edges on the circle. Contact of flat faces with a true cylinder is iterative
# and once in 100 000 steps finds a depth that is wrong by a millimetre; between polyhedra it is exact.
_PEG_SIDES = 32
_CHAMFER_M = 0.001
PLATE_RADIUS_M = 0.05
PEDESTAL_M = 0.03  # the plate's foot below the bottom of the hole; the table hides what is too long
PEG_SHAFT_M = 0.085  # from the tip up to behind the finger pads

# Contact: a metal peg on smooth plastic. A time constant of 10 ms, five physics steps, is stiff enough to stay within
# 0.5 mm of penetration under all the controller can push, and soft enough that the peg slides without chattering.
_FRICTION = (0.2, 0.0, 0.0)
_SOLREF = (0.01, 1.0)
_SOLIMP = (0.95, 0.99, 0.0005, 0.5, 2.0)
_PEG_BIT, _CUBE_BIT = 1, 4  # contact types beside FINGER_BIT

_CUBE_MASS_KG = 0.05  # of wood
_CUBE_FRICTION = (0.6, 0.0, 0.0)
_CUBE_SOLREF = (0.006, 1.0)  # as of the pads: the fingers squeeze with 30 N
_CUBE_IMPEDANCE_RATIO = 20.0  # of friction to normal force: at 1 a held cube creeps by 0.1 mm/s, at 20 by 0.004


def build_model(scene: str) -> Any:
    """Return the mujoco.MjModel of `scene`: first seven joints and torque motors, and a body for each of its objects.

    The objects' bodies are named and framed as in robot/scenes.py; a reset sets their poses.

    Raises MissingDependencyError if the wheel that holds the model files is not installed.
    """
    spec = mujoco.MjSpec.from_file(str(find_panda_file()))
    _keep_arm_only(spec)
    _freeze_linkage(spec)
    _add_table(spec)
    if scene == "peg_in_hole":
        _add_finger_tips(spec)
        _add_plate(spec)
        _add_peg(spec)
    elif scene == "cube_stacking":
        add_fingers(spec, EE_SITE)
        _add_cubes(spec)
        spec.option.impratio = _CUBE_IMPEDANCE_RATIO
    else:
        _add_finger_tips(spec)
        spec.worldbody.add_body(name="target")
    spec.option.timestep = PHYSICS_STEP_S
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    return spec.compile()


def find_panda_file() -> Path:
    """Return the path of the wheel's arm and gripper; MissingDependencyError without the wheel."""
    found = importlib.util.find_spec("gym_hil")  # finds the package without running its code
    if found is None or found.origin is None:
        raise MissingDependencyError(
            "the twin takes the robot's model files from the Python package 'gym-hil', which is not installed. "
            "Install it from the project's folder: pip install -e '.[sim]' -c constraints.txt"
        )
    return Path(found.origin).parent / "assets" / "panda.xml"


def _keep_arm_only(spec: Any) -> None:
    """Delete the wheel's sensors, cameras, everything that moves the fingers, and the meshes.

    Those few stay which a body without inertia of its own takes it from.
    """
    weighing = [geom for geom in spec.geoms if geom.group == VISUAL_GROUP and not geom.parent.explicitinertial]
    weighing_meshes = {geom.meshname for geom in weighing}
    unwanted = [geom for geom in spec.geoms if geom not in weighing]
    unwanted += [mesh for mesh in spec.meshes if Path(mesh.file).stem not in weighing_meshes]
    unwanted += [*spec.sensors, *spec.cameras, *spec.equalities, *spec.tendons, *spec.excludes]
    unwanted += [actuator for actuator in spec.actuators if actuator.name == "fingers_actuator"]
    for element in unwanted:
        spec.delete(element)


def _freeze_linkage(spec: Any) -> None:
    """Replace each joint of the gripper by the angle it has around the peg."""
    for side in ("left", "right"):
        for link, angle in _LINKAGE_RAD.items():
            joint = spec.joint(f"{side}_{link}_joint")
            body = joint.parent
            turn = rotation_from_rotvec(np.asarray(joint.axis) * angle)
            before = _rotation_from_quat(body.quat)
            body.pos = body.pos + before @ (joint.pos - turn @ joint.pos)
            body.quat = _quat_from_rotation(before @ turn)
            spec.delete(joint)


def _add_table(spec: Any) -> None:
    spec.worldbody.add_geom(
        name="table", type=mujoco.mjtGeom.mjGEOM_PLANE, size=(2.0, 2.0, 0.1), group=3, contype=0,
        conaffinity=_PEG_BIT | FINGER_BIT | _CUBE_BIT, friction=_FRICTION, solref=_SOLREF, solimp=_SOLIMP,
    )  # fmt: skip


def _add_finger_tips(spec: Any) -> None:
    """Add the contact shape of the fingers that are frozen around a peg."""
    spec.site(EE_SITE).parent.add_geom(
        name="finger_tips", type=mujoco.mjtGeom.mjGEOM_BOX, pos=np.asarray(spec.site(EE_SITE).pos),
        size=(0.011, 0.022, 0.017), group=3, mass=0.0, contype=FINGER_BIT, conaffinity=0, friction=_FRICTION,
        solref=_SOLREF, solimp=_SOLIMP,
    )  # fmt: skip


def _add_plate(spec: Any) -> None:
    """Add the plate with the round hole: convex sectors around it, each with its share of wall, chamfer and rim."""
    body = spec.worldbody.add_body(name="hole")
    for index in range(HOLE_SIDES):
        spec.add_mesh(name=f"sector{index}", uservert=sector_corners(index).ravel())
        body.add_geom(type=mujoco.mjtGeom.mjGEOM_MESH, meshname=f"sector{index}", **_PLATE_CONTACT)
    # Drawn as a cylinder but a box to the peg, for the same reason as the peg itself is a prism.
    body.add_geom(
        name="hole_bottom", type=mujoco.mjtGeom.mjGEOM_BOX, pos=(0.0, 0.0, -HOLE_DEPTH_M - PEDESTAL_M / 2),
        size=(1.5 * HOLE_RADIUS_M, 1.5 * HOLE_RADIUS_M, PEDESTAL_M / 2), **_PLATE_CONTACT,
    )  # fmt: skip


def sector_corners(index: int) -> Any:
    """Return the corners (10, 3), m, of one convex sector of the plate in the hole's frame."""
    half_angle = math.pi / HOLE_SIDES
    profile = (  # distance from the axis to the side's middle, and height
        (HOLE_RADIUS_M, -HOLE_DEPTH_M),
        (HOLE_RADIUS_M, -_CHAMFER_M),
        (HOLE_RADIUS_M + _CHAMFER_M, 0.0),
        (PLATE_RADIUS_M, 0.0),
        (PLATE_RADIUS_M, -HOLE_DEPTH_M),
    )
    corners = [
        (apothem, sign * apothem * math.tan(half_angle), height) for apothem, height in profile for sign in (-1, 1)
    ]
    turn = rotation_from_rotvec((0.0, 0.0, 2 * half_angle * index))
    return np.array(corners) @ turn.T


def _add_peg(spec: Any) -> None:
    """Add the peg to the gripper. Its body's frame is the peg frame, set at reset."""
    site = spec.site(EE_SITE)
    EE = site.parent.add_body(name="EE", pos=site.pos, quat=site.quat)
    peg = EE.add_body(name="peg")
    angles = 2 * math.pi / _PEG_SIDES * np.arange(_PEG_SIDES)
    circle = PEG_RADIUS_M * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    corners = [(x, y, z) for z in (0.0, -PEG_SHAFT_M) for x, y in circle]
    spec.add_mesh(name="peg", uservert=np.array(corners).ravel())
    peg.add_geom(
        name="peg", type=mujoco.mjtGeom.mjGEOM_MESH, meshname="peg", mass=0.1, group=3, contype=_PEG_BIT,
        conaffinity=0, friction=_FRICTION, solref=_SOLREF, solimp=_SOLIMP,
    )  # fmt: skip


def _add_cubes(spec: Any) -> None:
    for name in SCENES["cube_stacking"]:
        body = spec.worldbody.add_body(name=name)
        body.add_freejoint(name=name)
        body.add_geom(
            name=name, type=mujoco.mjtGeom.mjGEOM_BOX, size=(CUBE_EDGE_M / 2,) * 3, mass=_CUBE_MASS_KG,
            contype=_CUBE_BIT, conaffinity=_CUBE_BIT | FINGER_BIT, friction=_CUBE_FRICTION, solref=_CUBE_SOLREF,
            solimp=_SOLIMP, priority=1,
        )  # fmt: skip


def _rotation_from_quat(quat_wxyz: Any) -> Any:
    matrix = np.empty(9)
    mujoco.mju_quat2Mat(matrix, np.asarray(quat_wxyz) / np.linalg.norm(quat_wxyz))
    return matrix.reshape(3, 3)


def _quat_from_rotation(rotation: Any) -> Any:
    quat_wxyz = np.empty(4)
    mujoco.mju_mat2Quat(quat_wxyz, np.ascontiguousarray(rotation).ravel())
    return quat_wxyz


_PLATE_CONTACT = {
    "contype": 0,
    "conaffinity": _PEG_BIT,
    "friction": _FRICTION,
    "solref": _SOLREF,
    "solimp": _SOLIMP,
}
