"""The ZED Mini by Stereolabs' SDK: the left eye, rectified; no depth. Its frames need an NVIDIA GPU."""

import importlib
import logging
import time
from typing import Any

import cv2
import numpy as np

from robot.cameras.capture import CapturingCamera, Image, check_settings, choose_device
from robot.errors import MissingDependencyError, RobotConfigError, RobotError
from robot.interface import RobotBackend

_log = logging.getLogger(__name__)

_FROZEN_AFTER_S = 2.0
_OPEN_TIMEOUT_S = 5.0
_GRAB_TIMEOUT_S = 1.0
_FIXED_GAIN_PERCENT = 50  # with a fixed exposure: the camera would keep whatever its automatic last chose
_RESOLUTIONS = {(2208, 1242): "HD2K", (1920, 1080): "HD1080", (1280, 720): "HD720", (672, 376): "VGA"}

# Of the SDK's codes: those that come with a whole image, and those after which the next image may be whole again.
_USABLE = {"SUCCESS", "POTENTIAL_CALIBRATION_ISSUE", "CONFIGURATION_FALLBACK"}
_PASSING = {"CORRUPTED_FRAME", "CAMERA_REBOOTING"}
_REMEDIES = {
    "CAMERA_NOT_DETECTED": "Plug it in again, into a USB 3 port of the computer itself; ZED_Explorer must see it.",
    "LOW_USB_BANDWIDTH": "Give it a USB 3 port of its own, or a smaller size or rate.",
    "INVALID_RESOLUTION": "Choose a size and rate that it has (docs/cameras.md).",
    "CAMERA_FAILED_TO_SETUP": "Another program may use it; otherwise plug it in again.",
    "CANNOT_START_CAMERA_STREAM": "Another program may use it; otherwise plug it in again.",
    "NO_GPU_COMPATIBLE": "The SDK needs an NVIDIA GPU; without one use the driver zed_uvc.",
    "NO_GPU_DETECTED": "The SDK needs an NVIDIA GPU; without one use the driver zed_uvc.",
    "CUDA_ERROR": "nvidia-smi must work, with a CUDA that fits the SDK; otherwise use the driver zed_uvc.",
    "END_OF_SVOFILE_REACHED": "The recording is over.",
}


class ZedSdkCamera(CapturingCamera):
    """The left eye of a ZED Mini, chosen by serial number."""

    def __init__(
        self,
        name: str,
        *,
        device: str = "",
        backend: RobotBackend | None = None,
        width: int = 672,
        height: int = 376,
        fps: int = 30,
        exposure_us: int = 0,
        white_balance_k: int = 0,
    ) -> None:
        """device: serial number; empty: the only ZED. exposure_us, white_balance_k: 0 leaves them to the camera.

        Raises MissingDependencyError without the SDK's Python package, RobotConfigError for settings it does not have.
        """
        del backend  # a real camera
        check_settings(fps, exposure_us)
        if device and not device.isdecimal():
            raise RobotConfigError(f"the ZED's device {device!r} must be its serial number, which ZED_Explorer shows")
        if (width, height) not in _RESOLUTIONS:
            sizes = ", ".join(f"{w} x {h}" for w, h in _RESOLUTIONS)
            raise RobotConfigError(f"a ZED Mini has no images of {width} x {height} px. It has {sizes}.")
        source = _ZedSdkSource(_import_sdk(), device, (width, height), fps, exposure_us, white_balance_k)
        super().__init__(name, source, width=width, height=height, frozen_after_s=_FROZEN_AFTER_S)


def _import_sdk() -> Any:
    """Return the module pyzed.sl; MissingDependencyError, with what to do, where there is none or only a namesake."""
    install = (
        "Install the ZED SDK from stereolabs.com, then: .venv/bin/python /usr/local/zed/get_python_api.py. Without the "
        "SDK use the driver zed_uvc."
    )
    try:
        return importlib.import_module("pyzed.sl")
    except ImportError as error:
        if error.name == "pyzed.sl":  # there is a pyzed, but without it
            raise MissingDependencyError(
                "the installed package 'pyzed' is not Stereolabs' but one of the same name from PyPI. Remove it: "
                f".venv/bin/pip uninstall pyzed. {install}"
            ) from error
        raise MissingDependencyError(f"camera driver 'zed_sdk' needs pyzed.sl ({error}). {install}") from error


class _ZedSdkSource:
    def __init__(
        self, sdk: Any, serial: str, size: tuple[int, int], fps: int, exposure_us: int, white_balance_k: int
    ) -> None:
        self._sl = sdk
        self._serial = serial
        self._size = size
        self._fps = fps
        self._exposure_us, self._white_balance_k = exposure_us, white_balance_k
        self._camera: Any = None
        self._image: Any = None  # the SDK fills the same one at every grab

    def open(self) -> tuple[int, int]:
        sl = self._sl
        present = [str(found.serial_number) for found in sl.Camera.get_device_list()]
        serial = choose_device("ZED", self._serial, present, _REMEDIES["CAMERA_NOT_DETECTED"])
        parameters = sl.InitParameters()
        parameters.camera_resolution = getattr(sl.RESOLUTION, _RESOLUTIONS[self._size])
        parameters.camera_fps = self._fps
        parameters.depth_mode = sl.DEPTH_MODE.NONE
        parameters.open_timeout_sec = _OPEN_TIMEOUT_S
        parameters.async_grab_camera_recovery = True  # else a grab without a camera blocks
        parameters.set_from_serial_number(int(serial))
        self._camera, self._image = sl.Camera(), sl.Mat()
        status = self._camera.open(parameters).name
        if status not in _USABLE:
            raise self._failure("does not open", status)
        if status != "SUCCESS":
            _log.warning("the ZED with serial number %s opened with the warning %s", serial, status)
        self._configure()
        return self._size  # each image is checked all the same

    def grab(self) -> Image:
        if self._camera is None:
            raise RobotError("the ZED is not open")
        deadline_s = time.monotonic() + _GRAB_TIMEOUT_S
        while (status := self._camera.grab().name) not in _USABLE:
            if status not in _PASSING or time.monotonic() > deadline_s:
                raise self._failure("delivers no image", status)
            time.sleep(0.005)
        status = self._camera.retrieve_image(self._image, self._sl.VIEW.LEFT).name
        if status not in _USABLE:
            raise self._failure("does not hand out its image", status)
        # A copy: the SDK overwrites its image at the next grab.
        return np.asarray(cv2.cvtColor(self._image.get_data(), cv2.COLOR_BGRA2RGB), np.uint8)

    def close(self) -> None:
        camera, self._camera = self._camera, None
        if camera is not None:
            camera.close()

    def _configure(self) -> None:
        settings = self._sl.VIDEO_SETTINGS
        if self._exposure_us:
            percent = max(1, round(self._exposure_us * self._fps / 1e4))  # of the time that a frame takes
            self._set(settings.EXPOSURE, percent)  # ends the automatic
            self._set(settings.GAIN, _FIXED_GAIN_PERCENT)
        else:
            self._set(settings.AEC_AGC, 1)
        if self._white_balance_k:
            self._set(settings.WHITEBALANCE_TEMPERATURE, self._white_balance_k)  # ends the automatic
        else:
            self._set(settings.WHITEBALANCE_AUTO, 1)

    def _set(self, setting: Any, value: int) -> None:
        status = self._camera.set_camera_settings(setting, value).name
        if status != "SUCCESS":
            _log.warning("the ZED does not take %s = %d: %s", setting.name, value, status)

    def _failure(self, what: str, status: str) -> RobotError:
        remedy = _REMEDIES.get(status, "ZED_Diagnostic, which the SDK brings, says more.")
        return RobotError(f"the ZED {what}: {status}. {remedy}")
