"""The serial line to a Robotiq: finding its port, opening it, and Modbus RTU through pymodbus."""

import errno
import logging
import os
import time
from pathlib import Path

import serial
from pymodbus.client import ModbusSerialClient
from pymodbus.exceptions import ConnectionException, ModbusException

from robot.errors import RobotError
from robot.grippers.robotiq_registers import NUM_REGISTERS, REQUEST_ADDRESS, STATUS_ADDRESS, Request, Status

# pymodbus logs every unanswered request as an error; each is raised as well, and the driver reports an outage once.
logging.getLogger("pymodbus.logging").setLevel(logging.CRITICAL)

BY_ID = Path("/dev/serial/by-id")
BAUD_RATE = 115200  # this and the next: as the gripper leaves the factory
DEVICE_ID = 9
MIN_PAUSE_S = 0.005  # between requests, by the manual: the gripper looks at its registers 200 times a second
WRITE_REGISTERS = 16  # Modbus function code
ANSWER_TIMEOUT_S = 0.08  # a healthy one answers within 20 ms, the delay of a USB adapter included


class SilentError(RobotError):
    """The gripper gave no answer, or a garbled one."""


class PortError(RobotError):
    """The serial port cannot be opened, or is gone."""


def find_port(device: str, by_id: Path = BY_ID) -> str:
    """Return `device`, or where it is empty the only port in `by_id` that can be an RS-485 adapter.

    Raises PortError, listing what there is, when none or several fit.
    """
    if device:
        return device
    ports = sorted(str(path) for path in by_id.iterdir()) if by_id.is_dir() else []
    fitting = [port for port in ports if "485" in port] or ports
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise PortError(f"several serial ports may be the gripper's: {', '.join(fitting)}. Set hand.device to one.")
    unnamed = sorted(str(path) for path in Path("/dev").glob("ttyUSB*"))
    hint = f"There is {', '.join(unnamed)}: set hand.device if that is it." if unnamed else "Plug its adapter in."
    raise PortError(f"there is no serial port in {by_id}, so no USB-to-RS485 adapter of a Robotiq gripper. {hint}")


def _why_not_open(port: str, error: Exception) -> str:
    if isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.EACCES:
        return (
            f"no permission for the gripper's port {port}. Join the group of serial ports, then log out and in: "
            "sudo usermod -aG dialout $USER"
        )
    if getattr(error, "errno", None) in (errno.EAGAIN, errno.EBUSY):
        return (
            f"the gripper's port {port} is in use by another program, perhaps another actor. This names it: "
            f"fuser -v {os.path.realpath(port)}"
        )
    if not os.path.exists(port):
        return f"the gripper's port {port} does not exist. Is its USB cable in? These are there: ls {BY_ID}"
    return f"the gripper's port {port} cannot be opened: {error}"


class RobotiqBus:
    """One gripper on one port. Every call returns within some ANSWER_TIMEOUT_S. Not for several threads at once."""

    def __init__(self, port: str) -> None:
        self.port = port
        self._client = ModbusSerialClient(port, baudrate=BAUD_RATE, timeout=ANSWER_TIMEOUT_S, retries=0)
        self._exchanged_s = 0.0

    def open(self) -> None:
        """Open the port unless it is. Raises PortError with the remedy."""
        if self._client.connected:
            return
        try:
            # pymodbus hides why a port does not open. exclusive: two drivers on one line would garble each other.
            serial.Serial(self.port, baudrate=BAUD_RATE, exclusive=True).close()
        except (OSError, ValueError) as error:  # pyserial's own are OSErrors
            raise PortError(_why_not_open(self.port, error)) from error
        if not self._client.connect():
            raise PortError(f"the gripper's port {self.port} cannot be opened; another program may just have taken it")

    def read_status(self) -> Status:
        """Ask for the status, opening the port again where it was lost. Raises SilentError or PortError."""
        self._get_ready()
        try:
            answer = self._client.read_input_registers(STATUS_ADDRESS, count=NUM_REGISTERS, device_id=DEVICE_ID)
        except (ModbusException, OSError) as error:
            raise self._failure(error) from error
        finally:
            self._exchanged_s = time.monotonic()
        if answer.isError() or len(answer.registers) != NUM_REGISTERS:
            raise SilentError(f"the gripper on {self.port} answered {answer}, not its status")
        return Status.from_registers(list(answer.registers))

    def write(self, request: Request) -> None:
        """Send a request and wait for its receipt. Raises SilentError, not knowing whether it arrived, or PortError."""
        self._get_ready()
        try:
            answer = self._client.write_registers(REQUEST_ADDRESS, request.registers(), device_id=DEVICE_ID)
        except (ModbusException, OSError) as error:
            raise self._failure(error) from error
        finally:
            self._exchanged_s = time.monotonic()
        if answer.isError() or answer.function_code != WRITE_REGISTERS:  # a late answer to the request before
            raise SilentError(f"the gripper on {self.port} answered {answer} to a request")

    def _get_ready(self) -> None:
        self.open()
        time.sleep(max(0.0, self._exchanged_s + MIN_PAUSE_S - time.monotonic()))

    def _failure(self, error: Exception) -> RobotError:
        if isinstance(error, ConnectionException | OSError):
            self.close()
            return PortError(f"the gripper's port {self.port} is gone: its USB cable came out, or its adapter failed")
        return SilentError(
            f"the gripper on {self.port} does not answer. Is its 24 V supply on, its LED lit, and the RS-485 pair the "
            f"right way round? It must listen at {BAUD_RATE} baud, 8N1, as device {DEVICE_ID}."
        )

    def close(self) -> None:
        self._client.close()  # type: ignore[no-untyped-call]
