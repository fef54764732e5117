"""The link's figures beside a plain scheme and the limits of loopback, in one run.

    python -m benchmarks.link --out benchmarks/results/link.md   # all of it, about ten minutes on a quiet machine
    python -m benchmarks.link --quick                            # whether it runs, not what it comes to
    python -m benchmarks.link --only weights,drain               # these anew; the others as they were measured last

Every section leaves its result in --work, so that a run can be completed or repeated in part; the report says when that
was done. A section that fails is reported as failed, and the others go on.
"""

import argparse
import importlib.metadata
import logging
import shlex
import shutil
import sqlite3
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import torch

from benchmarks.link.bench import Bench
from benchmarks.link.control import control
from benchmarks.link.frozen import frozen
from benchmarks.link.goodput import goodput, size
from benchmarks.link.latency import visibility, weights
from benchmarks.link.many_actors import fairness, load
from benchmarks.link.recovery import drain, recovery
from benchmarks.link.report import Section, target_table
from benchmarks.link.security import tls
from benchmarks.runs import machine
from policy.revision import read_revision

SECTIONS: dict[str, Callable[[Bench], Section]] = {
    "goodput": goodput,
    "size": size,
    "visibility": visibility,
    "weights": weights,
    "control": control,
    "frozen": frozen,
    "recovery": recovery,
    "drain": drain,
    "load": load,
    "fairness": fairness,
    "tls": tls,
}
_PACKAGES = ("grpcio", "protobuf", "numpy", "torch", "safetensors")
_WORK = Path("runs/link_benchmark")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="everything as short as it can be")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, separated by commas (default: all)")
    parser.add_argument("--out", type=Path, help="write the report there, besides printing it")
    parser.add_argument("--work", type=Path, default=_WORK, help="results of each section (default: %(default)s)")
    options = parser.parse_args()
    names = options.only.split(",")
    unknown = sorted(set(names) - set(SECTIONS))
    if unknown:
        parser.error(f"unknown section {', '.join(unknown)}. Valid: {', '.join(SECTIONS)}")
    logging.basicConfig(level=logging.CRITICAL)  # what is killed and frozen here is meant to be
    torch.set_num_threads(1)
    work: Path = options.work / ("quick" if options.quick else "full")
    work.mkdir(parents=True, exist_ok=True)
    if set(names) == set(SECTIONS):  # a whole run is of one piece
        for path in work.glob("*.json"):
            path.unlink()
    has_failed = measure(names, work, is_quick=options.quick)
    text = report(work, is_quick=options.quick)
    print(text)
    if options.out:
        options.out.write_text(text)
    return int(has_failed)


def measure(names: list[str], work: Path, *, is_quick: bool) -> bool:
    """Run sections, each in its own folder on the disk of `work`; return whether one failed."""
    has_failed = False
    folder, revision = Path(tempfile.mkdtemp(prefix="measuring-", dir=work)), read_revision()[:12]
    try:
        for name in names:
            began_s = time.monotonic()
            print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
            try:
                section = SECTIONS[name](Bench(folder / name, is_quick=is_quick))
            except Exception as error:
                traceback.print_exc()
                section = Section(name.capitalize(), failure=f"{type(error).__name__}: {error}")
                has_failed = True
            wall_s = time.monotonic() - began_s
            stamp = f"{revision}, {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC"
            replace(section, stamp=stamp, wall_s=wall_s).save(work / f"{name}.json")
            shutil.rmtree(folder / name, ignore_errors=True)
            print(f"{wall_s:.0f} s", file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return has_failed


def report(work: Path, *, is_quick: bool) -> str:
    """Return the report of every section that has been measured."""
    sections = [Section.load(work / f"{name}.json") for name in SECTIONS if (work / f"{name}.json").exists()]
    stamps = sorted({section.stamp.partition(",")[0] for section in sections})
    versions = [f"{package} {importlib.metadata.version(package)}" for package in _PACKAGES]
    load_1_min, _, _ = psutil.getloadavg()
    parts = [
        "# The link, measured",
        f"`{shlex.join(['python', '-m', 'benchmarks.link', *sys.argv[1:]])}` on {machine()}; {', '.join(versions)}, "
        f"SQLite {sqlite3.sqlite_version}. Spool, log and weights on {_file_system(work)}. Revision "
        f"{', '.join(stamps)}. {sum(section.wall_s for section in sections):.0f} s in all; load average at the end "
        f"{load_1_min:.1f}. Learner and actors share this machine and talk over loopback.",
        "The *link* is what actors and learner use. The *plain scheme* is LeRobot's way of doing the same, restated "
        "in benchmarks/link/baseline.py: whole episodes of float32 images by `torch.save` in 2 MB pieces over gRPC "
        "with its default options, not acknowledged step by step and not durable. *Bare gRPC* and *TCP* move bytes "
        "and do nothing with them.",
        *(["**A quick run: it shows that everything works, and its figures say little.**"] if is_quick else []),
        *_partial_note(sections),
        "## Targets",
        target_table(sections).markdown(),
        *(section.markdown() for section in sections),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _partial_note(sections: list[Section]) -> list[str]:
    """Say so when not all was measured in one go."""
    titles = [f"{section.title}: {section.stamp}" for section in sections]
    if len(sections) == len(SECTIONS) and len({section.stamp.partition(",")[0] for section in sections}) == 1:
        return []
    return ["Not one run of everything: " + "; ".join(titles) + "."]


def _file_system(path: Path) -> str:
    mounts = [part for part in psutil.disk_partitions(all=True) if path.absolute().is_relative_to(part.mountpoint)]
    return max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else "an unknown file system"


if __name__ == "__main__":
    sys.exit(main())
