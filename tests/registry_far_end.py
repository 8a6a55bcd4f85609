"""A registry of one layout on the loopback interface, which can be asked for logins, and can lie."""

from __future__ import annotations

import base64
import json
import ssl
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Literal

from file_server import FileServer

USER, PASSWORD = "boat", "harbour"
BASIC = f"Basic {base64.b64encode(f'{USER}:{PASSWORD}'.encode()).decode()}"


class RegistryFarEnd(FileServer):
    """Serves a layout as the repository `models/tiny`, read only.

    Args:
        layout: its folder.
        context: of a server with TLS.

    Attributes:
        tags: what each leads to, a digest of 64 hexadecimal digits or the name of a file.
        manifests: digests that are not served as blobs.
        login: what it wants.
        token: what it takes, where it wants one; exchanged at `/token`.
        realm: where it says that tokens are.
    """

    def __init__(self, layout: Path, context: ssl.SSLContext | None = None) -> None:
        super().__init__(layout, context)
        self.tags: dict[str, str] = {"latest": "index.json"}
        self.manifests: set[str] = set()
        self.login: Literal["none", "basic", "token", "unsaid"] = "none"
        self.token = "t-1"
        self.given = b""
        self.realm = f"{self.url}/token"

    def _path(self, folder: Path, asked: str) -> Path:
        _, _, what = asked.partition("/v2/models/tiny/")
        where, _, reference = what.partition("/")
        digest = reference.removeprefix("sha256:")
        blob = folder / "blobs" / "sha256" / digest
        if where == "blobs" and digest not in self.manifests:
            return blob
        if where == "manifests" and reference in self.tags:
            name = self.tags[reference]
            return folder / name if name.endswith(".json") else blob.with_name(name)
        if where == "manifests" and digest in self.manifests:
            return blob
        return folder / "none"

    def _refused(self, request: BaseHTTPRequestHandler) -> bool:
        said = request.headers.get("Authorization", "")
        if request.path.startswith("/token"):
            if said != BASIC:
                return self._say(request, 401, b'{"errors":[{"code":"UNAUTHORIZED"}]}')
            return self._say(request, 200, self.given or json.dumps({"token": self.token}).encode())
        wanted = {"basic": BASIC, "token": f"Bearer {self.token}", "unsaid": "never"}.get(self.login, said)
        if said == wanted:
            return False
        challenge = {
            "basic": 'Basic realm="here"',
            "token": f'Bearer realm="{self.realm}",service="far",scope="repository:models/tiny:pull"',
        }.get(self.login)
        return self._say(request, 401, b'{"errors":[{"code":"UNAUTHORIZED"}]}', challenge)

    def _say(
        self, request: BaseHTTPRequestHandler, status: int, body: bytes, challenge: str | None = None
    ) -> bool:
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        if challenge:
            request.send_header("WWW-Authenticate", challenge)
        request.end_headers()
        request.wfile.write(body)
        return True
