"""Certificates of a day, made by openssl, for tests of TLS."""

from __future__ import annotations

import subprocess
from pathlib import Path

_HERE = "IP:127.0.0.1,DNS:localhost"


class Authority:
    """A certificate authority in a folder: `ca.pem`, and whatever it signs.

    Args:
        folder: for its files.
        name: of its own: "ca" makes ca.key and ca.pem.
    """

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self.folder = folder
        self._name = name
        self._run("req", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-x509",
            "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem")  # fmt: skip

    @property
    def file(self) -> Path:
        """Its own certificate."""
        return self.folder / f"{self._name}.pem"

    def sign(self, name: str, names: str = _HERE, days: int = 1) -> tuple[Path, Path]:
        """Certificate and key, `{name}.pem` and `{name}.key`.

        Args:
            name: of the files, and the certificate's common name.
            names: what it is for, as openssl's subjectAltName.
            days: that it is valid from now on; -1: it has expired.
        """
        (self.folder / "names").write_text(f"subjectAltName={names}")
        self._run("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}",
            "-keyout", f"{name}.key", "-out", f"{name}.csr")  # fmt: skip
        self._run("x509", "-req", "-days", str(days), "-CA", self.file.name,
            "-CAkey", f"{self._name}.key", "-CAcreateserial", "-extfile", "names",
            "-in", f"{name}.csr", "-out", f"{name}.pem")  # fmt: skip
        return self.folder / f"{name}.pem", self.folder / f"{name}.key"

    def _run(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=self.folder)
