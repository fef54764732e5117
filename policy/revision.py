"""Which revision of this project is running."""

import subprocess
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_TIMEOUT_S = 5.0


def read_revision(folder: Path = _ROOT) -> str:
    """Return the commit checked out in `folder`, with "-dirty" after it where files differ; empty if there is none."""
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        described = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):  # no git, no repository, or another user's
        return ""
    return described.stdout.strip()
