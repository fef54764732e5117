"""A RealSense camera's colour stream, by serial number."""

import logging
from typing import Any

import cv2
import numpy as np

from robot.cameras.capture import CapturingCamera, Image, check_settings, choose_device
from robot.errors import MissingDependencyError, RobotConfigError, RobotError
from robot.interface import RobotBackend

try:
    import pyrealsense2 as rs
except ModuleNotFoundError:
    raise  # names its package
except ImportError as error:  # the package is there, a system library is not
    raise MissingDependencyError(
        f"camera driver 'realsense' cannot load its library: {error}. Run: sudo apt-get install libusb-1.0-0 libudev1"
    ) from error

_log = logging.getLogger(__name__)

_FROZEN_AFTER_S = 2.0
_SENSOR = "RGB Camera"  # by name: its place in the list differs between models
_FIRST_WAIT_MS = 3000  # a stream that starts
_WAIT_MS = 1000
_WARM_UP_FRAMES = 30  # until exposure and white balance have settled
_RESET_AFTER_FAILURES = 2


class RealSenseCamera(CapturingCamera):
    """The colour sensor of a RealSense (D435i and its relatives). Depth stays off."""

    def __init__(
        self,
        name: str,
        *,
        device: str = "",
        backend: RobotBackend | None = None,
        width: int = 640,
        height: int = 480,
        fps: int = 30,
        exposure_us: int = 0,
        white_balance_k: int = 0,
        context: Any = None,
    ) -> None:
        """device: serial number; empty: the only RealSense. exposure_us, white_balance_k: 0 leaves them to the camera.

        context: the rs.context to find it in. Raises RobotConfigError for an exposure that does not fit into a frame.
        """
        del backend  # a real camera
        check_settings(fps, exposure_us)
        source = RealSenseSource(device, width, height, fps, exposure_us, white_balance_k, context)
        super().__init__(name, source, width=width, height=height, frozen_after_s=_FROZEN_AFTER_S)


class RealSenseSource:
    """The colour images of one device."""

    def __init__(
        self, serial: str, width: int, height: int, fps: int, exposure_us: int, white_balance_k: int, context: Any
    ) -> None:
        self._serial = serial
        self._width, self._height, self._fps = width, height, fps
        self._exposure_us, self._white_balance_k = exposure_us, white_balance_k
        self._context = context
        self._pipeline: Any = None
        self._frames_to_skip = 0
        self._failures = 0  # since the last image

    def open(self) -> tuple[int, int]:
        device = self._find()  # first of all: a pipeline would wait 15 s for a device that is not there
        serial = device.get_info(rs.camera_info.serial_number)
        if self._failures >= _RESET_AFTER_FAILURES:
            self._failures = 0
            self._reset(device, serial)
        config = rs.config()
        config.enable_device(serial)
        config.enable_stream(rs.stream.color, self._width, self._height, rs.format.bgr8, self._fps)
        pipeline = rs.pipeline(self._context)
        try:
            profile = pipeline.start(config)
        except RuntimeError as error:
            raise self._start_failure(device, serial, error) from error
        self._pipeline = pipeline
        self._frames_to_skip = _WARM_UP_FRAMES
        self._configure(profile.get_device(), serial)
        stream = profile.get_stream(rs.stream.color).as_video_stream_profile()
        return stream.width(), stream.height()

    def grab(self) -> Image:
        if self._frames_to_skip:
            self._wait(_FIRST_WAIT_MS)
            while self._frames_to_skip:
                self._frames_to_skip -= 1
                self._wait(_WAIT_MS)
        frame = self._wait(_WAIT_MS)
        self._failures = 0
        # A copy: the frame goes back to the driver.
        return np.asarray(cv2.cvtColor(np.asanyarray(frame.get_data()), cv2.COLOR_BGR2RGB), np.uint8)

    def close(self) -> None:
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is not None:
            pipeline.stop()

    def _wait(self, timeout_ms: int) -> Any:
        """Return the next colour frame."""
        if self._pipeline is None:
            raise RobotError("the RealSense is not open")
        try:
            has_frames, frames = self._pipeline.try_wait_for_frames(timeout_ms)
            frame = frames.get_color_frame() if has_frames else None
        except RuntimeError as error:
            self._failures += 1
            raise RobotError(f"the RealSense failed: {error}. Plug it in again.") from error
        if not frame:
            self._failures += 1
            raise RobotError(
                f"the RealSense has delivered no image for {timeout_ms / 1e3:.0f} s. Is its cable in? It needs a USB 3 "
                "port of the computer itself and a short cable."
            )
        return frame

    def _find(self) -> Any:
        """Return the device to open."""
        if self._context is None:
            self._context = rs.context()
        # A device without a serial number cannot stream (a firmware update under way).
        found = {
            device.get_info(rs.camera_info.serial_number): device
            for device in self._context.query_devices()
            if device.supports(rs.camera_info.serial_number)
        }
        remedy = (
            "Plug it in again, into a USB 3 port of the computer itself; without librealsense's udev rules it is not "
            "seen either (docs/cameras.md)."
        )
        return found[choose_device("RealSense", self._serial, list(found), remedy)]

    def _reset(self, device: Any, serial: str) -> None:
        """Start the camera's own firmware again, the last means against a stream that does not start."""
        try:
            device.hardware_reset()
        except RuntimeError as error:
            _log.warning("the RealSense %s cannot be reset: %s", serial, error)
            return
        raise RobotError(f"the RealSense {serial} delivered nothing and was reset; it comes back in some seconds.")

    def _start_failure(self, device: Any, serial: str, error: RuntimeError) -> RobotError:
        self._failures += 1
        if "resolve requests" in str(error):
            return RobotConfigError(
                f"the RealSense {serial} has no colour stream of {self._width} x {self._height} px at {self._fps} "
                f"frames/s. Here it has {_modes(device)}; on a USB 2 port fewer than on USB 3."
            )
        return RobotError(
            f"the RealSense {serial} does not start: {error}. Does another program use it (realsense-viewer)?"
        )

    def _configure(self, device: Any, serial: str) -> None:
        if device.supports(rs.camera_info.usb_type_descriptor):
            usb = device.get_info(rs.camera_info.usb_type_descriptor)
            if usb.startswith("2"):
                _log.warning("the RealSense %s is on USB %s: expect fewer sizes and rates, and gaps", serial, usb)
        sensor = next((one for one in device.query_sensors() if one.get_info(rs.camera_info.name) == _SENSOR), None)
        if sensor is None:
            _log.warning("the RealSense %s has no sensor %r: its exposure stays as it is", serial, _SENSOR)
            return
        is_fixed = self._exposure_us > 0
        # With priority the camera would rather deliver fewer frames than dark ones.
        _set(sensor, rs.option.auto_exposure_priority, 0.0, is_wanted=False)
        _set(sensor, rs.option.enable_auto_exposure, float(not is_fixed), is_wanted=is_fixed)
        if is_fixed:
            _set(sensor, rs.option.exposure, self._exposure_us / 100.0)  # this sensor counts in units of 100 us
        _set(sensor, rs.option.enable_auto_white_balance, float(not self._white_balance_k), is_wanted=False)
        if self._white_balance_k:
            _set(sensor, rs.option.white_balance, float(self._white_balance_k))


def _set(sensor: Any, option: Any, value: float, is_wanted: bool = True) -> None:
    """Set an option if the sensor has it; say so if it does not, and it was wanted.

    Raises RobotConfigError for a value outside its range.
    """
    if not sensor.supports(option) or sensor.is_option_read_only(option):
        if is_wanted:
            _log.warning("the RealSense has no %s to set; it stays as it is", option.name)
        return
    limits = sensor.get_option_range(option)
    if not limits.min <= value <= limits.max:
        raise RobotConfigError(
            f"the RealSense takes a {option.name} from {limits.min:g} to {limits.max:g}, not {value:g} (an exposure "
            "here counts in units of 100 us)."
        )
    sensor.set_option(option, value)


def _modes(device: Any) -> str:
    modes = {
        (profile.width(), profile.height(), profile.fps())
        for sensor in device.query_sensors()
        for profile in (one.as_video_stream_profile() for one in sensor.get_stream_profiles())
        if profile and profile.stream_type() == rs.stream.color and profile.format() == rs.format.bgr8
    }
    return ", ".join(f"{width} x {height} at {fps}" for width, height, fps in sorted(modes)) or "none"
