"""A package folder to an OCI image layout and back, and the reading of layouts that nobody vouches for.

    LAYOUT/oci-layout  LAYOUT/index.json  LAYOUT/blobs/sha256/HEX

The same folder gives the same digest wherever and whenever it is packed: no dates, owners or modes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from skerry import durable
from skerry.errors import ConfigError, PackageError
from skerry.models import oci
from skerry.models import package as packages
from skerry.models.oci import Blob, Config, Entry, File, Limits, Listing
from skerry.models.package import MANIFEST, Package

CHUNK = 1024 * 1024
BLOBS = "blobs", "sha256"


@dataclass(frozen=True)
class Packed:
    """A package in a layout.

    Attributes:
        listing: what its manifest lists; `listing.digest` names it.
        config: what it says of itself.
    """

    listing: Listing
    config: Config


class Layout:
    """A layout, read without following any link in it.

    Args:
        folder: where it is; it may be reached through links.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def document(self, name: str, most: int) -> bytes:
        """The whole of a file that is no blob.

        Args:
            name: its path in the layout, with `/`.
            most: bytes it may have.

        Raises:
            OSError: it cannot be read.
            PackageError: it is larger, or no file.
        """
        parts = PurePosixPath(name).parts
        if not parts or ".." in parts or parts[0] == "/":
            raise PackageError(f"{self.folder}: expected a path inside it, got {name!r}")
        with closing(_Opened(self.folder, parts)) as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise PackageError(f"{self.folder / name}: expected at most {most} bytes, got more")
        return content

    def blob(self, blob: Blob, start: int = 0) -> Iterator[bytes]:
        """The content of a blob from a byte on, in pieces; never more than its size. It is not verified.

        Raises:
            OSError: it cannot be read.
            PackageError: its size is another, or it is no file.
        """
        with closing(_Opened(self.folder, (*BLOBS, blob.digest))) as file:
            if file.size != blob.size:
                raise PackageError(
                    f"{self.folder}: expected {blob.size} bytes of {blob.digest[:16]}..., got {file.size}"
                )
            left = blob.size - start
            file.seek(start)
            while left > 0 and (chunk := file.read(min(CHUNK, left))):
                left -= len(chunk)
                yield chunk

    def entries(self) -> tuple[Entry, ...]:
        """The packages in it.

        Raises:
            OSError: it cannot be read.
            PackageError: it is no layout.
        """
        head = self.document(oci.LAYOUT_FILE, 4096)
        try:
            version = json.loads(head)["imageLayoutVersion"]
        except (ValueError, RecursionError, TypeError, KeyError) as error:
            raise PackageError(f"{self.folder / oci.LAYOUT_FILE}: expected an image layout") from error
        if version != "1.0.0":
            raise PackageError(
                f"{self.folder / oci.LAYOUT_FILE}: expected version 1.0.0, got {str(version)[:40]!r}"
            )
        return oci.read_index(
            self.document(oci.INDEX_FILE, oci.INDEX_BYTES), str(self.folder / oci.INDEX_FILE)
        )


class _Opened:
    """A file under a folder, reached without following links; a pipe or device is none."""

    def __init__(self, folder: Path, parts: tuple[str, ...]) -> None:
        where = folder.joinpath(*parts)
        at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in parts[:-1]:
                inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
                os.close(at)
                at = inner
            # Without O_NONBLOCK a pipe would be waited for.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            self._file = os.open(parts[-1], flags, dir_fd=at)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
                raise PackageError(
                    f"{where}: expected a file in folders, got a link or something else"
                ) from error
            error.filename = str(where)
            raise
        finally:
            os.close(at)
        found = os.fstat(self._file)
        self.size = found.st_size
        if not stat.S_ISREG(found.st_mode):
            self.close()
            raise PackageError(f"{where}: expected a file, got something else")

    def read(self, most: int) -> bytes:
        return os.read(self._file, most)

    def seek(self, at: int) -> None:
        os.lseek(self._file, at, os.SEEK_SET)

    def close(self) -> None:
        os.close(self._file)


def is_layout(folder: Path) -> bool:
    """Whether a folder claims to be a layout."""
    return (folder / oci.LAYOUT_FILE).is_file()


def pack(folder: Path, out: Path, *, security_epoch: int = 0) -> Packed:
    """Put a package folder into a layout, which is made if it is not there.

    Args:
        folder: of the package; every file in it goes along.
        out: the layout.
        security_epoch: 0 or more.

    Raises:
        PackageError: the package is not what it should be.
        ConfigError: `out` is something else, or has another package of this name and version.
        OSError: it cannot be written.
    """
    packages.load(folder)
    titles = file_titles(folder)
    config, content = oci.make_config(_json(folder / MANIFEST), security_epoch, str(folder / MANIFEST))
    name = f"{config.name}-{config.version}"
    entries = _existing(out)
    blobs = out.joinpath(*BLOBS)
    blobs.mkdir(parents=True, exist_ok=True)
    files = [File(title, _take(folder / title, blobs)) for title in titles]
    manifest = oci.make_manifest(_put(content, blobs), files)
    digest = oci.sha256(manifest)
    _check_new(entries, digest, name, out)
    written = _put(manifest, blobs)
    if not is_layout(out):
        durable.replace(out / oci.LAYOUT_FILE, oci.LAYOUT, 0o644)
    kept = [oci.make_entry(Blob(e.hexadecimal, e.size), e.name) for e in entries if e.hexadecimal != digest]
    durable.replace(out / oci.INDEX_FILE, oci.make_index([*kept, oci.make_entry(written, name)]), 0o644)
    # The folder may have changed while it was read: what counts is what arrived.
    return verify(out, digest)


def begin(out: Path) -> tuple[Entry, ...]:
    """The packages of a layout, which is made if it is not there.

    Raises:
        PackageError: it is damaged.
        ConfigError: `out` is something else.
        OSError: it cannot be written.
    """
    entries = _existing(out)
    out.joinpath(*BLOBS).mkdir(parents=True, exist_ok=True)
    if not is_layout(out):
        durable.replace(out / oci.LAYOUT_FILE, oci.LAYOUT, 0o644)
    return entries


def enlist(out: Path, packed: Packed) -> None:
    """Name a package in a layout in which all of its blobs are.

    Raises:
        ConfigError: it has another package of this name and version.
        OSError: it cannot be written.
    """
    entries, digest = _existing(out), packed.listing.digest
    name = f"{packed.config.name}-{packed.config.version}"
    _check_new(entries, digest, name, out)
    kept = [oci.make_entry(Blob(e.hexadecimal, e.size), e.name) for e in entries if e.hexadecimal != digest]
    named = oci.make_entry(packed.listing.manifest, name)
    durable.replace(out / oci.INDEX_FILE, oci.make_index([*kept, named]), 0o644)


def select(folder: Path, digest: str | None = None) -> Entry:
    """The package in a layout with this digest, or the only one.

    Args:
        folder: of the layout.
        digest: its first hexadecimal digits or all of them; with or without `sha256:`.

    Raises:
        PackageError: there is none, or more than one.
    """
    with _reading(folder):
        entries = Layout(folder).entries()
    wanted = (digest or "").removeprefix("sha256:").lower()
    found = {e.hexadecimal: e for e in entries if e.hexadecimal.startswith(wanted)}
    if len(found) != 1:
        listed = ", ".join(f"{e.hexadecimal[:16]} {e.name[:80]}" for e in tuple(found.values()) or entries)
        raise PackageError(
            f"{folder}: expected one package{f' {wanted[:16]}' * bool(wanted)}, got {len(found)} "
            f"(there: {listed or 'none'}; name one with --digest)"
        )
    return next(iter(found.values()))


def verify(folder: Path, digest: str | None = None, limits: Limits = Limits()) -> Packed:  # noqa: B008 - frozen
    """Read the whole of a package in a layout and compare every hash.

    Raises:
        PackageError: something is not what the digest says.
    """
    return _each(folder, digest, limits, lambda _title: None)


def unpack(
    folder: Path, out: Path, *, digest: str | None = None, limits: Limits = Limits(), force: bool = False  # noqa: B008 - frozen
) -> Package:  # fmt: skip
    """Make a package folder of a package in a layout.

    Args:
        folder: of the layout.
        out: folder to make; it appears as a whole.
        digest: which package, where there are several.
        limits: the most that is written.
        force: replace a package that is there.

    Raises:
        PackageError: something is not what the digest says, or no good package.
        ConfigError: `out` is taken.
    """
    if out.exists() and not (force and (out / MANIFEST).exists()):
        raise ConfigError(f"{out}: expected a new folder, got one that is there (choose another)")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as beside:
        new = Path(beside) / "package"
        new.mkdir()

        def place(title: str) -> Path:
            path = new / title
            path.parent.mkdir(parents=True, exist_ok=True)
            return path

        _each(folder, digest, limits, place)
        packages.load(new)
        if out.exists():
            out.rename(Path(beside) / "old")
        new.rename(out)
    return packages.load(out)


def check_folder(folder: Path, listing: Listing, digest_of: Callable[[Path], str] | None = None) -> list[str]:
    """What of a package folder is not as the manifest lists it; empty when all is.

    Args:
        folder: of the package.
        listing: what must be there, and nothing else.
        digest_of: sha256 of a file; sizes alone are compared without it.

    Raises:
        OSError: a file cannot be read.
    """
    wanted = {f.title: f.blob for f in listing.files}
    try:
        there = set(file_titles(folder))
    except PackageError as error:
        return str(error).splitlines()
    except (FileNotFoundError, NotADirectoryError) as error:
        return [f"{folder}: expected the package, got {error.strerror}"]
    found = [f"{folder}: expected {title}, got no such file" for title in sorted(wanted.keys() - there)]
    found += [f"{folder}: expected the package's files alone, got {t}" for t in sorted(there - wanted.keys())]
    for title in sorted(wanted.keys() & there):
        path, blob = folder / title, wanted[title]
        if (size := path.lstat().st_size) != blob.size:
            found.append(f"{path}: expected {blob.size} bytes, got {size}")
        elif digest_of is not None and (seen := digest_of(path)) != blob.digest:
            found.append(f"{path}: expected sha256 {blob.digest[:16]}..., got {seen[:16]}...")
    return found


def _each(folder: Path, digest: str | None, limits: Limits, place: Callable[[str], Path | None]) -> Packed:
    """Verify a package, and write each file to where `place` says, if it says so."""
    entry = select(folder, digest)
    layout = Layout(folder)
    if entry.size > oci.MANIFEST_BYTES:
        raise PackageError(
            f"{folder}: expected a manifest of at most {oci.MANIFEST_BYTES} bytes, got {entry.size}"
        )

    with _reading(folder):
        manifest = b"".join(layout.blob(Blob(entry.hexadecimal, entry.size)))
        listing = oci.read_listing(manifest, entry.hexadecimal, f"{folder}: manifest", limits)
        content = b"".join(layout.blob(listing.config))
        config = oci.read_config(content, listing, f"{folder}: config")
        for file in listing.files:
            _stream(layout, file, place(file.title))
            if file.title == MANIFEST:
                raw = b"".join(layout.blob(file.blob))
                oci.check_digest(raw, file.blob.digest, f"{folder}: {MANIFEST}")
                oci.check_same(raw, content, f"{folder}: {MANIFEST}")
    return Packed(listing, config)


def _stream(layout: Layout, file: File, path: Path | None) -> None:
    hashed = hashlib.sha256()
    chunks = layout.blob(file.blob)
    if path is None:
        for chunk in chunks:
            hashed.update(chunk)
    else:
        with path.open("xb") as written:
            for chunk in chunks:
                hashed.update(chunk)
                written.write(chunk)
    if (seen := hashed.hexdigest()) != file.blob.digest:
        raise PackageError(
            f"{layout.folder}: {file.title}: expected sha256 {file.blob.digest[:16]}..., got {seen[:16]}..."
        )


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """An error of the disk is one of the layout, here."""
    try:
        yield
    except OSError as error:
        what = error.filename or folder
        raise PackageError(f"{what}: expected an image layout, got {error.strerror}") from error


def file_titles(folder: Path) -> list[str]:
    """Paths of all files under a folder, sorted.

    Raises:
        PackageError: something there is no plain file, or has a name that no package may have.
    """
    found: list[str] = []
    wrong: list[str] = []
    left = [""]
    while left:
        base = left.pop()
        with os.scandir(folder / base) as each:
            for item in each:
                title = f"{base}{item.name}"
                if problem := oci.title_problem(title):
                    wrong.append(f"{folder}: {problem} (remove it)")
                elif item.is_dir(follow_symlinks=False):
                    left.append(f"{title}/")
                elif item.is_file(follow_symlinks=False):
                    found.append(title)
                else:
                    wrong.append(
                        f"{folder / title}: expected a file, got a link or something else (remove it)"
                    )
                if len(found) + len(left) + len(wrong) > oci.MOST_FILES:
                    raise PackageError(f"{folder}: expected at most {oci.MOST_FILES} files, got more")
    if wrong:
        raise PackageError("\n".join(sorted(wrong)))
    return sorted(found)


def _json(path: Path) -> object:
    return json.loads(path.read_bytes())


def _existing(out: Path) -> tuple[Entry, ...]:
    if is_layout(out):
        with _reading(out):
            return Layout(out).entries() if (out / oci.INDEX_FILE).exists() else ()
    if out.exists() and any(p.name != BLOBS[0] for p in out.iterdir()):
        raise ConfigError(
            f"{out}: expected a new folder or an image layout, got another one (choose another)"
        )
    return ()


def _check_new(entries: tuple[Entry, ...], digest: str, name: str, out: Path) -> None:
    others = [e.hexadecimal for e in entries if e.name == name and e.hexadecimal != digest]
    if others:
        raise ConfigError(
            f"{out}: expected another version than {name}, which is there as {others[0][:16]} "
            "with other content (raise the version, or choose another layout)"
        )


def _take(path: Path, blobs: Path) -> Blob:
    """Copy a file among the blobs."""
    hashed, size = hashlib.sha256(), 0
    draft = blobs / ".new"
    with path.open("rb") as source, draft.open("wb") as target:
        while chunk := source.read(CHUNK):
            hashed.update(chunk)
            target.write(chunk)
            size += len(chunk)
        target.flush()
        os.fsync(target.fileno())
    digest = hashed.hexdigest()
    draft.rename(blobs / digest)
    return Blob(digest, size)


def _put(content: bytes, blobs: Path) -> Blob:
    digest = oci.sha256(content)
    durable.replace(blobs / digest, content, 0o644)
    return Blob(digest, len(content))
