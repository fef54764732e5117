"""Looks that vary from episode to episode: light, colours, the table's pattern, and how the cameras are mounted."""

import zlib
from typing import Any

import numpy as np

from robot.backends.twin.picture_model import TABLE_TEXTURE
from robot.cameras.optics import MOUNTS
from robot.interface import Array, ScenePlacement
from robot.pose import make_pose, rotation_from_rotvec

# Each is drawn evenly from minus to plus this, times the amount.
_LIGHT = 0.3  # share of each light's brightness
_LIGHT_DIRECTION_RAD = 0.3
_COLOUR = 0.06  # of each channel (0 to 1) of each material's or object's colour
_TABLE_PATTERN = 0.15  # the same of the patches on the table
_CAMERA_POSITION_M = 0.004  # along each axis of the camera
_CAMERA_ROTATION_RAD = 0.02  # about each axis of the camera

MAX_AMOUNT = 3.0
_PATTERN_CELLS = 8  # patches of colour along each side of the table


class Looks:
    """Changes a picture model (picture_model.py) in place, each time from what it was at first."""

    changed_textures = (TABLE_TEXTURE,)

    def __init__(self, model: Any, amount: float) -> None:
        self._amount = amount
        self._model = model
        texture = model.texture(TABLE_TEXTURE)
        start, width, height = int(texture.adr[0]), int(texture.width[0]), int(texture.height[0])
        self._table = model.tex_data[start : start + width * height * 3].reshape(height, width, 3)
        self._geom_rgba, self._material_rgba = model.geom_rgba.copy(), model.mat_rgba.copy()
        self._light_diffuse, self._light_dir = model.light_diffuse.copy(), model.light_dir.copy()
        self._ambient = model.vis.headlight.ambient.copy()
        self._table_colour = self._table[0, 0].astype(float)
        self._C_T_jittered: dict[str, Array] = {}

    def begin_episode(self, placement: ScenePlacement) -> None:
        """Draw the looks of the episode that starts at `placement`: the same ones whenever it starts there."""
        amount, model = self._amount, self._model
        rng = np.random.default_rng(_seed(placement))
        light = amount * _LIGHT
        model.light_diffuse[:] = self._light_diffuse * rng.uniform(1 - light, 1 + light, (model.nlight, 1))
        model.vis.headlight.ambient[:] = self._ambient * rng.uniform(1 - light, 1 + light)
        for index, direction in enumerate(self._light_dir):
            turn = rotation_from_rotvec(amount * _LIGHT_DIRECTION_RAD * rng.uniform(-1, 1, 3))
            model.light_dir[index] = turn @ direction
        change = amount * _COLOUR * rng.uniform(-1, 1, (model.nmat, 3))
        model.mat_rgba[:, :3] = np.clip(self._material_rgba[:, :3] + change, 0.0, 1.0)
        change = amount * _COLOUR * rng.uniform(-1, 1, (model.nbody, 3))[model.geom_bodyid]
        bare = model.geom_matid < 0  # a colour of its own would make a geom drop its material's
        model.geom_rgba[bare, :3] = np.clip(self._geom_rgba[bare, :3] + change[bare], 0.0, 1.0)
        self._draw_table(rng)
        for name in MOUNTS:
            shift = amount * _CAMERA_POSITION_M * rng.uniform(-1, 1, 3)
            turn = rotation_from_rotvec(amount * _CAMERA_ROTATION_RAD * rng.uniform(-1, 1, 3))
            self._C_T_jittered[name] = make_pose(turn, shift)

    def C_T_jittered(self, camera: str) -> Array:
        """Return the pose (4, 4), in a camera's nominal frame, of where it sits this episode."""
        return self._C_T_jittered[camera]

    def _draw_table(self, rng: np.random.Generator) -> None:
        """Colour the table in soft patches."""
        size = len(self._table)
        patches = 255 * self._amount * _TABLE_PATTERN * rng.uniform(-1, 1, (_PATTERN_CELLS, _PATTERN_CELLS, 3))
        at = np.linspace(0, _PATTERN_CELLS - 1, size)
        low = np.minimum(at.astype(int), _PATTERN_CELLS - 2)
        share = (at - low)[:, None, None]
        rows = patches[low] * (1 - share) + patches[low + 1] * share  # (size, cells, 3)
        share = share[None, :, 0, :]
        pattern = rows[:, low] * (1 - share) + rows[:, low + 1] * share  # (size, size, 3)
        self._table[:] = np.clip(self._table_colour + pattern, 0, 255).astype(np.uint8)


def _seed(placement: ScenePlacement) -> int:
    poses = [placement.O_T_EE, *(placement.objects[name] for name in sorted(placement.objects))]
    return zlib.crc32(np.stack(poses).astype(np.float64).tobytes())
