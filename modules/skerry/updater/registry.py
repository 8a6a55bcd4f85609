"""Packages and their signed metadata in an OCI registry.

What a registry says is believed as far as to look there: a blob is asked for by its sha256, and whoever
asked compares it. A tag leads to an index of packages and metadata, to metadata alone, or to one package.

Source: OCI Distribution Specification 1.1, "Pull"; Distribution's token authentication specification;
RFC 9110, sections 11 and 15.4 (logins, redirects).
"""

from __future__ import annotations

import base64
import http.client
import json
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple
from urllib.parse import urlencode

from skerry.errors import ConfigError, LinkDown, PackageError, Unavailable
from skerry.models import artifacts, oci
from skerry.models.oci import Blob
from skerry.secret_file import line
from skerry.trust.sources import METADATA
from skerry.updater.fetch import NotThere
from skerry.updater.http_folder import content, ranged
from skerry.updater.metadata import WITHIN_S, check_plain_name
from skerry.updater.web import Address, Web, address, check_name, check_plain, pieces, refuse, whole

MOST_REDIRECTS = 5
ANY_MANIFEST = f"{oci.MANIFEST_TYPE}, {oci.INDEX_TYPE}"
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*")
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_CHALLENGE = re.compile(r'(?i)\b(basic|bearer)\s+((?:[a-z_]+\s*=\s*(?:"[^"]*"|[^\s",]+)\s*,?\s*)*)')
_PARAMETER = re.compile(r'(?i)([a-z_]+)\s*=\s*(?:"([^"]*)"|([^\s",]+))')
_CODE = re.compile(rb'"code"\s*:\s*"([A-Z_]{1,40})"')
_TOKEN = re.compile(r"[!-~]{1,65536}")
_TOKEN_BYTES = 128 * 1024

Body = Callable[[], Iterable[bytes]]
"""Of a request, in pieces; made anew for each attempt."""


class Answered(NamedTuple):
    """The answer to a request, after logins and redirects.

    Attributes:
        head: status and headers, and the body to read.
        where: who gave it.
    """

    head: http.client.HTTPResponse
    where: Address


class Login:
    """Who asks. Files are read whenever they are needed.

    Args:
        username: empty: nobody in particular.
        password_file: of `username`.
        token_file: a token that the registry itself takes.

    Raises:
        ConfigError: a file cannot be read or is not one line.
    """

    def __init__(self, username: str = "", password_file: str = "", token_file: str = "") -> None:
        if bool(username) != bool(password_file):
            raise ConfigError("expected username and password_file together, got one of them")
        if ":" in username:
            raise ConfigError("username: expected one without a colon")
        self._username = username
        self._password_file = password_file
        self._token_file = token_file
        self._basic()
        self._token()

    def __bool__(self) -> bool:
        return bool(self._username or self._token_file)

    @property
    def basic(self) -> str:
        """For `Authorization`; empty where there is no user."""
        try:
            return self._basic()
        except ConfigError as error:  # it was there when this began: an exchange may be under way
            raise Unavailable(str(error)) from error

    @property
    def token(self) -> str:
        """For `Authorization`; empty where there is no token."""
        try:
            return self._token()
        except ConfigError as error:  # as above
            raise Unavailable(str(error)) from error

    def _basic(self) -> str:
        if not self._username:
            return ""
        pair = f"{self._username}:{line('password_file', self._password_file)}"
        return f"Basic {base64.b64encode(pair.encode()).decode()}"

    def _token(self) -> str:
        return f"Bearer {line('token_file', self._token_file)}" if self._token_file else ""


class Registry:
    """One repository of a registry.

    Args:
        url: of the registry, http or https, without a path.
        repository: its name there.
        web: how it is asked.
        login: who asks.

    Raises:
        ConfigError: there is no such address or name, or the login would go over a line that others read.
    """

    def __init__(self, url: str, repository: str, web: Web, login: Login | None = None) -> None:
        self._base = address(url)
        if self._base.target.strip("/"):
            raise ConfigError(f"{self._base.shown}: expected the registry alone, got a path")
        if not REPOSITORY.fullmatch(repository) or len(repository) > 255:
            raise ConfigError(
                f"{self._base.shown}: expected a repository of small letters, digits and . _ - /, "
                f"got {repository[:80]!r}"
            )
        self._login = login or Login()
        if self._login and not self._base.keeps_secrets:
            raise ConfigError(f"{self._base.shown}: expected https where there is a login, got http")
        self._web = web
        self._proof = ""
        self._prefix = f"/v2/{repository}/"
        self.where = f"{self._base.base}/{repository}"

    def by(self, seconds: float) -> float:
        """The end of so many seconds from now, for `ask`."""
        return self._web.by(seconds)

    def at(self, path: str) -> Address:
        """An address in this repository, e.g. of `manifests/latest`."""
        return self._base.joined(f"{self._prefix}{path}")

    @contextmanager
    def ask(
        self, method: str, where: Address, most: int, *, good: Iterable[int] = (200,),
        headers: Mapping[str, str] | None = None, until: float | None = None, body: Body | None = None,
    ) -> Iterator[Answered]:  # fmt: skip
        """The answer to one request, once who asks is known and it was followed to where it is.

        Args:
            method: GET and HEAD are followed elsewhere, others are not.
            where: `at`, or where the registry said.
            most: bytes of a good body.
            good: statuses that are returned; any other is an error.
            headers: of the request.
            until: when it has to be over, as `by` gives it.
            body: of the request.

        Raises:
            NotThere: there is no such thing.
            LinkDown: try later.
            Unavailable: it wants another login, or leads astray.
            PackageError: the answer has no end.
        """
        redirects, proved = 0, False
        while True:
            own = where.origin == self._base.origin
            sent = {**(headers or {}), **({"Authorization": self._proof} if own and self._proof else {})}
            with self._web.ask(
                method, where, sent, most, until=until, body=None if body is None else body()
            ) as answer:
                if answer.status == 401 and own and not proved:
                    challenge = ", ".join(answer.headers.get_all("WWW-Authenticate") or ())[:4096]
                elif answer.status in _REDIRECTS and method in ("GET", "HEAD"):
                    redirects += 1
                    where = self._followed(answer, where, redirects)
                    continue
                elif answer.status in good:
                    yield Answered(answer, where)
                    return
                else:
                    refuse(answer, where.shown, _said(answer))
            self._proof, proved = self._proven(challenge, where, until), True

    def _followed(self, answer: http.client.HTTPResponse, where: Address, redirects: int) -> Address:
        location = answer.headers.get("Location", "")
        if redirects > MOST_REDIRECTS:
            raise Unavailable(f"{where.shown}: expected at most {MOST_REDIRECTS} redirects, got more")
        if not location:
            raise Unavailable(f"{where.shown}: expected where it is, got {answer.status} without a Location")
        return where.elsewhere(location)

    def _proven(self, challenge: str, where: Address, until: float | None) -> str:
        """For `Authorization`, as the registry wants it."""
        if token := self._login.token:
            return token
        for scheme, parameters in _CHALLENGE.findall(challenge):
            said = {name.lower(): quoted or plain for name, quoted, plain in _PARAMETER.findall(parameters)}
            if scheme.lower() == "bearer" and said.get("realm"):
                return self._fetched(said, where, until)
            if scheme.lower() == "basic" and (basic := self._login.basic):
                return basic
        raise Unavailable(
            f"{where.shown}: expected it, got 401 (it wants a login: username and password_file)"
        )

    def _fetched(self, said: Mapping[str, str], where: Address, until: float | None) -> str:
        """A token from whom the registry trusts with logins."""
        realm = where.elsewhere(said["realm"])
        basic = self._login.basic
        if basic and not realm.keeps_secrets:
            raise Unavailable(f"{realm.shown}: expected https where a login goes, got http")
        query = urlencode({name: said[name] for name in ("service", "scope") if said.get(name)})
        glue = "&" if "?" in realm.target else "?"
        asked = realm.joined(f"{realm.target}{glue}{query}" if query else realm.target)
        headers = {"Authorization": basic} if basic else {}
        with self._web.ask("GET", asked, headers, _TOKEN_BYTES, until=until) as answer:
            if answer.status != 200:
                refuse(answer, f"{asked.shown}: a token", _said(answer))
            raw = whole(answer, _TOKEN_BYTES, asked.shown)
        try:
            found = json.loads(raw.decode())
            token = found.get("token") or found["access_token"]
            if not _TOKEN.fullmatch(token):
                raise ValueError
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            # Without the cause: it may show the token.
            raise Unavailable(f"{asked.shown}: expected a token, got something else") from None
        return f"Bearer {token}"

    # What a registry has

    def manifest(self, reference: str, most: int, until: float | None = None) -> bytes:
        """A manifest or index by tag or digest, not verified.

        Args:
            reference: a tag, or `sha256:` and 64 hexadecimal digits.
            most: bytes that it may have.
            until: as `ask` has it.

        Raises:
            As `ask`; PackageError: it is larger.
        """
        where = self.at(f"manifests/{reference}")
        with self.ask("GET", where, most, headers={"Accept": ANY_MANIFEST}, until=until) as (answer, _):
            check_plain(answer, where.shown)
            return whole(answer, most, where.shown)

    def blob(self, blob: Blob, start: int, until: float | None = None) -> Generator[bytes, None, None]:
        """The content of a blob or manifest from a byte on, in pieces, not verified; it may end early.

        Raises:
            As `ask`; PackageError: its size is another.
        """
        try:
            yield from self._content(f"blobs/sha256:{blob.digest}", blob, start, until)
        except NotThere:
            # Who asks by digest need not know whether it is a manifest, and a registry keeps those apart.
            if blob.size > oci.MANIFEST_BYTES:
                raise
            yield from self._content(f"manifests/sha256:{blob.digest}", blob, start, until)

    def _content(
        self, path: str, blob: Blob, start: int, until: float | None
    ) -> Generator[bytes, None, None]:
        where = self.at(path)
        headers = {**ranged(start), "Accept": f"{ANY_MANIFEST}, */*"}
        good = (200, 206) if start else (200,)
        with self.ask("GET", where, blob.size, good=good, headers=headers, until=until) as (answer, _):
            check_plain(answer, where.shown)
            yield from content(answer, blob, start, where.shown)


class RegistrySource:
    """A layout in a repository of a registry.

    Args:
        registry: the repository.
        tag: leads to an index, or to one package.
    """

    def __init__(self, registry: Registry, tag: str) -> None:
        check_tag(tag)
        self.where = registry.where
        self._registry = registry
        self._tag = tag

    def document(self, name: str, most: int) -> bytes:
        check_name(name, self.where)
        if name == oci.LAYOUT_FILE:
            return oci.LAYOUT
        if name == oci.INDEX_FILE:
            return as_index(self._registry.manifest(self._tag, most), f"{self.where}:{self._tag}")
        folder, _, plain = name.rpartition("/")
        found = RegistryMetadata(self._registry, self._tag).read(plain, most) if folder == METADATA else None
        if found is None:
            raise NotThere(
                f"{self.where}/{name}: expected it, got nothing of that name (is the copy complete?)"
            )
        if len(found) > most:
            raise PackageError(f"{self.where}/{name}: expected at most {most} bytes, got more")
        return found

    def blob(self, blob: Blob, start: int) -> Generator[bytes, None, None]:
        yield from self._registry.blob(blob, start)


class RegistryMetadata:
    """Signed metadata in a repository of a registry.

    Args:
        registry: the repository.
        tag: leads to it, or to an index that does.
        within_s: seconds that one document may take in all.
    """

    def __init__(self, registry: Registry, tag: str, within_s: float = WITHIN_S) -> None:
        check_tag(tag)
        self._registry = registry
        self._tag = tag
        self._within_s = within_s
        self._where = f"{registry.where}:{tag}"
        self._known: tuple[str, dict[str, Blob]] = "", {}

    def read(self, name: str, most: int) -> bytes | None:
        """As `skerry.trust.sources.Source` has it."""
        check_plain_name(name, self._where)
        until = self._registry.by(self._within_s)
        blob = self.files(until).get(name)
        if blob is None:
            return None
        found = bytearray()
        for piece in self._registry.blob(blob, 0, until):
            found += piece
            if len(found) > most:
                return bytes(found[: most + 1])
        if len(found) < blob.size:
            raise LinkDown(f"{self._where}: {name}: expected {blob.size} bytes, got {len(found)} (try again)")
        oci.check_digest(bytes(found), blob.digest, f"{self._where}: {name}")
        return bytes(found)

    def files(self, until: float | None = None) -> dict[str, Blob]:
        """What there is now, by name.

        Raises:
            As `Registry.ask`; PackageError: what the tag leads to is something else.
        """
        raw = self._registry.manifest(self._tag, oci.INDEX_BYTES, until)
        if self._tag.startswith("sha256:"):
            oci.check_digest(raw, self._tag.removeprefix("sha256:"), self._where)
        if artifacts.kind(raw, self._where)[0] != oci.INDEX_TYPE:
            return artifacts.read_metadata(raw, self._where)
        entries = oci.read_index(raw, self._where, artifacts.METADATA_TYPE)
        if len(entries) != 1:
            raise NotThere(
                f"{self._where}: expected signed metadata, got {len(entries)} of it "
                "(push a repository that is signed)"
            )
        digest = entries[0].digest
        if self._known[0] != digest:
            raw = self._registry.manifest(digest, oci.INDEX_BYTES, until)
            oci.check_digest(raw, entries[0].hexadecimal, f"{self._where}: metadata")
            self._known = digest, artifacts.read_metadata(raw, f"{self._where}: metadata")
        return self._known[1]


def as_index(raw: bytes, where: str) -> bytes:
    """What a tag leads to, as an index: as it is, or of the one package that it is.

    Raises:
        PackageError: it is neither.
    """
    match artifacts.kind(raw, where):
        case (oci.INDEX_TYPE, _):
            return raw
        case (oci.MANIFEST_TYPE, oci.PACKAGE_TYPE):
            return oci.make_index([oci.make_entry(Blob(oci.sha256(raw), len(raw)), "")])
        case _:
            raise PackageError(f"{where}: expected packages or one of them, got something else")


def check_tag(tag: str) -> None:
    """That it is one, or a digest.

    Raises:
        ConfigError: it is neither.
    """
    if not TAG.fullmatch(tag) and not oci.HEX.fullmatch(tag.removeprefix("sha256:")):
        raise ConfigError(f"tag: expected at most 128 letters, digits and _ . -, got {tag[:80]!r}")


def _said(answer: http.client.HTTPResponse) -> str:
    """The registry's own word for an error, where it has one."""
    if "json" not in answer.headers.get_content_type():
        return ""
    try:
        first = next(pieces(answer), b"")
    except (OSError, http.client.HTTPException, LinkDown, PackageError):  # the status says enough
        return ""
    found = _CODE.search(first[:8192])
    return found[1].decode() if found else ""
