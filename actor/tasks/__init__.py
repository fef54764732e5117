"""The tasks an actor can run, by name."""

from typing import cast

from actor.tasks.base import Task, TaskOptions
from policy.registry import resolve

TASKS = {
    "cube_stacking": "actor.tasks.cube_stacking:CubeStacking",
    "peg_in_hole": "actor.tasks.peg_in_hole:PegInHole",
    "peg_in_hole_blind": "actor.tasks.peg_in_hole:PegInHoleBlind",
    "peg_in_hole_rotation": "actor.tasks.peg_in_hole:PegInHoleRotation",
    "reach": "actor.tasks.reach:Reach",
}


def make_task(name: str, options: TaskOptions | None = None) -> Task:
    """Return the task `name`. Raises ConfigError, listing the valid names, when there is none."""
    return cast(Task, resolve("task", TASKS, name)(options or TaskOptions()))
