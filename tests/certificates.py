"""An authority, and certificates that are good or bad in one way each, made by openssl."""

import shutil
import subprocess
from pathlib import Path

import needs

openssl = needs.unless(shutil.which("openssl") is not None, "needs the openssl program")


def make(folder: Path) -> Path:
    """Make the files and return their folder.

    `ca` and `other` are authorities. `server` (for localhost) and `client` are signed by `ca`;
    `server-other` and `client-other` by `other`; `server-old` and `client-old` have expired. A key is
    named like its certificate, up to the dash.
    """
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    for name in ("ca", "other"):
        files = ["-keyout", f"{name}.key", "-out", f"{name}.pem"]
        _run(folder, "req", "-x509", *new, *files, "-subj", f"/CN={name}", "-days", "2")
    for name, extra in (
        ("server", "subjectAltName=DNS:localhost"),
        ("client", "extendedKeyUsage=clientAuth"),
    ):
        _run(folder, "req", *new, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (folder / f"{name}.ext").write_text(extra)
        for suffix, authority, days in (("", "ca", "2"), ("-other", "other", "2"), ("-old", "ca", "-1")):
            files = ["-in", f"{name}.csr", "-out", f"{name}{suffix}.pem", "-extfile", f"{name}.ext"]
            sign = ["-CA", f"{authority}.pem", "-CAkey", f"{authority}.key", "-CAcreateserial"]
            _run(folder, "x509", "-req", *files, *sign, "-days", days)
    return folder


def _run(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)
