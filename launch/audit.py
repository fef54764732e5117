"""python -m launch.audit: look for known vulnerabilities in the pinned packages, and fail for one nobody has reviewed.

pip-audit asks PyPI's advisories about every line of constraints.txt. By itself it takes a package that the service does
not answer for as harmless; here that is said, and where nothing at all could be asked, that nothing was audited.
"""

import datetime
import json
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policy.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]

_TIMEOUT_S = 180.0  # of the whole audit
_REQUEST_TIMEOUT_S = 15
_MAX_NAMES = 8
_IGNORED = "launch/audit_ignored.toml"
_UNREACHABLE = ("requests.exceptions.", "urllib3.", "ServiceError", "network may be blocking", "no answer within")


@dataclass(frozen=True, kw_only=True)
class Ignored:
    """A vulnerability that somebody has looked at and found harmless here."""

    id: str
    package: str
    reason: str
    review_by: datetime.date

    def __post_init__(self) -> None:
        if not self.id or not self.package or len(self.reason) < 20:
            raise ConfigError(f"{_IGNORED}: {self.id or 'an entry'} needs id, package and a reason")


def read_ignored(path: Path) -> list[Ignored]:
    """Read the reviewed list. Raises ConfigError for an entry that is incomplete."""
    try:
        return [Ignored(**entry) for entry in tomllib.loads(path.read_text()).get("ignored", [])]
    except (TypeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}. Each [[ignored]] has id, package, reason and review_by.") from error


def judge(report: dict[str, Any], ignored: Sequence[Ignored], today: datetime.date) -> tuple[bool, list[str]]:
    """Return whether the audit passes, and what to say. report: pip-audit's JSON."""
    packages = report["dependencies"]
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    if len(skipped) == len(packages):
        return True, [f"NOT AUDITED: the advisory service answered for none of {len(packages)} packages"]
    lines = [f"{len(packages) - len(skipped)} packages audited"]
    if skipped:
        names = ", ".join(skipped[:_MAX_NAMES]) + (", ..." if len(skipped) > _MAX_NAMES else "")
        lines.append(f"NOT AUDITED: {len(skipped)} packages that the service does not know: {names}")
    passes, met = True, set()
    for package in packages:
        for found in package.get("vulns", []):
            ids = {found["id"], *found.get("aliases", [])}
            entry = next((item for item in ignored if item.id in ids and item.package == package["name"]), None)
            text = f"{package['name']} {package['version']}: {found['id']}"
            if entry is None:
                passes = False
                fixed = ", ".join(found.get("fix_versions", [])) or "no version yet"
                lines.append(f"VULNERABLE {text}; fixed in {fixed}. Update constraints.txt, or review it ({_IGNORED})")
                continue
            met.add(entry.id)
            if entry.review_by < today:
                passes = False
                lines.append(f"REVIEW {text}: was to be looked at again by {entry.review_by} ({_IGNORED})")
            else:
                lines.append(f"ignored {text}: {entry.reason}")
    lines += [f"{entry.id} is ignored and no longer found: remove it" for entry in ignored if entry.id not in met]
    return passes, lines


def run_pip_audit(options: Sequence[str]) -> tuple[dict[str, Any] | None, str]:
    """Return pip-audit's report; None where it has none, and its last words."""
    command = [sys.executable, "-m", "pip_audit", "-r", str(ROOT / "constraints.txt"), "--no-deps", "--disable-pip"]
    command += ["--format", "json", "--progress-spinner", "off", "--timeout", str(_REQUEST_TIMEOUT_S), *options]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return None, f"no answer within {_TIMEOUT_S:.0f} s"
    try:
        report: dict[str, Any] = json.loads(ended.stdout)
    except json.JSONDecodeError:
        return None, (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]
    return report, ""


def main(options: Sequence[str]) -> int:
    """options: pip-audit's, such as another --vulnerability-service."""
    ignored = read_ignored(ROOT / _IGNORED)
    report, problem = run_pip_audit(options)
    if report is None:
        is_away = any(words in problem for words in _UNREACHABLE)
        print(f"NOT AUDITED: {'the advisory service cannot be reached' if is_away else 'pip-audit failed'}: {problem}")
        return 0 if is_away else 1
    passes, lines = judge(report, ignored, datetime.date.today())
    print("\n".join(lines))
    return 0 if passes else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
