"""Published weights on disk: the learner's way to its ingest process, and the actor's memory of the last good ones.

Needs no torch. One process writes; any number read, and see a version whole or not at all.
"""

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors

from policy.errors import WeightsError
from policy.files import replace_durably
from policy.text import MAX_REASON, clean

_MAX_HEADER_BYTES = 2 << 20  # room for 20,000 tensors; to read a million of empty ones takes 15 s and 2 GB
_KEPT = 3  # a reader may still be sending the version before


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class TensorInfo:
    """Name, safetensors dtype ("F32") and shape of one tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]


def check_header(data: bytes) -> None:
    """Raise WeightsError for a safetensors file that holds more tensors than a policy can have; reads none of them."""
    header_bytes = int.from_bytes(data[:8], "little")
    if header_bytes > _MAX_HEADER_BYTES:
        raise WeightsError(
            f"{len(data)} bytes are not a safetensors file of a policy: its header would have {header_bytes} bytes, "
            f"above the limit of {_MAX_HEADER_BYTES}"
        )


def tensor_infos(data: bytes) -> tuple[TensorInfo, ...]:
    """Return what a safetensors file holds, sorted by name. Raises WeightsError when it is not one."""
    check_header(data)
    try:
        tensors = safetensors.deserialize(data)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{len(data)} bytes are not a safetensors file: {clean(str(error), MAX_REASON)}") from error
    infos = [TensorInfo(name, tensor["dtype"], tuple(tensor["shape"])) for name, tensor in tensors]
    return tuple(sorted(infos, key=lambda info: info.name))


@dataclass(frozen=True, kw_only=True)
class WeightsManifest:
    """One published version. `sha256` is that of the whole safetensors file."""

    version: int
    learner_step: int
    published_wall_s: float
    file: str
    num_bytes: int
    sha256: str
    tensors: tuple[TensorInfo, ...]


class WeightsStore:
    """A folder of safetensors files, the newest of which `latest.json` names."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._latest_path = directory / "latest.json"
        self._seen = (0, 0)

    def publish(
        self, data: bytes, version: int, learner_step: int, published_wall_s: float | None = None
    ) -> WeightsManifest:
        """Make the safetensors file `data` the newest version; published_wall_s defaults to now.

        Durable when this returns; a crash before leaves the version before. Raises WeightsError when `data` is not a
        safetensors file.
        """
        manifest = WeightsManifest(
            version=version,
            learner_step=learner_step,
            published_wall_s=time.time() if published_wall_s is None else published_wall_s,
            file=f"{version:08d}.safetensors",
            num_bytes=len(data),
            sha256=sha256(data),
            tensors=tensor_infos(data),
        )
        self._directory.mkdir(parents=True, exist_ok=True)
        replace_durably(self._directory / manifest.file, data)
        replace_durably(self._latest_path, json.dumps(asdict(manifest), indent=1).encode())
        self._delete_old(manifest.file)
        return manifest

    def latest(self) -> WeightsManifest | None:
        """Return the newest version's manifest, None before the first. Raises WeightsError when it is unreadable."""
        try:
            raw = json.loads(self._latest_path.read_bytes())
            return WeightsManifest(
                version=int(raw["version"]),
                learner_step=int(raw["learner_step"]),
                published_wall_s=float(raw["published_wall_s"]),
                file=str(raw["file"]),
                num_bytes=int(raw["num_bytes"]),
                sha256=str(raw["sha256"]),
                tensors=tuple(
                    TensorInfo(str(tensor["name"]), str(tensor["dtype"]), tuple(int(size) for size in tensor["shape"]))
                    for tensor in raw["tensors"]
                ),
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise WeightsError(
                f"{self._latest_path} cannot be read: {error}. Remove it; the next publication writes it anew."
            ) from error

    def has_changed(self) -> bool:
        """Whether `latest.json` is another file than when this was last asked. One system call."""
        try:
            status = self._latest_path.stat()
        except OSError:
            return True
        before, self._seen = self._seen, (status.st_ino, status.st_mtime_ns)
        return before != self._seen

    def read(self, manifest: WeightsManifest) -> bytes:
        """Return the file of a version as it is on disk, unverified. Raises WeightsError when it is gone."""
        try:
            return (self._directory / manifest.file).read_bytes()
        except (OSError, ValueError) as error:  # ValueError: no name that a file can have
            raise WeightsError(f"weights version {manifest.version} cannot be read: {error}") from error

    def _delete_old(self, newest: str) -> None:
        """By time, not version: a learner that starts a new run counts from 1 again. A clock may have been set back."""
        others = [path for path in self._directory.glob("*.safetensors") if path.name != newest]
        others.sort(key=lambda path: path.stat().st_mtime_ns)
        for path in others[: 1 - _KEPT]:
            path.unlink()
