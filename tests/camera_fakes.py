"""What stands in for cameras in tests: a source whose faults are ordered, a RealSense recording, ZED videos, an SDK.

Every image here is RED on its left half and BLUE on its right, but for a stripe at the top whose brightness counts.
"""

import enum
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from robot.cameras import make_camera
from robot.cameras.capture import Image
from robot.errors import RobotError
from robot.interface import Camera, CameraFrame

HANG_LIMIT_S = 30.0
RED, BLUE = (200, 20, 20), (20, 20, 200)
STRIPE_ROWS = 8
SERIAL = "912112073118"  # of the RealSense


def picture(width: int, height: int, number: int = 0) -> Image:
    """Return the image (height, width, 3) RGB with the given number."""
    image = np.empty((height, width, 3), np.uint8)
    image[:, : width // 2], image[:, width // 2 :] = RED, BLUE
    image[:STRIPE_ROWS] = 10 * number % 250
    return image


def has_halves(image: NDArray[np.uint8], left: tuple[int, int, int], right: tuple[int, int, int]) -> bool:
    """Whether below the stripe the halves have these colours, as far as a video codec keeps them."""
    body, middle, margin = image[STRIPE_ROWS + 8 :].astype(int), image.shape[1] // 2, 16
    difference = max(
        np.abs(body[:, : middle - margin] - left).max(), np.abs(body[:, middle + margin :] - right).max()
    )  # fmt: skip
    return bool(difference < 25)


class ScriptedSource:
    """A camera of 100 images a second whose faults are attributes, to be set at any time:

    is_unplugged    neither images nor a device to open, until it is False again;
    is_silent       a grab that waits for ever, as of an SDK that hangs, until it is False again;
    is_frozen       the same image again and again, until it is opened anew;
    size            of the images, width and height, px.
    """

    def __init__(self, width: int = 64, height: int = 48) -> None:
        self.size = (width, height)
        self.opened_size: tuple[int, int] | None = None  # what `open` says, where that is not the truth
        self.is_unplugged = self.is_silent = self.is_frozen = False
        self.opened = self.closed = self.grabbed = 0
        self.threads: set[str] = set()  # that called it
        self.error: Exception | None = None  # what the next grab raises, once

    def open(self) -> tuple[int, int]:
        self.threads.add(threading.current_thread().name)
        if self.is_unplugged:
            raise RobotError("there is no scripted camera. Plug it in again.")
        self.opened += 1
        self.is_frozen = False
        return self.opened_size or self.size

    def grab(self) -> Image:
        time.sleep(0.01)
        while self.is_silent:
            time.sleep(0.001)
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        if self.is_unplugged:
            raise RobotError("the scripted camera delivers no image. Is its cable in?")
        self.grabbed += not self.is_frozen
        return picture(*self.size, number=self.grabbed)

    def close(self) -> None:
        self.closed += 1


def record_realsense(path: Path, serial: str, width: int, height: int) -> None:
    """Write 60 colour frames of a device that is not there, in 0.6 s, so that librealsense can play them back."""
    import pyrealsense2 as rs

    device = rs.software_device()
    device.register_info(rs.camera_info.serial_number, serial)
    sensor = device.add_sensor("RGB Camera")
    stream = rs.video_stream()
    stream.type, stream.fmt, stream.bpp = rs.stream.color, rs.format.bgr8, 3
    stream.width, stream.height, stream.fps = width, height, 30
    intrinsics = rs.intrinsics()
    intrinsics.width, intrinsics.height, intrinsics.model = width, height, rs.distortion.none
    intrinsics.fx = intrinsics.fy = 50.0
    intrinsics.ppx, intrinsics.ppy, intrinsics.coeffs = width / 2, height / 2, [0.0] * 5
    stream.intrinsics = intrinsics
    profile = sensor.add_video_stream(stream)
    recorder = rs.recorder(str(path), device)
    sensor.open(profile)
    sensor.start(rs.frame_queue(100))
    for number in range(60):
        frame = rs.software_video_frame()
        frame.pixels = cv2.cvtColor(picture(width, height, number), cv2.COLOR_RGB2BGR)
        frame.stride, frame.bpp = width * 3, 3
        frame.timestamp, frame.domain = number * 10.0, rs.timestamp_domain.system_time
        frame.frame_number = number + 1
        frame.profile = profile.as_video_stream_profile()
        sensor.on_video_frame(frame)
        time.sleep(0.01)
    sensor.stop()
    sensor.close()
    del recorder  # writes the end of the file


def keeping_pipeline() -> type[Any]:
    """Return an rs.pipeline that still holds its device when it has stopped.

    A recording that goes with its pipeline may still be read by a thread of its own: "pure virtual method called", and
    the process aborts, now and then on a busy machine (librealsense 2.59).
    """
    import pyrealsense2 as rs

    class KeepingPipeline(rs.pipeline):  # type: ignore[misc]  # its module has no types
        kept: ClassVar[list[Any]] = []

        def start(self, config: Any) -> Any:
            profile = super().start(config)
            self.kept.append(profile.get_device())
            return profile

    return KeepingPipeline


class SilentRealSense:
    """A context, its one device and a pipeline without images. The colour sensor's options are librealsense's own."""

    def __init__(self, serial: str, options: dict[str, tuple[float, float, float]]) -> None:
        """options: of its colour sensor, by name: lowest, highest and present value."""
        import pyrealsense2 as rs

        self._info = {rs.camera_info.serial_number: serial}
        self._software = rs.software_device()  # keeps the sensors alive
        for sensor_name in ("Stereo Module", "RGB Camera"):
            sensor = self._software.add_sensor(sensor_name)
            for name, (lowest, highest, value) in options.items():
                limits = rs.option_range()
                limits.min, limits.max, limits.step, limits.default = lowest, highest, 1.0, value
                sensor.add_option(getattr(rs.option, name), limits, True)
        self.stereo, self.colour = self._software.query_sensors()
        self.resets = self.starts = 0

    def query_devices(self) -> list["SilentRealSense"]:
        return [self]

    def supports(self, info: Any) -> bool:
        return info in self._info

    def get_info(self, info: Any) -> str:
        return self._info[info]

    def query_sensors(self) -> list[Any]:
        return [self.stereo, self.colour]

    def hardware_reset(self) -> None:
        self.resets += 1

    def pipeline(self, context: Any) -> Any:
        """Stand for rs.pipeline."""
        stream = SimpleNamespace(width=lambda: 640, height=lambda: 480)
        profile = SimpleNamespace(
            get_device=lambda: self,
            get_stream=lambda kind: SimpleNamespace(as_video_stream_profile=lambda: stream),
        )

        def start(config: Any) -> Any:
            self.starts += 1
            return profile

        return SimpleNamespace(start=start, stop=lambda: None, try_wait_for_frames=lambda timeout_ms: (False, None))


def write_video(path: Path, width: int, height: int, is_side_by_side: bool = False) -> None:
    """Write a video of 20 images. Side by side, the right eye's are BLUE left and RED right."""
    full = (2 * width if is_side_by_side else width, height)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 30.0, full)
    assert writer.isOpened()
    for number in range(20):
        image = picture(width, height, number)
        both = np.hstack([image, image[:, ::-1]]) if is_side_by_side else image
        writer.write(cv2.cvtColor(both, cv2.COLOR_RGB2BGR))
    writer.release()


class ErrorCode(enum.Enum):
    """The codes of the ZED SDK that matter here, warnings first, by their names."""

    CAMERA_REBOOTING = -4
    CORRUPTED_FRAME = -3
    CONFIGURATION_FALLBACK = -2
    POTENTIAL_CALIBRATION_ISSUE = -1
    SUCCESS = 0
    CAMERA_NOT_DETECTED = 1
    LOW_USB_BANDWIDTH = 2
    NO_GPU_DETECTED = 3


Resolution = enum.Enum("Resolution", ["HD2K", "HD1080", "HD720", "VGA"])
DepthMode = enum.Enum("DepthMode", ["NONE", "NEURAL"])
View = enum.Enum("View", ["LEFT", "RIGHT"])
VideoSettings = enum.Enum(
    "VideoSettings", ["EXPOSURE", "GAIN", "AEC_AGC", "WHITEBALANCE_TEMPERATURE", "WHITEBALANCE_AUTO"]
)


class ZedSdk:
    """The world behind a module `pyzed.sl`: which cameras there are, what they answer, and what they were asked."""

    def __init__(self) -> None:
        self.serials = [12345678]
        self.open_code = self.grab_code = ErrorCode.SUCCESS
        self.parameters = _InitParameters()  # of the latest open
        self.settings: dict[str, int] = {}
        self.size = (672, 376)
        self.grabs = self.closed = 0
        self.buffer: NDArray[np.uint8] = np.zeros((376, 672, 4), np.uint8)  # every image is a view of it

    def module(self) -> ModuleType:
        """Return the module to put into sys.modules as pyzed.sl."""
        module = ModuleType("pyzed.sl")
        camera = type("Camera", (_ZedCamera,), {"sdk": self, "get_device_list": staticmethod(self.devices)})
        vars(module).update(
            Camera=camera,
            DEPTH_MODE=DepthMode,
            ERROR_CODE=ErrorCode,
            InitParameters=_InitParameters,
            Mat=lambda: SimpleNamespace(get_data=lambda: self.buffer),
            RESOLUTION=Resolution,
            VIDEO_SETTINGS=VideoSettings,
            VIEW=View,
        )
        return module

    def devices(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(serial_number=serial) for serial in self.serials]


class _InitParameters:
    def __init__(self) -> None:
        self.camera_resolution = Resolution.HD720
        self.camera_fps = 0
        self.depth_mode = DepthMode.NEURAL
        self.open_timeout_sec = 5.0
        self.async_grab_camera_recovery = False
        self.serial = 0

    def set_from_serial_number(self, serial: int) -> None:
        self.serial = serial


class _ZedCamera:
    sdk: ZedSdk

    def open(self, parameters: _InitParameters) -> ErrorCode:
        self.sdk.parameters = parameters
        return self.sdk.open_code if parameters.serial in self.sdk.serials else ErrorCode.CAMERA_NOT_DETECTED

    def grab(self) -> ErrorCode:
        time.sleep(0.01)
        if not self.sdk.serials:
            return ErrorCode.CAMERA_NOT_DETECTED
        self.sdk.grabs += self.sdk.grab_code is ErrorCode.SUCCESS
        return self.sdk.grab_code

    def retrieve_image(self, image: Any, view: Any) -> ErrorCode:
        """Overwrite the one buffer; the right eye's image is the left one's mirrored."""
        width, height = self.sdk.size
        left = picture(width, height, self.sdk.grabs)
        shown = left if view is View.LEFT else left[:, ::-1]
        bgra = cv2.cvtColor(shown, cv2.COLOR_RGB2BGRA)
        if self.sdk.buffer.shape != bgra.shape:
            self.sdk.buffer = np.zeros(bgra.shape, np.uint8)
        self.sdk.buffer[:] = bgra
        return ErrorCode.SUCCESS

    def set_camera_settings(self, setting: Any, value: int) -> ErrorCode:
        self.sdk.settings[setting.name] = value
        return ErrorCode.SUCCESS

    def close(self) -> None:
        self.sdk.closed += 1


class RealSenseDesk:
    """An rs.context of which one RealSense can be unplugged: a recording, played by librealsense itself."""

    def __init__(self, recording: Path) -> None:
        import pyrealsense2 as rs

        self.context = rs.context()
        self._path = str(recording)
        self.plug()

    def plug(self) -> None:
        self.device = self.context.load_device(self._path).as_playback()

    def unplug(self) -> None:
        self.context.unload_device(self._path)


def realsense(desk: RealSenseDesk, device: str = SERIAL, **options: Any) -> Camera:
    return make_camera("realsense", "third_person", device=device, context=desk.context, **options)


def read_until(
    camera: Camera, condition: Callable[[CameraFrame], bool], advance: Callable[[], None] = lambda: None
) -> CameraFrame:
    deadline_s = time.monotonic() + HANG_LIMIT_S
    while not condition(frame := camera.read()):
        assert time.monotonic() < deadline_s, frame.sequence
        time.sleep(0.002)
        advance()
    return frame


def wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + HANG_LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.002)
