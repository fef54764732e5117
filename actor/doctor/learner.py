"""The doctor's checks of the learner's machine. They know what both programs share, and nothing of the learner."""

import contextlib
import sqlite3
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from actor.address import parse_address
from actor.doctor.check import Check, Result, failed, judged, ok, refused, short, skipped, warning
from actor.doctor.credentials import check_credentials
from actor.doctor.link import LinkProbe
from actor.doctor.ports import is_port_free, port_holder
from policy.database import open_database
from policy.errors import CgpoError, CorruptFileError

_WARN_FREE_BYTES, _FAIL_FREE_BYTES = 4e9, 1e9  # of GPU memory; the robot preset from images needs about 2.5
_MATMUL_SIZE, _MATMULS = 1024, 10


def learner_checks(address: str, run_dir: Path, credentials: Path | None) -> list[Check]:
    """address: HOST:PORT that the learner is to listen on; credentials: its folder, or none."""

    def check(name: str, run: Callable[[], Result], timeout_s: float = 10.0) -> Check:
        return Check(group="learner", name=name, run=run, timeout_s=timeout_s)

    return [
        check("torch", check_torch, 60.0),
        check("credentials", lambda: check_credentials(credentials, "learner", address)),
        check("port", lambda: check_port(address, credentials)),
        check("episode log", lambda: check_log(run_dir / "log.sqlite"), 60.0),
    ]


def check_torch() -> Result:
    import torch  # seconds

    if not torch.cuda.is_available():
        measured = f"torch {torch.__version__} sees no GPU"
        if torch.version.cuda is None and Path("/dev/nvidia0").exists():
            fix = ".venv/bin/python -m pip install --force-reinstall torch, from an index with CUDA builds"
            return failed(measured, fix=fix, detail="There is an NVIDIA GPU, and this torch was built without CUDA.")
        fix = "nvidia-smi must list one; else train with --device cpu and a small preset"
        return warning(measured, fix=fix, detail="Training runs on the CPU, which is enough without images.")
    free, total = torch.cuda.mem_get_info()
    start_s = time.monotonic()
    matrix = torch.ones(_MATMUL_SIZE, _MATMUL_SIZE, device="cuda")
    for _ in range(_MATMULS):
        matrix = matrix @ matrix * (1.0 / _MATMUL_SIZE)
    is_right = bool((matrix == 1.0).all())
    measured = (
        f"torch {torch.__version__}, CUDA {torch.version.cuda}, {torch.cuda.get_device_name()}, "
        f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free, computes ({time.monotonic() - start_s:.2f} s)"
    )
    if not is_right:
        return failed(measured + " wrongly", fix="nvidia-smi -q -d ECC; update the driver and start the machine again")
    return judged(
        free,
        measured,
        warn=_WARN_FREE_BYTES,
        fail=_FAIL_FREE_BYTES,
        is_low_bad=True,
        limit=f"{_WARN_FREE_BYTES / 1e9:.0f} GB free",
        fix="nvidia-smi names the programs that hold the memory: end them",
    )


def check_port(address: str, credentials: Path | None = None) -> Result:
    host, port = parse_address(address)
    try:
        if is_port_free(port, host):
            return ok(f"{address} is free")
    except OSError as error:
        fix = "ip -brief address lists this machine's: give one of them as --learner HOST:PORT"
        return failed(f"cannot listen on {address}: {error.strerror or error}", fix=fix)
    holder = port_holder(port) or "a process of another user"
    if (revision := _learner_at(address, credentials)) is not None:
        return ok(f"{address}: a learner of {short(revision)} runs there, {holder}")
    return failed(
        f"{address} is held by {holder}",
        limit="free, or a learner",
        fix=f"ss -ltnp 'sport = :{port}' names it: end it, or choose another port on both sides",
    )


def _learner_at(address: str, credentials: Path | None) -> str | None:
    """Return the revision of the learner that answers at `address`; None when it is none."""
    probe = LinkProbe(address, credentials)
    with contextlib.closing(probe):
        try:
            probe.connect()
            return probe.ping().reply.commit
        except Exception:  # whatever it says, it is no learner of ours
            return None


def check_log(path: Path) -> Result:
    """Read the log as a learner would, without changing it."""
    if not path.exists():
        return skipped(f"{path} does not exist yet: a new run")
    fix = f"mv {path} {path}.damaged: the learner starts a new one, and every actor resends what its spool still holds"
    try:
        with contextlib.closing(open_database(path, "", read_only=True)) as database:
            start_s = time.monotonic()
            (count,) = database.execute("SELECT count(*) FROM records").fetchone()
            problem = _find_damage(database)
    except CorruptFileError as error:
        return refused(error, fix=fix)
    except CgpoError as error:
        return refused(error, fix=f"ls -l {path}; lsof {path} names who uses it")
    except sqlite3.DatabaseError as error:
        return failed(f"{path}: {error}", fix=fix)
    measured = f"{path}: {count} records, {path.stat().st_size / 1e6:.1f} MB"
    if problem:
        return failed(f"{measured}; {problem}", fix=fix)
    return ok(f"{measured}, newest ones whole, read in {time.monotonic() - start_s:.2f} s")


def _find_damage(database: sqlite3.Connection) -> str:
    """Return what is wrong with the newest records: those that a crash would have hurt."""
    rows = database.execute("SELECT position, payload, crc32 FROM records ORDER BY position DESC LIMIT 1000")
    for position, payload, crc32 in rows:
        if zlib.crc32(payload) != crc32:
            return f"record {position} is not what was written"
    return ""
