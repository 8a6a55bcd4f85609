"""Debian's docker-registry on the loopback interface, with TLS and a login."""

from __future__ import annotations

import json
import re
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import needs
from authority import Authority
from skerry.testing import eventually

BINARY = "docker-registry"
USER, PASSWORD = "boat", "harbour"
_HTPASSWD = f"{USER}:$2b$04$abcdefghijklmnopqrstuuDquYVKNGbM6sPqJTwNHdkN7dQ6zg7dG\n"
"""bcrypt, the only form it takes; of PASSWORD, at the least cost."""

needed = needs.unless(shutil.which(BINARY) is not None, f"needs a registry (apt-get install {BINARY})")


class Running(NamedTuple):
    """A registry.

    Attributes:
        port: on 127.0.0.1.
        ca: file of who vouches for it; empty without TLS.
        password: file of the password of `USER`.
        storage: its folder.
        tls: whom to trust.
    """

    port: int
    ca: str
    password: str
    storage: Path
    tls: ssl.SSLContext

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def forget_sessions(self) -> None:
        """Uploads that are under way are gone, as after a day or a restart elsewhere."""
        for folder in self.storage.glob("**/_uploads"):
            shutil.rmtree(folder)


@contextmanager
def running(room: Path) -> Iterator[Running]:
    """Start one; its files are in `room`."""
    room.mkdir(parents=True, exist_ok=True)
    authority = Authority(room / "tls")
    certificate, key = authority.issue("server", "127.0.0.1")
    (room / "htpasswd").write_text(_HTPASSWD)
    (room / "password").write_text(f"{PASSWORD}\n")
    settings = {
        "version": "0.1",
        "log": {"level": "info", "formatter": "text", "accesslog": {"disabled": True}},
        "storage": {
            "filesystem": {"rootdirectory": str(room / "storage")},
            "delete": {"enabled": True},
            "maintenance": {"uploadpurging": {"enabled": False}},
        },
        "http": {
            "addr": "127.0.0.1:0",
            "secret": "of the tests",
            "tls": {"certificate": str(certificate), "key": str(key)},
        },
        "auth": {"htpasswd": {"realm": "tests", "path": str(room / "htpasswd")}},
    }
    (room / "config.yml").write_text(json.dumps(settings))  # YAML too
    path = room / "registry.log"
    with path.open("w") as log:
        process = subprocess.Popen([BINARY, "serve", str(room / "config.yml")], stdout=log, stderr=log)
    try:
        pattern = re.compile(r"listening on 127\.0\.0\.1:(\d+)")
        eventually(lambda: process.poll() is not None or pattern.search(path.read_text()), 60)
        found = pattern.search(path.read_text())
        assert found, path.read_text()
        yield Running(
            int(found[1]), str(authority.ca), str(room / "password"), room / "storage",
            ssl.create_default_context(cafile=authority.ca),
        )  # fmt: skip
    finally:
        process.terminate()
        process.wait(30)
