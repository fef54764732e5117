"""Build the model that pictures are drawn from: the look of arm, moving gripper, table and objects, without physics.

It is apart from the physics' model (model.py), so nothing done to the looks can change what the robot does. Every
object is a mocap body: put anywhere, moved by nothing.
"""

from typing import Any

import mujoco
import numpy as np

from robot.backends.twin.model import (
    HOLE_SIDES,
    PEDESTAL_M,
    PEG_SHAFT_M,
    PLATE_RADIUS_M,
    VISUAL_GROUP,
    find_panda_file,
    sector_corners,
)
from robot.geometry import CUBE_EDGE_M, HOLE_DEPTH_M, HOLE_RADIUS_M, PEG_RADIUS_M
from robot.interface import Array

_MESH_CELL_M = 0.004  # vertices within a cell of this size become one; the wheel's meshes have 190 000 faces

_CUBE_COLOURS = {"cube_top": (0.84, 0.22, 0.20, 1.0), "cube_bottom": (0.20, 0.42, 0.80, 1.0)}
_PEG_COLOUR = (0.93, 0.55, 0.16, 1.0)
_PLATE_COLOUR = (0.36, 0.50, 0.66, 1.0)
_HOLE_COLOUR = (0.08, 0.10, 0.13, 1.0)
_TARGET_COLOUR = (0.15, 0.75, 0.35, 0.9)
_TABLE_COLOUR = (0.80, 0.75, 0.68, 1.0)
_FLOOR_COLOUR = (0.62, 0.65, 0.69, 1.0)

TABLE_TEXTURE = "table"
_TEXTURE_PX = 256


def build_picture_model(scene: str) -> Any:
    """Return the mujoco.MjModel to draw `scene` with: the arm's seven hinges, the linkage's eight, mocap objects.

    Raises MissingDependencyError if the wheel that holds the meshes is not installed.
    """
    spec = mujoco.MjSpec.from_file(str(find_panda_file()))
    unwanted = [geom for geom in spec.geoms if geom.group != VISUAL_GROUP]
    unwanted += [*spec.sensors, *spec.cameras, *spec.equalities, *spec.excludes, *spec.actuators, *spec.tendons]
    for element in unwanted:
        spec.delete(element)
    _add_room(spec)
    {"reach": _add_target, "peg_in_hole": _add_peg_and_plate, "cube_stacking": _add_cubes}[scene](spec)
    model = spec.compile()
    for index in range(model.nmesh):
        _decimate(model, index)
    return model


def _add_room(spec: Any) -> None:
    """Add table, floor, sky and lights."""
    spec.add_texture(
        name=TABLE_TEXTURE, type=mujoco.mjtTexture.mjTEXTURE_2D, builtin=mujoco.mjtBuiltin.mjBUILTIN_FLAT,
        rgb1=_TABLE_COLOUR[:3], width=_TEXTURE_PX, height=_TEXTURE_PX,
    )  # fmt: skip
    material = spec.add_material(name="table")
    material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = TABLE_TEXTURE
    spec.worldbody.add_geom(
        name="table", type=mujoco.mjtGeom.mjGEOM_BOX, pos=(0.28, 0.0, -0.02), size=(0.48, 0.45, 0.02), material="table"
    )
    spec.worldbody.add_geom(
        name="floor", type=mujoco.mjtGeom.mjGEOM_PLANE, pos=(0.0, 0.0, -0.75), size=(8.0, 8.0, 0.1), rgba=_FLOOR_COLOUR
    )
    spec.add_texture(
        name="sky", type=mujoco.mjtTexture.mjTEXTURE_SKYBOX, builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
        rgb1=(0.90, 0.92, 0.95), rgb2=(0.60, 0.65, 0.72), width=64, height=384,
    )  # fmt: skip
    for position, brightness in (((1.0, 1.6, 2.2), 0.48), ((1.4, -1.8, 1.0), 0.26)):
        aim = np.array([0.3, 0.0, 0.3]) - position
        spec.worldbody.add_light(
            type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL, pos=position, dir=aim / np.linalg.norm(aim),
            diffuse=(brightness,) * 3, specular=(0.15,) * 3, castshadow=False,
        )  # fmt: skip
    spec.visual.headlight.ambient = (0.42, 0.42, 0.42)
    spec.visual.headlight.diffuse = (0.12, 0.12, 0.12)
    spec.visual.headlight.specular = (0.0, 0.0, 0.0)
    spec.visual.quality.offsamples = 0  # multisampling costs five times the frame on a CPU


def _add_target(spec: Any) -> None:
    _add_object(spec, "target").add_geom(
        name="target", type=mujoco.mjtGeom.mjGEOM_SPHERE, size=(0.01, 0.0, 0.0), rgba=_TARGET_COLOUR
    )


def _add_peg_and_plate(spec: Any) -> None:
    plate = _add_object(spec, "hole")
    for index in range(HOLE_SIDES):
        name = f"sector{index}"
        spec.add_mesh(name=name, uservert=sector_corners(index).ravel())
        plate.add_geom(name=name, type=mujoco.mjtGeom.mjGEOM_MESH, meshname=name, rgba=_PLATE_COLOUR)
    plate.add_geom(
        name="pedestal", type=mujoco.mjtGeom.mjGEOM_CYLINDER, pos=(0.0, 0.0, -HOLE_DEPTH_M - PEDESTAL_M / 2),
        size=(PLATE_RADIUS_M, PEDESTAL_M / 2, 0.0), rgba=_PLATE_COLOUR,
    )  # fmt: skip
    plate.add_geom(
        name="hole", type=mujoco.mjtGeom.mjGEOM_CYLINDER, pos=(0.0, 0.0, -HOLE_DEPTH_M),
        size=(HOLE_RADIUS_M, 0.0005, 0.0), rgba=_HOLE_COLOUR,
    )  # fmt: skip
    _add_object(spec, "peg").add_geom(
        name="peg", type=mujoco.mjtGeom.mjGEOM_CYLINDER, pos=(0.0, 0.0, -PEG_SHAFT_M / 2),
        size=(PEG_RADIUS_M, PEG_SHAFT_M / 2, 0.0), rgba=_PEG_COLOUR,
    )  # fmt: skip


def _add_cubes(spec: Any) -> None:
    for name, colour in _CUBE_COLOURS.items():
        _add_object(spec, name).add_geom(
            name=name, type=mujoco.mjtGeom.mjGEOM_BOX, size=(CUBE_EDGE_M / 2,) * 3, rgba=colour
        )


def _add_object(spec: Any, name: str) -> Any:
    return spec.worldbody.add_body(name=name, mocap=True)


def _decimate(model: Any, index: int) -> None:
    """Merge a mesh's vertices cell by cell and drop the faces that vanish; what is left keeps its smooth normals."""
    vertices = model.mesh_vert[model.mesh_vertadr[index] :][: model.mesh_vertnum[index]]
    first, count = model.mesh_faceadr[index], model.mesh_facenum[index]
    faces, normals = (field[first : first + count] for field in (model.mesh_face, model.mesh_facenormal))
    merged, kept = merge_vertices(vertices, faces)
    model.mesh_facenum[index] = len(kept)
    faces[: len(kept)], normals[: len(kept)] = merged, normals[kept]


def merge_vertices(vertices: Array, faces: Any) -> tuple[Any, Any]:
    """Move one vertex of each cell (in place, (V, 3), m) to the mean of all in it, and let the faces (F, 3) use that.

    Returns the faces (K, 3) that still have three different corners, each once, and their rows (K,) in `faces`.
    """
    _, representative, cell, population = np.unique(
        np.floor(vertices / _MESH_CELL_M), axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    cell = cell.ravel()
    means = [np.bincount(cell, vertices[:, axis]) / population for axis in range(3)]
    corners = cell[faces]  # (F, 3)
    a, b, c = corners.T
    rows = np.flatnonzero((a != b) & (b != c) & (a != c))
    _, once = np.unique(np.sort(corners[rows], axis=1), axis=0, return_index=True)
    kept = rows[np.sort(once)]
    vertices[representative] = np.stack(means, axis=1)
    return representative[corners[kept]], kept
