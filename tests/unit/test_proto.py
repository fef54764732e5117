"""The committed protobuf code is what its source generates."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_generated_code_is_up_to_date(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable}
    subprocess.run([ROOT / "launch" / "generate_proto.sh", tmp_path], env=environment, check=True)
    generated = sorted((tmp_path / "cgpo_proto").iterdir())
    assert len(generated) == 3
    for path in generated:
        committed = ROOT / "proto" / "cgpo_proto" / path.name
        assert committed.read_bytes() == path.read_bytes(), f"{path.name}: run launch/generate_proto.sh"
