"""What is said where an imported `deoxys` is no Deoxys; the one on PyPI: tests/contract/test_deoxys.py."""

import sys
from pathlib import Path

import pytest

from robot.backends.deoxys.franka_interface import find_interface_class
from robot.errors import MissingDependencyError


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that Python imports from, before all others, and no deoxys imported yet."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "deoxys"]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def test_a_folder_of_that_name_is_no_package(site: Path) -> None:
    (site / "deoxys").mkdir()
    (site / "deoxys" / "network.yml").write_text("PC: {}\n")
    with pytest.raises(MissingDependencyError, match=r"needs Deoxys, which is missing.*interface = \"wire\""):
        find_interface_class()
    sys.modules.pop("deoxys", None)


def test_a_deoxys_that_cannot_be_imported_says_what_it_lacks(site: Path) -> None:
    (site / "deoxys").mkdir()
    (site / "deoxys" / "__init__.py").write_text("")
    (site / "deoxys" / "franka_interface.py").write_text("import asyncore_of_old\n")
    with pytest.raises(MissingDependencyError, match="asyncore_of_old"):
        find_interface_class()
    for name in ("deoxys", "deoxys.franka_interface"):
        sys.modules.pop(name, None)
