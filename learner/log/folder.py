"""Where an episode log lies, and the specs beside it without which nothing in it can be read."""

from pathlib import Path

from policy.errors import ConfigError, CorruptFileError, WireError
from policy.spec import Specs

ARCHIVE_NAME = "demonstrations"
"""Folder of an actor's archive: chosen episodes only, so gaps between its sequences are normal."""

_PLACES = ("learner/log.sqlite", "log.sqlite", f"{ARCHIVE_NAME}/log.sqlite")


def find_log(path: Path) -> Path:
    """Return the log file that a path names: itself, or the log of a run's, learner's or actor's folder.

    Raises ConfigError when there is none.
    """
    for candidate in (path / place for place in _PLACES) if path.is_dir() else (path,):
        if candidate.is_file():
            return candidate
    raise ConfigError(
        f"{path}: there is no episode log. Give the folder of a run, of its learner or of an actor's {ARCHIVE_NAME}, "
        "or the file log.sqlite in one of them."
    )


def read_specs(folder: Path) -> Specs:
    """Return the specs of the log in `folder`.

    Raises ConfigError where there are none yet, CorruptFileError for a file that cannot be read.
    """
    path = folder / "specs.json"
    try:
        return Specs.from_json(path.read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(
            f"{folder} has no {path.name}, which says what the records of an episode log hold. Give the folder of a "
            f"learner that an actor has connected to, as runs/NAME/learner, or an actor's {ARCHIVE_NAME}."
        ) from error
    except (OSError, UnicodeDecodeError, WireError) as error:
        raise CorruptFileError(
            f"{path}: {error}. The episode log beside it cannot be read without it: restore it from a backup, or copy "
            "that of a run with the same task and settings."
        ) from error
