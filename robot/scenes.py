"""The scenes a simulator can build, the objects each one places, and the check of what a task asks for."""

import numpy as np

from robot.errors import RobotConfigError, unknown_name
from robot.interface import ScenePlacement
from robot.pose import is_rotation

# Scene -> the objects that ScenePlacement.objects must hold, and the frame each pose is given in.
# `object_poses()` returns all of them in the base frame O.
#   target: a free pose in the air, drawn but without contact.
#   hole:   origin at the centre of the rim, z up out of the hole.
#   peg:    origin at the centre of the tip, axes as EE (z out of the tip). Rigidly held: EE_T_peg lasts an episode.
#   cube_*: origin at the centre, axes along the edges. Free on the table (its top is z = 0), to be moved by the hand,
#           which starts open. In this scene alone the fingers move; in the others they are frozen around a peg.
SCENES: dict[str, dict[str, str]] = {
    "reach": {"target": "O"},
    "peg_in_hole": {"hole": "O", "peg": "EE"},
    "cube_stacking": {"cube_top": "O", "cube_bottom": "O"},
}


def check_scene(scene: str) -> None:
    """Raise RobotConfigError, listing the valid names, unless `scene` exists."""
    if scene not in SCENES:
        raise unknown_name("scene", scene, SCENES)


def check_placement(scene: str, placement: ScenePlacement) -> None:
    """Raise RobotConfigError unless `placement` holds exactly the poses that `scene` needs, each a rigid transform."""
    wanted = set(SCENES[scene])
    if set(placement.objects) != wanted:
        raise RobotConfigError(
            f"scene {scene!r} places the objects {sorted(wanted)}, the placement names {sorted(placement.objects)}"
        )
    for name, pose in {"O_T_EE": placement.O_T_EE, **placement.objects}.items():
        if pose.shape != (4, 4) or not np.isfinite(pose).all():
            raise RobotConfigError(f"placement {name} is not a finite (4, 4) pose: {pose.tolist()}")
        if not is_rotation(pose[:3, :3], 1e-6) or not np.array_equal(pose[3], [0.0, 0.0, 0.0, 1.0]):
            raise RobotConfigError(f"placement {name} is not a rigid transform: {pose.tolist()}")
