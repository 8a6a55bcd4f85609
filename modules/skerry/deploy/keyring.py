"""A folder of certificates: an authority, and a folder for each who has a name on the bus.

    authority/ca.crt ca.key     who signs; its key belongs on no device
    authority/old.crt           those before it, trusted until they end
    NAME/ca.crt tls.crt tls.key   all that NAME needs, and nothing else

A folder without `authority/ca.key` is one whose certificates were brought, or whose authority is kept
elsewhere: it is checked, and nothing in it is changed.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from skerry import durable
from skerry.deploy.acl import BROKER
from skerry.deploy.certificates import (
    Facts,
    Issued,
    bundle,
    facts,
    fits,
    issue,
    new_authority,
    problems_of,
    read,
    trusted,
)
from skerry.deploy.plan import CA_FILE, CERTIFICATE_FILE, KEY_FILE
from skerry.errors import ConfigError, Unavailable

AUTHORITY = "authority"
HOSTS = ("broker", "localhost", "127.0.0.1")
"""What the broker is called where nobody says otherwise: among containers, and on one machine."""

_CA_KEY, _OLD = "ca.key", "old.crt"
_PRIVATE = 0o600


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a keyring is to hold."""

    site: str
    names: tuple[str, ...]
    """Whose certificates: modules, broker, readers."""
    hosts: tuple[str, ...] = ()
    """What the broker is called; empty: as it was, and at first `HOSTS`."""
    days: float = 365.0
    """How long a certificate lasts."""
    authority_days: float = 0.0
    """How long an authority lasts; 0: ten years, or three times what it signs."""
    renew: bool = False
    within: dt.timedelta | None = None
    """Which are renewed: those that end within this; None: within a third of their life."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One certificate, and what became of it."""

    name: str
    done: str
    """made, renewed, made again (and why), kept, due, ended."""
    facts: Facts


class Keyring:
    """Reads and writes the folder.

    Args:
        folder: made if it is missing and something is to be written.
        now: with a time zone.
    """

    def __init__(self, folder: Path, now: dt.datetime) -> None:
        self._folder = folder
        self._now = now

    @property
    def signs(self) -> bool:
        """Whether certificates can be made here: the authority is here, or there is nothing yet."""
        with _reported(self._folder):
            folder = self._folder / AUTHORITY
            nothing = not self.names() and not (folder / CA_FILE).exists()
            return (folder / _CA_KEY).exists() or nothing

    def names(self) -> list[str]:
        """Whose folders there are, in order."""
        with _reported(self._folder):
            if not self._folder.is_dir():
                return []
            return sorted(p.name for p in self._folder.iterdir() if (p / CERTIFICATE_FILE).exists())

    def provide(self, wish: Wish) -> list[Entry]:
        """Make what is missing or no good, renew what is due where that is wished; the rest stays.

        Raises:
            ConfigError: the authority is another site's, or no good.
            Unavailable: the folder cannot be written.
        """
        with _reported(self._folder), self._alone():
            authority, entry = self._authority(wish)
            trust = self._trust(authority)
            return [entry, *(self._one(wish, name, authority, trust) for name in wish.names)]

    def problems(self, names: Sequence[str], hosts: Sequence[str] = ()) -> list[str]:
        """What is wrong with the certificates of these, each with its file.

        Raises:
            Unavailable: a file is there and cannot be read.
        """
        with _reported(self._folder):
            return list(self._problems(names, hosts))

    def entries(self) -> list[Entry]:
        """Every certificate that is there and can be read.

        Raises:
            Unavailable: a file is there and cannot be read.
        """
        with _reported(self._folder):
            files = [self._folder / AUTHORITY / CA_FILE, self._folder / AUTHORITY / _OLD]
            files += [self._folder / name / CERTIFICATE_FILE for name in self.names()]
            return [entry for path in files if path.exists() for entry in self._read_entries(path)]

    def _read_entries(self, path: Path) -> Iterator[Entry]:
        with contextlib.suppress(ConfigError):  # `problems` says it
            certificates = read(path.read_bytes(), str(path))
            # What follows a certificate of a module is the way to its authority.
            for certificate in certificates if path.name == _OLD else certificates[:1]:
                name = "authority, old" if path.name == _OLD else path.parent.name
                says = facts(certificate)
                yield Entry(name=name, done=self._state(says), facts=says)

    def _state(self, says: Facts) -> str:
        if says.ends <= self._now:
            return "ended"
        return "due" if says.due(self._now) else "good"

    # Making

    def _authority(self, wish: Wish) -> tuple[Issued, Entry]:
        folder = self._folder / AUTHORITY
        _finish(folder / CA_FILE, folder / _CA_KEY)
        its = _pair(folder / CA_FILE, folder / _CA_KEY)
        done = "kept"
        if its is None and (folder / _CA_KEY).exists():
            raise ConfigError(
                f"{AUTHORITY}/{CA_FILE}: expected the certificate of {AUTHORITY}/{_CA_KEY}, got nothing "
                "(bring it back; without it, remove the whole folder and begin anew)"
            )
        if its is None:
            its, done = self._new_authority(wish), "made"
        says = self._checked(wish, its)
        # What it signs must not be cut short by its own end.
        enough = max(dt.timedelta(days=wish.days), wish.within or dt.timedelta())
        if says.ends <= self._now + enough and done == "kept":
            if wish.renew:
                old = folder / _OLD
                before = [old.read_bytes()] if old.exists() and old.stat().st_size else []
                durable.replace(old, bundle([its.certificate, *before], self._now), _PRIVATE)
                its, done = self._new_authority(wish), "renewed"
                says = self._checked(wish, its)
            elif says.ends <= self._now:
                raise ConfigError(
                    f"{AUTHORITY}/{CA_FILE}: expected one that lasts, got one that ended on "
                    f"{says.ends:%Y-%m-%d} (run with --renew)"
                )
            else:
                done = "due"
        return its, Entry(name=AUTHORITY, done=done, facts=says)

    def _new_authority(self, wish: Wish) -> Issued:
        folder = self._folder / AUTHORITY
        its = new_authority(wish.site, self._now, wish.authority_days or max(3650.0, 3 * wish.days))
        _put(folder / CA_FILE, folder / _CA_KEY, its)
        return its

    def _checked(self, wish: Wish, its: Issued) -> Facts:
        where = f"{AUTHORITY}/{CA_FILE}"
        says = facts(read(its.certificate, where)[0])
        if says.site != wish.site:
            raise ConfigError(
                f"{where}: expected the authority of {wish.site}, got that of {says.site or 'no site'} "
                "(each site has a folder of its own)"
            )
        if not fits(its):
            raise ConfigError(f"{AUTHORITY}/{_CA_KEY}: expected the key of {where}, got another")
        return says

    def _trust(self, authority: Issued) -> bytes:
        """Whom everybody trusts: the authority, and those before it as long as they last."""
        old = self._folder / AUTHORITY / _OLD
        before = [old.read_bytes()] if old.exists() and old.stat().st_size else []
        return bundle([authority.certificate, *before], self._now)

    def _one(self, wish: Wish, name: str, authority: Issued, trust: bytes) -> Entry:
        folder = self._folder / name
        certificate, key = folder / CERTIFICATE_FILE, folder / KEY_FILE
        _finish(certificate, key)
        its = _pair(certificate, key)
        hosts = self._hosts(wish, its) if name == BROKER else ()
        done = "made" if its is None else self._why(wish, name, its, trust, hosts)
        if its is None or done not in {"kept", "due"}:
            its = issue(authority, name, self._now, wish.days, hosts)
            _put(certificate, key, its)
        ca = folder / CA_FILE
        if not ca.exists() or ca.read_bytes() != trust:
            durable.replace(ca, trust, _PRIVATE)
        return Entry(name=name, done=done, facts=facts(read(its.certificate, name)[0]))

    def _why(self, wish: Wish, name: str, its: Issued, trust: bytes, hosts: Sequence[str]) -> str:
        """What is to become of a certificate that is there."""
        server = hosts if name == BROKER else None
        if not fits(its):
            return "made again: key and certificate did not fit"
        says = facts(read(its.certificate, name)[0])
        if wish.renew and says.due(self._now, wish.within):
            return "renewed"
        found = list(problems_of(name, name, its, self._now, server))
        if says.ends <= self._now:
            return "made again: it had ended"
        if set(says.hosts) != set(hosts):
            return "made again: other hosts"
        if found:
            return "made again: it was another's"
        if not trusted(its.certificate, trust, self._now):
            return "made again: of another authority"
        return "due" if says.due(self._now, wish.within) else "kept"

    def _hosts(self, wish: Wish, its: Issued | None) -> tuple[str, ...]:
        if wish.hosts:
            return tuple(dict.fromkeys(wish.hosts))
        before: tuple[str, ...] = ()
        if its is not None:
            with contextlib.suppress(ConfigError):  # no certificate: it is made again
                before = facts(read(its.certificate, BROKER)[0]).hosts
        return before or HOSTS

    # Checking

    def _problems(self, names: Sequence[str], hosts: Sequence[str]) -> Iterator[str]:
        there: dict[str, tuple[Issued, bytes]] = {}
        for name in names:
            folder = self._folder / name
            missing = [f for f in (CA_FILE, CERTIFICATE_FILE, KEY_FILE) if not (folder / f).exists()]
            yield from (f"{name}/{file}: expected a file, got nothing" for file in missing)
            if not missing:
                yield from _open_to_others(name, folder / KEY_FILE)
                its = Issued(
                    certificate=(folder / CERTIFICATE_FILE).read_bytes(), key=(folder / KEY_FILE).read_bytes()
                )
                server = hosts if name == BROKER else None
                yield from problems_of(name, name, its, self._now, server)
                there[name] = its, (folder / CA_FILE).read_bytes()
        yield from self._strangers(there)

    def _strangers(self, there: dict[str, tuple[Issued, bytes]]) -> Iterator[str]:
        """Who would not let in whom."""
        readable = {}
        for name, (its, ca) in there.items():
            try:
                read(ca, f"{name}/{CA_FILE}")
                read(its.certificate, "")
            except ConfigError as error:
                yield from (problem for problem in error.problems if problem.startswith(name))
            else:
                readable[name] = its.certificate, ca
        if BROKER not in readable:
            return
        server, clients_of = readable.pop(BROKER)
        for name, (chain, ca) in readable.items():
            if not trusted(chain, clients_of, self._now):
                signers = f"an authority in {BROKER}/{CA_FILE}"
                yield f"{name}/{CERTIFICATE_FILE}: expected one signed by {signers}, got another's"
            if not trusted(server, ca, self._now):
                yield f"{name}/{CA_FILE}: expected the authority of {BROKER}/{CERTIFICATE_FILE}, got others"

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise Unavailable(f"{self._folder}: another skerry certs is at work here") from error
            yield


def _pair(certificate: Path, key: Path) -> Issued | None:
    """Both files, or None where one is missing."""
    try:
        return Issued(certificate=certificate.read_bytes(), key=key.read_bytes())
    except FileNotFoundError:
        return None


def _put(certificate: Path, key: Path, its: Issued) -> None:
    """Exchange a certificate and its key. Both are on the disk before either takes its place.

    Between the two renames the pair does not fit; what dies there is completed by `_finish`.
    """
    certificate.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    drafts = _draft(key), _draft(certificate)
    for draft, content in zip(drafts, (its.key, its.certificate), strict=True):
        draft.unlink(missing_ok=True)
        file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _PRIVATE)
        with os.fdopen(file, "wb") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(file)
    drafts[0].rename(key)
    drafts[1].rename(certificate)
    folder = os.open(certificate.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _finish(certificate: Path, key: Path) -> None:
    """Complete an exchange that was cut off after its first half, or forget one cut off before."""
    draft = _draft(certificate)
    begun = _pair(draft, key)
    if begun is not None and fits(begun):
        draft.rename(certificate)
    draft.unlink(missing_ok=True)
    _draft(key).unlink(missing_ok=True)


def _draft(path: Path) -> Path:
    return path.with_name(f"{path.name}.new")


def _open_to_others(name: str, key: Path) -> Iterator[str]:
    mode = key.stat().st_mode & 0o777
    if mode & 0o077:
        yield f"{name}/{KEY_FILE}: expected a file for its owner alone, got mode {mode:o} (chmod 600)"


@contextmanager
def _reported(folder: Path) -> Iterator[None]:
    """An error of the file system in the project's words."""
    try:
        yield
    except OSError as error:
        raise Unavailable(f"{error.filename or folder}: {error.strerror or error}") from error
