"""What an external force leaves of a step. Pure; the same for a torque and a rotation."""

import math

import numpy as np

from robot.interface import Array

_ROUNDING = 1e-12


def yield_to(load: Array, soft: float, hard: float, back_off: float, step: Array) -> Array:
    """Return `step` (3,) as it may be under a load (3,) on EE: `step` itself up to the soft limit.

    Beyond it, the step goes along the load: by back_off at the hard limit, proportionally less before it.
    """
    size = math.hypot(*load.tolist())
    if size <= soft:
        return step
    direction = _direction(load)
    missing = back_off * min((size - soft) / (hard - soft), 1.0) - float(step @ direction)
    return step if missing <= _ROUNDING else step + missing * direction


def pushes_against(load: Array, soft: float, step: Array) -> bool:
    """Return whether a step (3,) works against a load (3,) beyond the soft limit."""
    return math.hypot(*load.tolist()) > soft and float(step @ _direction(load)) < -_ROUNDING


def _direction(load: Array) -> Array:
    """Return a load that is not zero at length 1; finite even for one near 1e308."""
    scaled = load / np.abs(load).max()
    unit: Array = scaled / math.hypot(*scaled.tolist())
    return unit
