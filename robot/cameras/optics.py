"""Where the two cameras are and how they map points to pixels: their nominal calibration, and pinhole projection.

Camera frame C as in OpenCV: origin in the lens, x right, y down, z forward. Pixel (u, v) counts from the left and from
the top; the centre of the first pixel is (0.5, 0.5). Lens distortion is left out: both devices deliver images without
it, or nearly so. These are not the figures of any unit: calibrate your own.
"""

import math
from dataclasses import dataclass

import numpy as np

from robot.errors import unknown_name
from robot.interface import Array
from robot.pose import inverse, make_pose


@dataclass(frozen=True)
class Optics:
    """A pinhole camera's image: size, focal lengths and principal point, all in pixels."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float

    def project(self, C_p: Array) -> tuple[float, float, float]:
        """Return pixel u, v and depth, m, of a point (3,) in C; a depth of 0 or less is behind the lens."""
        x, y, z = C_p.tolist()
        if z <= 0.0:
            return math.nan, math.nan, z
        return self.fx * x / z + self.cx, self.fy * y / z + self.cy, z


@dataclass(frozen=True)
class Mount:
    """A camera of the workplace: its optics and where it sits."""

    optics: Optics
    is_on_hand: bool
    parent_T_C: Array  # (4, 4); parent is EE on the hand, else O

    def O_T_C(self, O_T_EE: Array) -> Array:
        """Return the camera's pose (4, 4) with EE at O_T_EE."""
        return O_T_EE @ self.parent_T_C if self.is_on_hand else self.parent_T_C

    def project(self, O_p: Array, O_T_EE: Array) -> tuple[float, float, float]:
        """Return pixel u, v and depth, m, of a point (3,) in O."""
        C_T_O = inverse(self.O_T_C(O_T_EE))
        return self.optics.project(C_T_O[:3, :3] @ O_p + C_T_O[:3, 3])


def looking_at(eye: tuple[float, float, float], target: tuple[float, float, float], up: Array) -> Array:
    """Return the pose (4, 4) of a camera at `eye` that looks at `target`, with `up` (3,) pointing up in the image."""
    forward = np.subtract(target, eye)
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, up)
    right = right / np.linalg.norm(right)
    return make_pose(np.stack([right, np.cross(forward, right), forward], axis=1), eye)


# 2.8 mm lens (ZED Mini data sheet) on pixels of 8 um at 672 x 376 (stereolabs/zed-opencv issue 39): 350 px. That is
# 88 by 57 degrees; the data sheet has 90 by 60 at most. Principal point nominal.
_ZED_MINI_VGA = Optics(width=672, height=376, fx=350.0, fy=350.0, cx=336.0, cy=188.0)
# Colour stream of a D435i as its factory calibration reports it (IntelRealSense/librealsense issue 8689).
_D435I_COLOUR = Optics(width=640, height=480, fx=607.32, fy=607.58, cx=320.58, cy=241.21)

# The ZED Mini is centred in front of the gripper (its left lens 31.5 mm to one side: half its 63 mm baseline) and looks
# down at the finger tips, which close from left and right. The D435i stands across the table and looks at the arm.
MOUNTS = {
    "wrist": Mount(
        _ZED_MINI_VGA,
        is_on_hand=True,
        parent_T_C=looking_at((0.075, 0.0315, -0.10), (0.0, 0.008, 0.02), up=np.array([1.0, 0.0, 0.0])),
    ),
    "third_person": Mount(
        _D435I_COLOUR,
        is_on_hand=False,
        parent_T_C=looking_at((0.95, 0.27, 0.38), (0.48, -0.01, 0.12), up=np.array([0.0, 0.0, 1.0])),
    ),
}
for _mount in MOUNTS.values():
    _mount.parent_T_C.setflags(write=False)


def find_mount(name: str) -> Mount:
    """Return the mount of the camera `name`; RobotConfigError, listing the valid names, if there is none."""
    if name not in MOUNTS:
        raise unknown_name("camera", name, MOUNTS)
    return MOUNTS[name]
