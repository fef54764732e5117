"""Resolve "module:Name" registry entries on use, so that a heavy or missing SDK costs nothing until chosen."""

import importlib
from collections.abc import Mapping
from typing import Any

from policy.errors import unknown_name


def resolve(kind: str, registry: Mapping[str, str], name: str) -> Any:
    """Import and return what `registry[name]` points to; raise ConfigError naming the valid choices."""
    if name not in registry:
        raise unknown_name(kind, name, list(registry))
    module_name, _, attribute = registry[name].partition(":")
    return getattr(importlib.import_module(module_name), attribute)
