"""The doctor's checks of the machine itself: packages, clocks, limits and disk. Nothing heavy is imported."""

import ctypes
import importlib.metadata
import importlib.util
import os
import re
import resource
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

from actor.doctor.check import TIMEOUT_S, Check, Percentiles, Result, failed, judged, ok, short, skipped, warning
from policy.files import write_durably
from policy.grpc_options import PROTOCOL_VERSION

ROOT = Path(__file__).resolve().parents[2]

_WARN_FREE_BYTES, _FAIL_FREE_BYTES = 10e9, 1e9
_FSYNC_BYTES, _FSYNC_COUNT = 100 * 1024, 50
_WARN_FSYNC_MS, _FAIL_FSYNC_MS = 100.0, 1000.0
_RT_PRIORITY = 99  # what libfranka asks for
_RT_MEMLOCK_BYTES = 102_400 * 1024  # libfranka's documentation of its real-time set-up
_STA_UNSYNC = 0x0040  # linux/timex.h


def system_checks(group_of_packages: Sequence[str], run_dir: Path, revision: str) -> list[Check]:
    """group_of_packages: the extras that the program needs. revision: of our own code."""

    def check(name: str, run: Callable[[], Result], timeout_s: float = TIMEOUT_S) -> Check:
        return Check(group="system", name=name, run=run, timeout_s=timeout_s)

    return [
        check("python", lambda: check_python(sys.version_info[:3])),
        check("packages", lambda: check_packages(ROOT, group_of_packages)),
        check("namesakes", check_namesakes),
        check("revision", lambda: check_revision(revision)),
        check("cpu governor", lambda: check_governor(Path("/sys/devices/system/cpu"))),
        check("real time", lambda: check_real_time(Path("/sys/kernel/realtime"), os.uname().version)),
        check("disk", lambda: check_disk(run_dir)),
        check("fsync", lambda: check_fsync(run_dir), 60.0),
        check("clock", check_clock),
    ]


def check_python(version: tuple[int, int, int] | tuple[int, ...]) -> Result:
    text = ".".join(map(str, version))
    if (3, 11) <= tuple(version[:2]) <= (3, 12):
        return ok(f"Python {text}", limit="3.11 or 3.12")
    fix = "sudo apt-get install python3.11 python3.11-venv; rm -rf .venv; PYTHON=python3.11 launch/setup.sh robot sim"
    return failed(f"Python {text}", limit="3.11 or 3.12", fix=fix)


def check_packages(root: Path, extras: Sequence[str]) -> Result:
    """Compare what is installed with constraints.txt: what the extras need must be there, in those versions."""
    try:
        project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
        pins = _read_pins((root / "constraints.txt").read_text())
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        return skipped(f"no checkout to compare with: {error}")
    needed = list(project["dependencies"])
    for extra in extras:
        needed += project["optional-dependencies"][extra]
    names = {_normalised(re.split(r"[\[<>=!~; ]", line)[0]) for line in needed}
    installed = {name: _installed_version(name) for name in names | pins.keys()}
    missing = sorted(name for name in names if installed[name] is None)
    others = sorted(
        f"{name} {version} (pinned {pins[name]})"
        for name, version in installed.items()
        if version is not None and name in pins and version.split("+")[0] != pins[name]
    )
    fix = f"rm -f .venv/setup.stamp; launch/setup.sh {' '.join(extras)}"
    limit = "constraints.txt"
    if missing:
        return failed(f"{len(missing)} missing: {', '.join(missing)}", limit=limit, fix=fix, detail="\n".join(others))
    if others:
        return warning(f"{len(others)} in another version: {', '.join(others)}", limit=limit, fix=fix)
    return ok(f"{len(names)} needed packages as pinned, torch {installed.get('torch')}", limit=limit)


def _read_pins(text: str) -> dict[str, str]:
    lines = (line.strip() for line in text.splitlines())
    pairs = (line.split("==", 1) for line in lines if "==" in line and not line.startswith("#"))
    return {_normalised(name): version for name, version in pairs}


def _normalised(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def _installed_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_namesakes() -> Result:
    """On the package index, `deoxys` and `pyzed` are strangers that shadow the robot's and the camera's."""
    found = [name for name, part in (("deoxys", "franka_interface"), ("pyzed", "sl")) if _is_namesake(name, part)]
    if not found:
        return ok("no stranger named deoxys or pyzed is installed")
    return failed(
        f"{' and '.join(found)} from the package index: not the robot's, not the camera's",
        fix=f".venv/bin/python -m pip uninstall -y {' '.join(found)}",
        detail="docs/robot_setup.md has where the real ones come from; neither is needed for the defaults.",
    )


def _is_namesake(name: str, part: str) -> bool:
    """Whether a package `name` is installed that has no module `part`; nothing is imported."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:  # None: a mere folder of that name, such as Deoxys' files here
        return False
    folders = spec.submodule_search_locations or []
    return not any(next(Path(folder).glob(f"{part}*"), None) for folder in folders)


def check_revision(revision: str) -> Result:
    measured = f"{short(revision)}, protocol version {PROTOCOL_VERSION}"
    if not revision:
        fix = "git status, in this folder: git says why it cannot tell"
        return warning(measured, fix=fix, detail="The commits of both machines cannot be compared.")
    if revision.endswith("-dirty"):
        fix = "git status; then git commit -a, on a branch of your own"
        return warning(measured, fix=fix, detail="Files differ from the commit: a run cannot be repeated from it.")
    return ok(measured)


def check_governor(cpus: Path) -> Result:
    governors = [path.read_text().strip() for path in sorted(cpus.glob("cpu[0-9]*/cpufreq/scaling_governor"))]
    if not governors:
        return skipped("this machine sets its own clock rate (a virtual machine, or no cpufreq driver)")
    slow = [name for name in governors if name != "performance"]
    if not slow:
        return ok(f"performance on all {len(governors)} cores")
    return warning(
        f"{', '.join(sorted(set(slow)))} on {len(slow)} of {len(governors)} cores",
        limit="performance",
        detail="The clock falls between two control steps and takes milliseconds to rise.",
        fix="sudo cpupower frequency-set -g performance",
    )


def check_real_time(realtime: Path, kernel: str) -> Result:
    """Only a machine that runs libfranka needs real time; a machine set up for it must be so in full."""
    is_real_time = "PREEMPT_RT" in kernel or (realtime.exists() and realtime.read_text().strip() == "1")
    priority, memory = resource.getrlimit(resource.RLIMIT_RTPRIO)[1], resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    measured = (
        f"{'PREEMPT_RT' if is_real_time else 'ordinary'} kernel {os.uname().release}, rtprio "
        f"{_limit_text(priority)}, memlock {_limit_text(memory, 1024)} KiB"
    )
    limit = f"rtprio {_RT_PRIORITY}, memlock {_RT_MEMLOCK_BYTES // 1024} KiB"
    if not is_real_time:
        return ok(measured, detail="This program needs no real time. The NUC with Deoxys does.")
    if _is_at_least(priority, _RT_PRIORITY) and _is_at_least(memory, _RT_MEMLOCK_BYTES):
        return ok(measured, limit=limit)
    lines = f"@realtime - rtprio {_RT_PRIORITY}\\n@realtime - memlock {_RT_MEMLOCK_BYTES // 1024}\\n"
    return warning(
        measured,
        limit=limit,
        detail="A real-time kernel whose user may not use it: libfranka would refuse to start here.",
        fix=f"sudo groupadd -f realtime; sudo usermod -aG realtime $USER; printf '{lines}' | sudo tee "
        "/etc/security/limits.d/realtime.conf; then log in again",
    )


def _is_at_least(value: int, wanted: int) -> bool:
    return value == resource.RLIM_INFINITY or value >= wanted


def _limit_text(value: int, unit: int = 1) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value // unit)


def existing_folder(path: Path) -> Path:
    """Return `path`, or the nearest folder above it that exists."""
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path


def check_disk(run_dir: Path) -> Result:
    folder = existing_folder(run_dir)
    if not os.access(folder, os.W_OK | os.X_OK):
        return failed(f"{folder} cannot be written to", fix=f"sudo chown -R $USER {folder}, or choose --run-dir")
    free = shutil.disk_usage(folder).free
    return judged(
        free,
        f"{free / 1e9:.1f} GB free for {run_dir}",
        warn=_WARN_FREE_BYTES,
        fail=_FAIL_FREE_BYTES,
        is_low_bad=True,
        limit=f"{_WARN_FREE_BYTES / 1e9:.0f} GB",
        fix=f"du -xh {folder} | sort -h | tail, and delete or move what is old; or choose --run-dir on another disk",
    )


def check_fsync(run_dir: Path) -> Result:
    durations_s: list[float] = []
    data = os.urandom(_FSYNC_BYTES)
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=existing_folder(run_dir)) as folder:
            for count in range(_FSYNC_COUNT):
                start_s = time.monotonic()
                write_durably(Path(folder) / str(count), data)
                durations_s.append(time.monotonic() - start_s)
    except OSError as error:
        return failed(f"{error.strerror}: {error.filename}", fix="choose --run-dir on a disk that takes files")
    figures = Percentiles.of(durations_s)
    return judged(
        figures.p99,
        f"{figures} ({_FSYNC_COUNT} times {_FSYNC_BYTES // 1024} KiB)",
        warn=_WARN_FSYNC_MS,
        fail=_FAIL_FSYNC_MS,
        limit=f"p99 {_WARN_FSYNC_MS:.0f} ms",
        detail="Each step is safe that much later; the control loop does not wait for it.",
        fix="iostat -x 1 names what keeps the disk busy; or choose --run-dir on a local SSD, no network share",
    )


class _Timex(ctypes.Structure):
    """struct timex of linux/timex.h as far as it is read here, and room for the rest."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),  # us
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 256),
    )


def check_clock() -> Result:
    """Ask the kernel whether something keeps its clock right, whichever program that is."""
    timex = _Timex()
    if ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex)) < 0:
        return skipped(f"the kernel does not tell: {os.strerror(ctypes.get_errno())}")
    return judge_clock(is_synchronised=not timex.status & _STA_UNSYNC, error_s=timex.maxerror * 1e-6)


def judge_clock(*, is_synchronised: bool, error_s: float) -> Result:
    """error_s: the kernel's own bound, which grows between two corrections and says little."""
    if is_synchronised:
        return ok(f"kept right by a time service (error bound {error_s * 1e3:.3g} ms)")
    return warning(
        "nothing keeps it right",
        limit="synchronised",
        detail="Times in logs and the age of weights depend on it; control does not.",
        fix="sudo timedatectl set-ntp true",
    )
