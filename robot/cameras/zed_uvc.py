"""The ZED Mini without its SDK: an ordinary USB camera whose images hold both eyes side by side. Not rectified."""

from robot.cameras.capture import CapturingCamera, Image
from robot.cameras.opencv import OpenCvSource
from robot.errors import RobotConfigError, RobotError
from robot.interface import RobotBackend

# Size of one eye's image -> frame rates (the vendor's data sheet of the ZED Mini).
_MODES = {(2208, 1242): (15,), (1920, 1080): (15, 30), (1280, 720): (15, 30, 60), (672, 376): (15, 30, 60, 100)}
_HINT = (
    "A ZED opened as a plain USB camera can also deliver torn or green images until the vendor's registers for "
    "exposure are reset: run any program of py-zed-open-capture once, or use the driver zed_sdk."
)


class ZedUvcCamera(CapturingCamera):
    """The left eye of a ZED Mini."""

    def __init__(
        self,
        name: str,
        *,
        device: str = "",
        backend: RobotBackend | None = None,
        width: int = 672,
        height: int = 376,
        fps: int = 30,
        white_balance_k: int = 0,
    ) -> None:
        """device: path under /dev (best in /dev/v4l/by-id), or a side-by-side video; empty: the only ZED.

        width, height: of one eye. The serial number and the exposure are out of reach without the SDK.
        Raises RobotConfigError for a size or rate that the camera does not have.
        """
        del backend  # a real camera
        if fps not in _MODES.get((width, height), ()):
            modes = "; ".join(f"{w} x {h} at {'/'.join(map(str, rates))}" for (w, h), rates in _MODES.items())
            raise RobotConfigError(f"a ZED Mini has no {width} x {height} px at {fps} frames/s. It has {modes}.")
        source = _ZedSource(
            device,
            width=width,
            height=height,
            fps=fps,
            white_balance_k=white_balance_k,
            fourcc="YUYV",
            is_side_by_side=True,
            kind="ZED",
            pattern="*ZED*-video-index0",
        )
        super().__init__(name, source, width=width, height=height, frozen_after_s=source.frozen_after_s)


class _ZedSource(OpenCvSource):
    def grab(self) -> Image:
        try:
            return super().grab()
        except RobotError as error:
            raise RobotError(f"{error} {_HINT}") from error
