"""The archive of demonstrations: what people showed stays on the robot's computer until the operator deletes it.

An episode log beside its specs, as a learner's run folder has them, so that `python -m learner --from-log` takes it.
"""

from dataclasses import replace
from pathlib import Path

from policy.episode_log import EpisodeLog
from policy.errors import ConfigError, WireError
from policy.files import make_folder, replace_durably
from policy.log_records import EncodedRecord
from policy.spec import Specs
from policy.spec_differences import spec_differences
from policy.wire import decode_body

_BUSY_TIMEOUT_S = 0.1  # steps wait for their disk meanwhile; whoever has the archive open keeps it as it is


class DemonstrationArchive:
    """The archive in `folder`, which the first demonstration makes. One thread appends."""

    def __init__(self, folder: Path, specs: Specs) -> None:
        """Raises ConfigError when the folder holds demonstrations of other specs."""
        self._folder = folder
        self._specs = specs
        self._log: EpisodeLog | None = None
        self._check_specs()

    def append(self, records: list[EncodedRecord]) -> None:
        """Keep records, durably; those that it has are passed over. Raises CgpoError, OSError or sqlite3.Error."""
        if self._log is None or not self._log_path.exists():  # the operator may delete the folder at any time
            self.close()
            make_folder(self._folder)
            replace_durably(self._folder / "specs.json", self._specs.to_json().encode())
            self._log = EpisodeLog(self._log_path, allows_gaps=True, busy_timeout_s=_BUSY_TIMEOUT_S)
        self._log.append_encoded(map(self._checked, records))

    def _checked(self, record: EncodedRecord) -> EncodedRecord:
        """Let what no learner can use lie beside the log, which could not be read through otherwise."""
        try:
            decode_body(record.payload, self._specs)
        except WireError as error:
            return replace(record, refusal=str(error))
        return record

    def close(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None

    @property
    def _log_path(self) -> Path:
        return self._folder / "log.sqlite"

    def _check_specs(self) -> None:
        path = self._folder / "specs.json"
        if not path.exists():
            return
        try:
            differences = spec_differences(("it", Specs.from_json(path.read_text())), ("this actor", self._specs))
        except (WireError, OSError) as error:
            raise ConfigError(f"{path} cannot be read: {error}. Move the folder away.") from error
        if differences:
            raise ConfigError(
                f"{self._folder} holds demonstrations of another task or its variant: {differences[0]}. Move that "
                "folder to where you keep it, or choose another --run-dir."
            )
