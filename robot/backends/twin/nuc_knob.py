"""Make something go wrong with a running twin: `python -m robot.backends.twin.nuc_knob estop on`. See docs/twin.md."""

import argparse
import sys
from collections.abc import Sequence

from robot.backends.twin.room import RoomClient
from robot.backends.twin.room_wire import DEFAULT_ADDRESS
from robot.errors import RobotError


def main(arguments: Sequence[str] | None = None) -> int:
    """Turn one knob. Returns the exit code: 0, or 1 with the reason on standard error."""
    parser = argparse.ArgumentParser(prog="python -m robot.backends.twin.nuc_knob", description=__doc__)
    parser.add_argument("name", help="reflex, estop, restart, freeze_s, late_s, dropped, garbled or announce_s")
    parser.add_argument("value", nargs="?", default="on", help="a number, or on or off")
    parser.add_argument("--room", default=DEFAULT_ADDRESS)
    options = parser.parse_args(arguments)
    try:
        value = options.value == "on" if options.value in ("on", "off") else float(options.value)
    except ValueError:
        parser.error(f"{options.value!r} is neither a number nor on or off")
    try:
        with RoomClient(options.room) as room:
            room.knob(options.name, value)
    except RobotError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
