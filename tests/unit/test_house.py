"""Rules of the whole repository: no code run from data, pinned dependencies, light imports, sound scripts."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from actor.config import ActorConfig
from learner.config import LearnerConfig
from policy.cli import config_from_preset
from policy.config import load_preset, preset_names

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("actor", "benchmarks", "launch", "learner", "policy", "proto", "robot", "tests")
PYTHON_FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
SCRIPTS = sorted([*(ROOT / "launch").glob("*.sh"), ROOT / ".ci" / "run"])
MARKDOWN_FILES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")])

CODE_RUNNING_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
# On the package index deoxys and pyzed are unrelated packages that shadow the robot's and the camera's, deoxys-control
# is anybody's to claim, and diskcache unpickles its files.
DENIED_PACKAGES = {"deoxys", "deoxys-control", "pyzed", "diskcache"}


def code_from_data(source: str) -> Iterator[str]:
    """Yield each construct in `source` that would run code found in a file or message."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported = {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported = {(node.module or "").partition(".")[0]}
        elif isinstance(node, ast.Call):
            yield from _code_running_call(node)
            continue
        else:
            continue
        for name in sorted(imported & CODE_RUNNING_MODULES):
            yield f"line {node.lineno}: imports {name}"


def _code_running_call(call: ast.Call) -> Iterator[str]:
    name = ast.unparse(call.func)
    arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if name in ("eval", "exec", "builtins.eval", "builtins.exec"):
        yield f"line {call.lineno}: calls {name}"
    if name == "torch.load" and arguments.get("weights_only") != "True":
        yield f"line {call.lineno}: torch.load without weights_only=True"
    if name in ("np.load", "numpy.load") and arguments.get("allow_pickle", "False") != "False":
        yield f"line {call.lineno}: {name} with allow_pickle"
    if name in ("yaml.load", "yaml.unsafe_load", "yaml.full_load") and "Safe" not in arguments.get("Loader", ""):
        yield f"line {call.lineno}: {name}"


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import os, dill",
        "import joblib.numpy_pickle",
        "def f():\n    eval('1')",
        "exec(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text)",
    ],
)
def test_code_from_data_is_recognised(source: str) -> None:
    assert list(code_from_data(source))


@pytest.mark.parametrize(
    "source",
    ["torch.load(path, weights_only=True)", "np.load(path)", "model.eval()", "yaml.load(t, Loader=SafeLoader)"],
)
def test_harmless_lookalikes_are_allowed(source: str) -> None:
    assert not list(code_from_data(source))


def test_no_file_runs_code_found_in_data() -> None:
    assert len(PYTHON_FILES) > 30
    found = [f"{path.relative_to(ROOT)}: {what}" for path in PYTHON_FILES for what in code_from_data(path.read_text())]
    assert found == []


def _constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pin) == 2 for pin in pins), "every line is an exact pin"
    return {_normalised(name): version for name, version in pins}


def _requirements() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    return {_normalised(re.split(r"[\[<>=!~; ]", line)[0]) for line in lines}


def _normalised(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def test_every_dependency_has_an_exact_version() -> None:
    assert _requirements() - set(_constraints()) == set()


def test_denied_packages_are_no_dependency() -> None:
    assert DENIED_PACKAGES & (_requirements() | set(_constraints())) == set()


def denied(distributions: Iterable[importlib.metadata.Distribution]) -> set[str]:
    """Return the denied packages among what is installed from an index; a lab's own Deoxys is from its own folder."""
    return {
        name
        for distribution in distributions
        if (name := _normalised(distribution.name)) in DENIED_PACKAGES
        and distribution.read_text("direct_url.json") is None  # PEP 610: what a folder or repository leaves behind
    }


@pytest.mark.parametrize(("origin", "expected"), [(None, {"diskcache"}), ('{"url": "file:///home/lab"}', set())])
def test_a_denied_package_is_found_where_it_is_installed(
    tmp_path: Path, origin: str | None, expected: set[str]
) -> None:
    folder = tmp_path / "DiskCache-5.6.3.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: DiskCache\nVersion: 5.6.3\n")
    if origin is not None:
        (folder / "direct_url.json").write_text(origin)
    assert denied(importlib.metadata.distributions(path=[str(tmp_path)])) == expected


def test_no_denied_package_is_installed() -> None:
    installed = [*importlib.metadata.distributions()]
    assert len(installed) > 20
    assert denied(installed) == set()


def denied_installs(text: str) -> list[str]:
    """Return what tells a reader or a shell to install a denied package; a sentence that says not to is none."""
    text = re.sub(r"\\\n", " ", text)
    return [
        name
        for found in re.finditer(r"pip3? install ([^`\n#;&|\"']*)", text)
        if not re.search(r"\b(do not|never)\b[^.\n]*$", text[: found.start()], re.IGNORECASE)
        for word in found[1].split()
        if (name := _normalised(re.split(r"[\[<>=!~@]", word)[0])) in DENIED_PACKAGES
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (".venv/bin/python -m pip install -U pyzed", ["pyzed"]),
        ("`pip install 'a'`; pip3 install deoxys_control==1", ["deoxys-control"]),
        ("pip install \\\n  numpy diskcache>=5", ["diskcache"]),
        ("Do not `pip install deoxys` or `pip install pyzed`.", []),
        ("**Never `pip install pyzed`**", []),
        ("Never mind. pip install pyzed", ["pyzed"]),
        ("pip install ./deoxys_control/deoxys", []),
        ("pip uninstall -y deoxys", []),
        ("pip install numpy  # not deoxys", []),
    ],
)
def test_instructions_to_install_are_recognised(text: str, expected: list[str]) -> None:
    assert denied_installs(text) == expected


def test_nobody_is_told_to_install_a_denied_package() -> None:
    files = [path for path in [*PYTHON_FILES, *SCRIPTS, *MARKDOWN_FILES] if path != Path(__file__)]
    files += [*(ROOT / "launch").rglob("*.toml"), ROOT / "pyproject.toml"]
    found = {str(path.relative_to(ROOT)): denied_installs(path.read_text()) for path in files}
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_fits_both_programs(name: str) -> None:
    preset = load_preset(name)
    learner = config_from_preset(LearnerConfig, "learner", preset)
    actor = config_from_preset(ActorConfig, "actor", preset)
    assert learner.policy == actor.policy


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_shell_scripts_parse_and_fail_on_errors(script: Path) -> None:
    checked = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    is_sourced = script.name == "env.sh"
    is_strict = "\nset -euo pipefail\n" in script.read_text() or "\nexec " in script.read_text()
    assert is_sourced or is_strict


@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [
        ("learner.ingest", "torch actor robot ray mujoco"),  # takes data within a second of its start
        ("learner.__main__", "torch actor robot ray mujoco"),
        ("learner.*", "actor robot ray mujoco"),
        ("actor.*", "learner ray mujoco"),
        ("robot.*", "torch grpc cgpo_proto policy learner actor ray mujoco"),
        ("policy.*", "actor learner robot grpc ray mujoco"),
        ("launch.*", "torch grpc ray mujoco"),
    ],
)
def test_importing_stays_light(modules: str, unwanted: str) -> None:
    """A fresh interpreter, because what another test imported would hide a new import. The twin alone has MuJoCo."""
    program = f"""
import importlib, pkgutil, sys
package, _, rest = {modules!r}.partition(".")
names = [{modules!r}]
if rest == "*":
    path = importlib.import_module(package).__path__
    names = [module.name for module in pkgutil.walk_packages(path, package + ".")]
for name in names:
    if not name.startswith("robot.backends.twin."):
        importlib.import_module(name)
sys.exit(" ".join(sorted(set({unwanted!r}.split()) & set(sys.modules))))
"""
    finished = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.stderr.strip() == ""


@pytest.mark.parametrize("path", MARKDOWN_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_link_to_files_that_exist(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text())
    local = [target for target in targets if not re.match(r"[a-z]+:", target)]
    assert [target for target in local if not (path.parent / target).exists()] == []
