"""Looks that vary from episode to episode: light, colours, the table's pattern, and how the cameras are mounted."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from robot.backends.twin.picture_model import TABLE_TEXTURE
from robot.cameras.optics import MOUNTS
from robot.errors import RobotConfigError
from robot.interface import Array
from robot.pose import make_pose, rotation_from_rotvec

_PATTERN_CELLS = 8  # patches of colour along each side of the table


@dataclass(frozen=True, kw_only=True)
class LooksConfig:
    """How much the looks vary. The looks of an episode depend on seed and episode number (resets so far) alone."""

    seed: int = 0
    light: float = 0.3  # each light's brightness is multiplied by 1 +- this
    light_direction_rad: float = 0.3
    colour: float = 0.06  # added to or taken from each channel (0 to 1) of each part's colour
    table_pattern: float = 0.15  # the same for the patches on the table
    camera_position_m: float = 0.004  # along each axis of the camera
    camera_rotation_rad: float = 0.02  # about each axis of the camera

    def __post_init__(self) -> None:
        for name in ("light", "light_direction_rad", "colour", "table_pattern"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise RobotConfigError(f"looks: {name} = {getattr(self, name)} is outside [0, 1)")
        for name in ("camera_position_m", "camera_rotation_rad"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0.0):
                raise RobotConfigError(f"looks: {name} = {getattr(self, name)} must be finite and not negative")


class Looks:
    """Changes a picture model (picture_model.py) in place, each time from what it was at first."""

    changed_textures = (TABLE_TEXTURE,)

    def __init__(self, model: Any, config: LooksConfig) -> None:
        self._config = config
        self._model = model
        texture = model.texture(TABLE_TEXTURE)
        start, width, height = int(texture.adr[0]), int(texture.width[0]), int(texture.height[0])
        self._table = model.tex_data[start : start + width * height * 3].reshape(height, width, 3)
        self._geom_rgba, self._material_rgba = model.geom_rgba.copy(), model.mat_rgba.copy()
        self._light_diffuse, self._light_dir = model.light_diffuse.copy(), model.light_dir.copy()
        self._ambient = model.vis.headlight.ambient.copy()
        self._table_colour = self._table[0, 0].astype(float)
        self._C_T_jittered: dict[str, Array] = {}

    def begin_episode(self, episode: int) -> None:
        """Draw the looks of that episode."""
        config, model = self._config, self._model
        rng = np.random.default_rng((config.seed, episode))
        model.light_diffuse[:] = self._light_diffuse * rng.uniform(
            1 - config.light, 1 + config.light, (model.nlight, 1)
        )
        model.vis.headlight.ambient[:] = self._ambient * rng.uniform(1 - config.light, 1 + config.light)
        for index, direction in enumerate(self._light_dir):
            turn = rotation_from_rotvec(config.light_direction_rad * rng.uniform(-1, 1, 3))
            model.light_dir[index] = turn @ direction
        for colours, original in ((model.geom_rgba, self._geom_rgba), (model.mat_rgba, self._material_rgba)):
            change = rng.uniform(-config.colour, config.colour, (len(original), 3))
            colours[:, :3] = np.clip(original[:, :3] + change, 0.0, 1.0)
        self._draw_table(rng)
        for name in MOUNTS:
            shift = config.camera_position_m * rng.uniform(-1, 1, 3)
            turn = rotation_from_rotvec(config.camera_rotation_rad * rng.uniform(-1, 1, 3))
            self._C_T_jittered[name] = make_pose(turn, shift)

    def C_T_jittered(self, camera: str) -> Array:
        """Return the pose (4, 4), in a camera's nominal frame, of where it sits this episode."""
        return self._C_T_jittered[camera]

    def _draw_table(self, rng: np.random.Generator) -> None:
        """Colour the table in soft patches."""
        size = len(self._table)
        patches = rng.uniform(-1, 1, (_PATTERN_CELLS, _PATTERN_CELLS, 3)) * 255 * self._config.table_pattern
        at = np.linspace(0, _PATTERN_CELLS - 1, size)
        low = np.minimum(at.astype(int), _PATTERN_CELLS - 2)
        share = (at - low)[:, None, None]
        rows = patches[low] * (1 - share) + patches[low + 1] * share  # (size, cells, 3)
        share = share[None, :, 0, :]
        pattern = rows[:, low] * (1 - share) + rows[:, low + 1] * share  # (size, size, 3)
        self._table[:] = np.clip(self._table_colour + pattern, 0, 255).astype(np.uint8)
