"""Where a bundle is: a name that comes with the package, or a folder."""

from __future__ import annotations

from pathlib import Path

from codedinv.errors import BundleError
from codedinv.model.manifest import MANIFEST

_BUNDLED = Path(__file__).parents[1] / "bundles"


def bundled_names() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in _BUNDLED.glob(f"*/{MANIFEST}"))


def find(name_or_folder: str | Path) -> Path:
    """The folder of a bundle.

    Raises:
        BundleError: neither a bundled name nor a folder.
    """
    if isinstance(name_or_folder, str) and name_or_folder in bundled_names():
        return _BUNDLED / name_or_folder
    folder = Path(name_or_folder).expanduser()
    if not folder.is_dir():
        names = ", ".join(bundled_names()) or "none"
        raise BundleError(
            f"no model {str(name_or_folder)!r}: neither a folder nor a bundled name ({names})"
        )
    return folder
