"""Packages that only the benchmarks need, so that a plain installation may be without them."""

import importlib.util

from policy.errors import ConfigError


def require(*names: str) -> None:
    """Raise ConfigError, saying how to install them, unless all packages can be imported."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed. Run launch/setup.sh sim, "
            "or pip install -c constraints.txt -e .[sim]."
        )
