"""Errors that a person must act on, and the exit code each one ends a program with.

Every message says what happened with values and units, the limit, the likely cause and what to do.
"""

EXIT_OK = 0
EXIT_CONFIG = 2  # unknown key, bad value, unknown task or backend; the same code as a usage error
EXIT_PORT_IN_USE = 69
EXIT_DIVERGED = 70  # training ran into values that are not finite again and again
EXIT_CORRUPT_FILE = 74  # a checkpoint, weights or log file failed its check
EXIT_RETRY = 75  # out of memory; a new start can help
EXIT_MISMATCH = 76  # learner and actor disagree on protocol, specs or policy architecture
EXIT_INTERRUPTED = 130  # a run with an end of its own was stopped by Ctrl-C; for a service that is a normal end


class CgpoError(Exception):
    """Base of all errors with a message written for the operator."""

    exit_code = 1


class ConfigError(CgpoError):
    """A configuration value is unknown, out of range or contradicts another one."""

    exit_code = EXIT_CONFIG


class WireError(CgpoError):
    """A message does not hold what its schema and the session's specs promise."""

    exit_code = EXIT_MISMATCH


class DamagedRecordError(WireError):
    """A record's checksum is not that of its content: it was damaged after it was made."""


class GapError(WireError):
    """A record does not continue what the log holds of its incarnation."""


class QuarantineFullError(CgpoError):
    """So many records were refused that no more are kept: a person must see to what sends them."""


class SpecMismatchError(CgpoError):
    """Learner and actor were started with different specs or policy architectures."""

    exit_code = EXIT_MISMATCH


class WeightsError(CgpoError):
    """Weights or a checkpoint are corrupt or belong to another architecture; nothing was loaded."""

    exit_code = EXIT_CORRUPT_FILE


class NonFiniteError(WeightsError):
    """A network, its loss or its gradient holds values that are not finite."""


class DivergedError(CgpoError):
    """Training became non-finite again after every roll-back; starting again would end the same way."""

    exit_code = EXIT_DIVERGED


class MemoryExhaustedError(CgpoError):
    """The device's memory did not suffice, twice. What holds it may be gone at the next start."""

    exit_code = EXIT_RETRY


class CorruptFileError(CgpoError):
    """A spool or log on disk is not what this program wrote."""

    exit_code = EXIT_CORRUPT_FILE


class PortInUseError(CgpoError):
    """Another process listens on the requested address."""

    exit_code = EXIT_PORT_IN_USE


def unknown_name(kind: str, name: str, valid: "list[str] | tuple[str, ...]") -> ConfigError:
    """Return the error for a name that is not registered: nearest name first, then all valid ones."""
    import difflib

    nearest = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return ConfigError(f"unknown {kind} {name!r}.{hint} Valid: {', '.join(sorted(valid))}.")
