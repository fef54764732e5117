"""python -m learner.log ls|verify|show|export: look into an episode log, check it, take episodes out of it."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from learner.log.export import Choice, export_hdf5, export_log
from learner.log.folder import find_log
from learner.log.listing import list_log
from learner.log.show import save_images, show_episode, show_quarantine, show_step
from learner.log.source import is_archive, open_source
from learner.log.verify import verify_log
from policy.cli import help_text, run_main
from policy.errors import ConfigError, CorruptFileError
from policy.text import clean

_MAX_RANGE = 1_000_000


@dataclass(frozen=True)
class Ls:
    """List the episodes, and what came from each actor."""

    path: Positional[Path]
    """Folder of a run, of its learner or of an actor's demonstrations; or a file log.sqlite."""
    json: bool = False
    """For programs, with nothing abbreviated."""


@dataclass(frozen=True)
class Verify:
    """Read every row and say what is wrong; exit code 74 if anything is."""

    path: Positional[Path]
    """As for ls."""
    allow_gaps: bool = False
    """Chosen episodes only, as in a copy of an actor's demonstrations: missing sequences are normal."""


@dataclass(frozen=True)
class Show:
    """Show an episode's steps, or one step whole."""

    path: Positional[Path]
    """As for ls."""
    episode: Positional[int] = 0
    """The episode's number, from the first column of ls."""
    step: int | None = None
    """Show only this step, with its observation."""
    images: Path | None = None
    """Write the images of the episode, or of the step, into this folder."""
    quarantine: bool = False
    """Show the records that were refused instead."""


@dataclass(frozen=True)
class Export:
    """Write episodes in robomimic's HDF5 layout, or as a log that --from-log takes."""

    path: Positional[Path]
    """As for ls."""
    out: Positional[Path]
    """New file, with --to-log new folder."""
    episodes: tuple[str, ...] = ()
    """Only these: numbers and ranges from the first column of ls, as 3 7-12."""
    demonstrations: bool = False
    """Only demonstrations."""
    successes: bool = False
    """Only episodes that ended in success."""
    discarded: bool = False
    """Those that the operator discarded as well."""
    to_log: bool = False
    """Write an episode log of the chosen episodes, whole and with their marks."""


Command = (
    Annotated[Ls, tyro.conf.subcommand("ls")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Show, tyro.conf.subcommand("show")]
    | Annotated[Export, tyro.conf.subcommand("export")]
)


def main() -> int:
    command = tyro.cli(
        Command,
        prog="python -m learner.log",
        args=[word for word in sys.argv[1:] if word != "--debug"],  # which run_main looks at
        description=help_text(
            "Look into an episode log, check it, take episodes out of it. Reads only, also while a learner writes.",
            example="python -m learner.log ls runs/first",
        ),
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    match command:
        case Ls():
            with open_source(command.path) as source:
                write(list_log(source, command.json))
        case Verify():
            verify(command)
        case Show():
            show(command)
        case Export():
            export(command)
    return 0


def write(text: str) -> None:
    """Write what is partly a log's own text: a terminal must not obey it."""
    sys.stdout.write(clean(text, None, keep="\n"))


def verify(command: Verify) -> None:
    """Raises CorruptFileError when anything is wrong."""
    path = find_log(command.path)
    report = verify_log(path, allows_gaps=command.allow_gaps or is_archive(path))
    write(report.text())
    if report.problems:
        raise CorruptFileError(
            f"{path}: {report.count} problems, see above. What an actor still has in its spool comes again by itself; "
            "for the rest restore a backup, or start a run in another folder: --from-log refuses what is damaged."
        )


def show(command: Show) -> None:
    """Raises ConfigError for an episode or step that there is not."""
    with open_source(command.path) as source:
        if command.quarantine:
            write(show_quarantine(source))
            return
        if not command.episode:
            raise ConfigError("show which episode? Give its number from the first column of `python -m learner.log ls`")
        (episode,) = source.episodes([command.episode])
        if command.step is None:
            write(show_episode(source, episode))
        else:
            write(show_step(source, episode, command.step))
        if command.images is not None:
            count = save_images(source, episode, command.step, command.images)
            write(f"{count} images in {command.images}\n")


def export(command: Export) -> None:
    """Raises ConfigError when nothing was chosen or it cannot be written."""
    choice = Choice(
        parse_numbers(command.episodes), command.demonstrations, command.successes, with_discarded=command.discarded
    )
    with open_source(command.path) as source:
        export_to = export_log if command.to_log else export_hdf5
        write(export_to(source, choice, command.out))


def parse_numbers(words: Sequence[str]) -> frozenset[int]:
    """Return the numbers that words like 3 and 7-12 name. Raises ConfigError."""
    numbers: set[int] = set()
    for word in words:
        match = re.fullmatch(r"([1-9]\d*)(?:-([1-9]\d*))?", word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last or last - first > _MAX_RANGE:
            raise ConfigError(f"--episodes {word}: give numbers from the first column of ls and ranges, as 3 7-12")
        numbers.update(range(first, last + 1))
    return frozenset(numbers)


if __name__ == "__main__":
    sys.exit(run_main(main))
