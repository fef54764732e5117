"""The registers of a Robotiq 2F-85 as its manual defines them, and what they mean in SI units. Pure."""

from dataclasses import dataclass

REQUEST_ADDRESS = 0x03E8  # 3 registers, written
STATUS_ADDRESS = 0x07D0  # 3 registers, read
NUM_REGISTERS = 3

FULLY_OPEN, FULLY_CLOSED = 0, 255  # counts to ask for; the fingers stop at ends of their own
STROKE_M = 0.085  # data sheet, as are the two ranges; counts 0..255 span them
FORCE_RANGE_N = (20.0, 235.0)
SPEED_RANGE_M_S = (0.02, 0.15)

ACTIVATING, ACTIVATED = 1, 3  # gSTA
MOVING, CLOSED_ON_SOMETHING = 0, 2  # gOBJ; 1: stopped while opening, 3: arrived

ACTION_DELAYED, NOT_ACTIVATED, OVERHEATED, COMMUNICATION_PAUSED = 5, 7, 8, 9  # gFLT
FIRST_MAJOR_FAULT = 10  # from here on only a new activation helps

_FAULTS: dict[int, tuple[str, str]] = {  # gFLT: meaning, remedy
    ACTION_DELAYED: ("it has to finish its activation first", "Wait for it"),
    NOT_ACTIVATED: ("it is not activated", "Recover to activate it"),
    OVERHEATED: ("it is hotter than 85 °C inside", "Let it cool below 80 °C, and grip with less force, then recover"),
    COMMUNICATION_PAUSED: ("it heard nothing for a second", "Check the cable, then recover"),
    10: ("its supply is below its smallest voltage", "Check its 24 V supply and connector, then recover"),
    11: ("it is letting go automatically", "Wait until it has, then recover"),
    12: ("it has an internal fault", "Switch its power off and on and recover; if it returns, contact Robotiq"),
    13: ("its activation failed", "Clear the fingers, nothing may touch them, then recover"),
    14: ("its motor drew too much current", "Free the fingers from what they press against, then recover"),
    15: ("it has let go automatically", "Find out who asked for it, then recover"),
}


def describe_fault(code: int) -> str:
    """Return what a value of gFLT means and what to do."""
    meaning, remedy = _FAULTS.get(code, ("its manual does not list this fault", "Switch its power off and on, recover"))
    return f"the Robotiq gripper reports fault 0x{code:02X}: {meaning}. {remedy}."


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the gripper is told: rACT, rGTO, and in counts of 0..255 rPR, rSP and rFR."""

    is_active: bool
    is_going: bool = False
    position: int = 0
    speed: int = 0
    force: int = 0

    def registers(self) -> list[int]:
        action = int(self.is_active) | int(self.is_going) << 3
        return [action << 8, self.position, self.speed << 8 | self.force]


DEACTIVATE = Request(is_active=False)
ACTIVATE = Request(is_active=True)


@dataclass(frozen=True, kw_only=True)
class Status:
    """What the gripper says: gACT, gGTO, gSTA, gOBJ, gFLT, gPR and gPO."""

    is_active: bool
    is_going: bool  # without it `contact` means nothing
    activation: int
    contact: int
    fault: int
    requested: int  # counts; echo of the position asked for
    position: int  # counts

    @classmethod
    def from_registers(cls, registers: list[int]) -> "Status":
        status = registers[0] >> 8
        return cls(
            is_active=bool(status & 0x01),
            is_going=bool(status & 0x08),
            activation=status >> 4 & 0x03,
            contact=status >> 6,
            fault=registers[1] >> 8 & 0x0F,  # the high half is for an optional controller
            requested=registers[1] & 0xFF,
            position=registers[2] >> 8,
        )

    @property
    def is_activated(self) -> bool:
        return self.is_active and self.activation == ACTIVATED

    @property
    def is_holding(self) -> bool:
        return self.is_going and self.contact == CLOSED_ON_SOMETHING


@dataclass(frozen=True)
class Ends:
    """Where the fingers of one unit stop, in counts. Widths are linear in between."""

    open: int
    closed: int

    def width(self, position: int) -> float:
        """Return the width in m, of [0, STROKE_M]."""
        opened = (self.closed - position) / (self.closed - self.open)
        return STROKE_M * min(max(opened, 0.0), 1.0)

    def position(self, width: float) -> int:
        """Return what to ask for. The ends themselves are asked for fully: a count of drift must not leave a gap."""
        opened = width / STROKE_M
        if opened <= 0.0:
            return FULLY_CLOSED
        if opened >= 1.0:
            return FULLY_OPEN
        return round(self.closed + opened * (self.open - self.closed))


def counts(value: float, limits: tuple[float, float]) -> int:
    """Return a force or a speed within `limits` as 0..255."""
    low, high = limits
    return round(255 * (min(max(value, low), high) - low) / (high - low))
