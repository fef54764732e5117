"""The 2F-85's linkage, for pictures: the angle of each joint when the pads are a given distance apart."""

import numpy as np

from robot.interface import Array

# Measured by driving the wheel's own gripper model through its stroke, gravity off, and letting it settle.
_WIDTH_M: Array = np.array([0.0, 0.0077, 0.0245, 0.0410, 0.0567, 0.0716, 0.0849])
_DRIVER_RAD: Array = np.array([0.7725, 0.7078, 0.5668, 0.4257, 0.2847, 0.1436, 0.0026])


def linkage_angles(width: float) -> dict[str, float]:
    """Return joint -> angle, rad, of either finger, with the silicone pads `width` m apart; within 0.3 mm."""
    driver = float(np.interp(width, _WIDTH_M, _DRIVER_RAD))
    return {
        "driver": driver,
        "coupler": 0.0025 - 0.0019 * driver,  # at its stop
        "spring_link": 0.004 + 0.9975 * driver,  # parallel to the driver
        "follower": -0.0094 - 0.9486 * driver,  # turned back, so that the pads stay parallel
    }
