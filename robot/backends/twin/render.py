"""Off-screen drawing of the twin, without multisampling and shadows: on a CPU they cost most of the frame."""

import atexit
import importlib
import os
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from robot.cameras.optics import Optics
from robot.errors import RobotConfigError, RobotError
from robot.interface import Array

# The libraries that MuJoCo can draw with. egl needs no display; the user's MUJOCO_GL goes first.
_GL_LIBRARIES = {"egl": "mujoco.egl", "osmesa": "mujoco.osmesa", "glfw": "mujoco.glfw"}
_DEBIAN_PACKAGES = {
    "egl": "libegl1 libegl-mesa0 libgl1-mesa-dri",
    "osmesa": "libosmesa6",
    "glfw": "libgl1 libx11-6",
}
_MAX_IMAGE_PIXELS = 2048  # per side
_NEAR_M, _FAR_M = 0.01, 12.0  # of what a camera of the workplace sees


@dataclass(frozen=True)
class View:
    """A camera that looks at a point in O from a distance; angles as MuJoCo has them."""

    lookat_m: tuple[float, float, float]
    distance_m: float
    azimuth_deg: float
    elevation_deg: float


class Renderer:
    """Draws one model. Belongs to the thread that made it; `close` frees the context."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._gl_context = _make_gl_context()
        self._mjr_context: Any = None
        self._size = (0, 0)
        self._scene = mujoco.MjvScene(model, maxgeom=500)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = False
        self._options = mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._perturbation = mujoco.MjvPerturb()
        atexit.register(self.close)  # before the GL library's own exit hook, after which freeing fails

    def look(self, data: Any, view: View, width: int, height: int) -> NDArray[np.uint8]:
        """Return an RGB image (height, width, 3) for people. Raises RobotConfigError for an impossible size."""
        if not (0 < width <= _MAX_IMAGE_PIXELS and 0 < height <= _MAX_IMAGE_PIXELS):
            raise RobotConfigError(f"image size {width} x {height} px is not within 1 to {_MAX_IMAGE_PIXELS} px")
        self._camera.lookat[:] = view.lookat_m
        self._camera.distance = view.distance_m
        self._camera.azimuth, self._camera.elevation = view.azimuth_deg, view.elevation_deg
        self._gather(data)
        return self._draw(width, height)

    def look_through(self, data: Any, optics: Optics, O_T_C: Array) -> NDArray[np.uint8]:
        """Return what the camera with its lens at O_T_C (4, 4) sees, RGB of its own size."""
        self._gather(data)
        left, right = (_NEAR_M * (u - optics.cx) / optics.fx for u in (0, optics.width))
        top, bottom = (_NEAR_M * (optics.cy - v) / optics.fy for v in (0, optics.height))
        for eye in self._scene.camera:  # OpenGL's left and right ones
            eye.pos[:], eye.forward[:], eye.up[:] = O_T_C[:3, 3], O_T_C[:3, 2], -O_T_C[:3, 1]
            eye.frustum_near, eye.frustum_far = _NEAR_M, _FAR_M
            eye.frustum_center, eye.frustum_width = (left + right) / 2, (right - left) / 2
            eye.frustum_bottom, eye.frustum_top = bottom, top
        for light in self._scene.lights[: self._scene.nlight]:
            if light.headlight:
                light.pos[:], light.dir[:] = O_T_C[:3, 3], O_T_C[:3, 2]
        return self._draw(optics.width, optics.height)

    def upload_texture(self, name: str) -> None:
        """Let the next pictures show what the model's texture holds now."""
        if self._mjr_context is not None:
            self._gl_context.make_current()
            mujoco.mjr_uploadTexture(self._model, self._mjr_context, self._model.texture(name).id)

    def _gather(self, data: Any) -> None:
        mujoco.mjv_updateScene(
            self._model, data, self._options, self._perturbation, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )

    def _draw(self, width: int, height: int) -> NDArray[np.uint8]:
        self._gl_context.make_current()
        self._prepare_buffer(width, height)
        viewport = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(viewport, self._scene, self._mjr_context)
        image = np.empty((height, width, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(image, None, viewport, self._mjr_context)
        return np.ascontiguousarray(image[::-1])  # OpenGL's first row is the lowest

    def close(self) -> None:
        """Free the drawing context. Safe to call twice."""
        atexit.unregister(self.close)
        if self._mjr_context is not None:
            self._mjr_context.free()
            self._mjr_context = None
        if self._gl_context is not None:
            self._gl_context.free()
            self._gl_context = None

    def _prepare_buffer(self, width: int, height: int) -> None:
        """Make the off-screen buffer large enough."""
        if width <= self._size[0] and height <= self._size[1]:
            return
        self._size = (max(width, self._size[0]), max(height, self._size[1]))
        if self._mjr_context is None:
            self._model.vis.global_.offwidth, self._model.vis.global_.offheight = self._size
            self._mjr_context = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_100)
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._mjr_context)
        else:
            mujoco.mjr_resizeOffscreen(*self._size, self._mjr_context)


def _make_gl_context() -> Any:
    library = os.environ.get("MUJOCO_GL", "").lower() or "egl"
    if library not in _GL_LIBRARIES:
        raise RobotConfigError(
            f"the environment variable MUJOCO_GL is {library!r}, with which nothing can be drawn. "
            f"Valid: {', '.join(sorted(_GL_LIBRARIES))}; unset it to use egl"
        )
    try:
        return importlib.import_module(_GL_LIBRARIES[library]).GLContext(_MAX_IMAGE_PIXELS, _MAX_IMAGE_PIXELS)
    # A missing system library shows in PyOpenGL as any of these, depending on which one it is.
    except (ImportError, AttributeError, RuntimeError, OSError) as error:
        raise RobotError(
            f"cannot draw off screen with {library}: {error}. On Debian or Ubuntu: "
            f"sudo apt-get install -y {_DEBIAN_PACKAGES[library]}. Everything but images and videos works without"
        ) from error
