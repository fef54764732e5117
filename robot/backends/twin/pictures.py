"""What the twin looks like: a model of its own, posed like the robot and drawn from where it is asked to be."""

from collections.abc import Mapping
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from robot.backends.twin.linkage import linkage_angles
from robot.backends.twin.looks import Looks
from robot.backends.twin.picture_model import build_picture_model
from robot.backends.twin.render import Renderer, View
from robot.cameras.optics import find_mount
from robot.errors import unknown_name
from robot.interface import Array, ScenePlacement

_OVERVIEW = View(lookat_m=(0.27, 0.0, 0.30), distance_m=1.5, azimuth_deg=140.0, elevation_deg=-20.0)
# Where the close view looks: at the mean of these objects as placed and so far above it, from this far, m.
_CLOSE_VIEWS = {
    "reach": (("target",), 0.0, 0.70),
    "peg_in_hole": (("hole",), 0.03, 0.32),
    "cube_stacking": (("cube_top", "cube_bottom"), 0.03, 0.60),
}


class Pictures:
    """Draws one scene. Belongs to the thread that made it; `close` frees the drawing context."""

    def __init__(self, scene: str, looks_variation: float) -> None:
        """Build the model (a third of a second). Raises RobotError where the machine cannot draw off screen.

        looks_variation: how much the looks differ from episode to episode (looks.py); 0 not at all.
        """
        self._scene = scene
        self._model: Any = build_picture_model(scene)
        self._data: Any = mujoco.MjData(self._model)
        self._renderer = Renderer(self._model)
        self._looks = Looks(self._model, looks_variation) if looks_variation else None
        self._episode = -1
        self._close_view = _OVERVIEW
        self._O_T_EE = np.eye(4)

    def begin_episode(self, episode: int, placement: ScenePlacement) -> None:
        """Aim at that episode's objects and draw its looks, unless that is done."""
        if episode == self._episode:
            return
        self._episode = episode
        names, above_m, distance_m = _CLOSE_VIEWS[self._scene]
        x, y, z = np.mean([placement.objects[name][:3, 3] for name in names], axis=0).tolist()
        self._close_view = View(
            lookat_m=(x, y, z + above_m), distance_m=distance_m, azimuth_deg=150.0, elevation_deg=-32.0
        )
        if self._looks is not None:
            self._looks.begin_episode(placement)
            for name in self._looks.changed_textures:
                self._renderer.upload_texture(name)

    def pose(self, q: Array, gripper_width: float, O_T_EE: Array, objects: Mapping[str, Array]) -> None:
        """Bring the picture to joint angles q (7,), rad, pads gripper_width m apart, and objects at O_T_object."""
        data = self._data
        self._O_T_EE = O_T_EE
        data.qpos[:7] = q
        for link, angle in linkage_angles(gripper_width).items():
            for side in ("left", "right"):
                data.joint(f"{side}_{link}_joint").qpos[0] = angle
        for name, pose in objects.items():
            mocap = self._model.body(name).mocapid[0]
            data.mocap_pos[mocap] = pose[:3, 3]
            mujoco.mju_mat2Quat(data.mocap_quat[mocap], np.ascontiguousarray(pose[:3, :3]).ravel())
        mujoco.mj_kinematics(self._model, data)
        mujoco.mj_comPos(self._model, data)
        mujoco.mj_camlight(self._model, data)

    def look(self, view: str, width: int, height: int) -> NDArray[np.uint8]:
        """Return an RGB image (height, width, 3) from the view "overview" or "close"."""
        views = {"overview": _OVERVIEW, "close": self._close_view}
        if view not in views:
            raise unknown_name("camera", view, views)
        return self._renderer.look(self._data, views[view], width, height)

    def photograph(self, camera: str) -> NDArray[np.uint8]:
        """Return what the camera of the workplace sees, RGB of its own size."""
        mount = find_mount(camera)
        O_T_C = mount.O_T_C(self._O_T_EE)
        if self._looks is not None:
            O_T_C = O_T_C @ self._looks.C_T_jittered(camera)
        return self._renderer.look_through(self._data, mount.optics, O_T_C)

    def close(self) -> None:
        """Free the drawing context. Safe to call twice."""
        self._renderer.close()
