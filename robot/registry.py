"""Drivers by name, imported when they are chosen and not before: a heavy or missing SDK costs nothing until then."""

import importlib
from collections.abc import Mapping
from typing import Any

from robot.errors import MissingDependencyError, unknown_name


def resolve(kind: str, registry: Mapping[str, str], name: str, extra: str) -> Any:
    """Import and return what `registry[name]`, a "module:Class", points to.

    Raises RobotConfigError for an unknown name (it lists the valid ones) and MissingDependencyError, with the install
    command for the project's `extra`, when a package that the driver needs is not installed.
    """
    if name not in registry:
        raise unknown_name(kind, name, registry)
    module_name, _, class_name = registry[name].partition(":")
    try:
        return getattr(importlib.import_module(module_name), class_name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "robot":
            raise  # our own file is missing: a broken checkout, which no package can mend
        raise MissingDependencyError(
            f"{kind} {name!r} needs the Python package {error.name!r}, which is not installed. "
            f"Install it from the project's folder: pip install -e '.[{extra}]' -c constraints.txt"
        ) from error
