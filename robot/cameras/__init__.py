"""The cameras this system can read, by name. A driver is imported when it is chosen, and not before."""

CAMERAS: dict[str, str] = {}
