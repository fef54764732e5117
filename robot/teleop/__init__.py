"""The input devices a person can drive with, by name. A driver is imported when it is chosen, and not before."""

TELEOP_DEVICES: dict[str, str] = {}
