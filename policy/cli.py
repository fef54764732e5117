"""Command lines of the programs: a preset, every configuration field as a flag on top, and errors as exit codes."""

import errno
import logging
import os
import queue
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from logging.handlers import QueueHandler, QueueListener
from typing import Annotated, Any, Generic, TypeVar, cast

import tyro

from policy import config as config_module
from policy import errors
from policy.errors import CgpoError, ConfigError
from policy.text import clean

Config = TypeVar("Config")

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}

_EXIT_CODES = f"""Exit codes:
  {errors.EXIT_OK:3}  finished; learner and actor: also after Ctrl-C
    1  failed; the message says why (--debug adds the traceback)
  {errors.EXIT_CONFIG:3}  unknown option, bad value, unknown task or backend
  {errors.EXIT_PORT_IN_USE:3}  another process listens on the port
  {errors.EXIT_DIVERGED:3}  training became non-finite again after every roll-back
  {errors.EXIT_CORRUPT_FILE:3}  a checkpoint, weights or log file is corrupt
  {errors.EXIT_RETRY:3}  out of memory again and again
  {errors.EXIT_MISMATCH:3}  learner and actor disagree on protocol, specs or policy architecture
  {errors.EXIT_INTERRUPTED:3}  stopped by Ctrl-C: launch/sim.sh reports what there is, an evaluation can go on"""


@dataclass(frozen=True)
class _CommandLine(Generic[Config]):
    config: Annotated[Config, tyro.conf.arg(name="")]
    preset: str = ""
    """Name of a file in launch/presets (without .toml), or the path of one. Flags override its values."""
    debug: bool = False
    """Show the traceback of an error."""


def parse_config(
    cls: type[Config],
    section: str,
    argv: Sequence[str],
    description: str,
    *,
    example: str,
    default_preset: str = "",
    program: str = "",
) -> Config:
    """Build a program's configuration: defaults of `cls`, then the preset's tables, then flags.

    `section` is the program's own table in a preset ("learner"); the table "policy" becomes the field `policy`.
    `program` is its name after "python -m" where that is not the section's.
    Exits with code 2 on an unknown flag and with 0 on --help. Raises ConfigError for a preset or combination of values
    that makes no sense.
    """
    name = _find_preset(argv) or default_preset
    default = config_from_preset(cls, section, config_module.load_preset(name) if name else {})
    line = tyro.cli(
        _CommandLine[cls],  # type: ignore[valid-type]
        prog=f"python -m {program or section}",
        description=help_text(description, example),
        args=list(argv),
        default=_CommandLine(config=default, preset=name),
    )
    return cast(Config, line.config)


def help_text(description: str, example: str) -> str:
    """Return what --help shows above the options."""
    return f"{description}\n\nExample:\n  {example}\n\n{_EXIT_CODES}"


def config_from_preset(cls: type[Config], section: str, preset: config_module.Tables) -> Config:
    """Build `cls` from the tables of a preset. Raises ConfigError naming the nearest valid table or key."""
    for table in preset:
        if table not in config_module.PRESET_TABLES:
            raise errors.unknown_name("preset table", table, config_module.PRESET_TABLES)
    own = preset.get(section, {})
    if "policy" in own:
        raise ConfigError(f"[{section}.policy] in a preset: write the table [policy], learner and actor share it")
    policy = config_module.from_dict(config_module.PolicyConfig, preset.get("policy", {}), "policy.")
    return config_module.from_dict(cls, {**own, "policy": policy}, f"{section}.")


class _CleanFormatter(logging.Formatter):
    """One line per message, whatever other machines put into it. Only a traceback has more."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return clean(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return clean(super().formatException(ei), None, keep="\n")


def run_main(main: Callable[[], int | None]) -> int:
    """Run a program and return its exit code; an error with a message for the operator is shown as that message only.

    Also sets up logging to stderr, which a thread writes: a terminal that somebody has stopped with Ctrl-S must not
    stop whoever has something to say. Use as `sys.exit(run_main(main))`.
    """
    writer = logging.StreamHandler()
    writer.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    lines: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    queued = QueueHandler(lines)
    queued.setFormatter(_CleanFormatter("%(message)s"))  # or basicConfig gives it one, and names come twice
    logging.basicConfig(handlers=[queued], level=logging.INFO)
    listener = QueueListener(lines, writer)
    listener.start()
    try:
        return main() or errors.EXIT_OK
    except CgpoError as error:
        if "--debug" in sys.argv:
            raise
        sys.stderr.write(clean(f"error: {error}\n", None, keep="\n"))
        return error.exit_code
    except BrokenPipeError:  # whoever read our output is gone, as after `--help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at exit
        return 1
    except OSError as error:
        if "--debug" in sys.argv or error.errno not in _NO_ROOM:
            raise
        place = f"cannot write {error.filename}: " if error.filename else ""
        sys.stderr.write(
            clean(f"error: {place}{error.strerror}. Make room there, then start again.\n", None, keep="\n")
        )
        return 1
    finally:
        listener.stop()


def _find_preset(argv: Sequence[str]) -> str:
    """Return the value of the last --preset; tyro needs it before it can show the preset's values as defaults."""
    name = ""
    for index, argument in enumerate(argv):
        if argument.startswith("--preset="):
            name = argument.removeprefix("--preset=")
        elif argument == "--preset":
            if index + 1 == len(argv):
                raise ConfigError(f"--preset needs a name. Valid: {', '.join(config_module.preset_names())}.")
            name = argv[index + 1]
    return name
