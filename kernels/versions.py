"""Which releases a measurement was made with, and whether it speaks for those installed here."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version

# Both compile or choose kernels, so a time or a tile is theirs. The driver is recorded for the
# reader only: it neither compiles nor chooses.
DECIDING = ("torch", "triton")


@cache
def installed() -> dict[str, str | None]:
    """Versions of what decides here; None for what is not installed."""
    found: dict[str, str | None] = {}
    for package in DECIDING:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def release(number: str | None) -> str | None:
    """ "3.7" of "3.7.1", "2.13" of "2.13.0+cu130"."""
    return None if number is None else ".".join(number.partition("+")[0].split(".")[:2])


def speaks_here(measured: Mapping[str, str | None] | None) -> bool:
    """Whether a measurement made with these versions counts here: where torch and Triton are of
    the same releases, but for the patch."""
    if measured is None:
        return False
    here = installed()
    return all(
        measured.get(package) is not None and release(measured[package]) == release(here[package])
        for package in DECIDING
    )
