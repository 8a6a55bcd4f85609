"""Packages into MLflow's file store, and models out of it, by its files: no MLflow is needed.

    DIR/models/NAME/meta.yaml                  a registered model
    DIR/models/NAME/version-N/meta.yaml        a version; `storage_location` says where its files are
    DIR/models/NAME/version-N/tags/KEY         one file a tag
    DIR/models/NAME/aliases/ALIAS              one file an alias, with a version's number
    MODEL/MLmodel                              what is in a model's folder, by flavours

Ours has the flavour `skerry`, whose `data` is a package's folder, and `onnx`, whose `data` is the model file
in it. What is read is distrusted: paths stay inside, and a package is verified as every other.

Source: MLflow documentation, "MLflow Model", "Model Registry"; what mlflow-skinny 3.17.2 writes and reads.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

from skerry.errors import ConfigError, PackageError, Unavailable
from skerry.models import layout
from skerry.models.package import Package

_MOST_BYTES = 1024 * 1024
_PACKAGE, _ARTIFACTS = "package", "model"
_DIGEST, _VERSION = "skerry.digest", "skerry.version"
_MOST_VERSIONS = 100_000


@dataclass(frozen=True)
class Exported:
    """A version in the file store.

    Attributes:
        name: of the registered model.
        number: of the version, MLflow's own.
        title: name@version, ours.
        digest: of the package, `sha256:` and 64 hexadecimal digits.
        folder: of the model's files.
        new: whether it was not there before.
    """

    name: str
    number: int
    title: str
    digest: str
    folder: Path
    new: bool


@dataclass(frozen=True)
class Found:
    """A model's version in a file store.

    Attributes:
        folder: of the model's files.
        number: of the version.
        package: a package's folder in it, where it has our flavour.
        onnx: the model file, where it has that flavour.
    """

    folder: Path
    number: int
    package: Path | None
    onnx: Path | None


def export(source: Path, store: Path, *, now_ms: int, digest: str | None = None) -> Exported:
    """Register a package as the next version of a model of its name.

    Args:
        source: a package's folder, or a layout.
        store: MLflow's file store; made if it is not there.
        now_ms: milliseconds since 1970.
        digest: which package of the layout.

    Raises:
        PackageError: the package is damaged.
        ConfigError: the store has another content of that version.
        OSError: it cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="skerry-") as room:
        if layout.is_layout(source):
            packed, there = layout.verify(source, digest), source
        else:
            packed, there = layout.pack(source, Path(room) / "layout"), Path(room) / "layout"
        config, name = packed.config, f"sha256:{packed.listing.digest}"
        model = store.absolute() / "models" / config.name
        for number, version in sorted(_versions(model).items()):
            tags = {key: _text(version / "tags" / key) for key in (_DIGEST, _VERSION)}
            if tags[_DIGEST] == name:
                return Exported(config.name, number, config.title, name, version / _ARTIFACTS, new=False)
            if tags[_VERSION] == config.version:
                raise ConfigError(
                    f"{version}: expected another version than {config.version}, which is there with other "
                    "content (raise the version)"
                )
        model.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".skerry-", dir=model))
        try:
            package = layout.unpack(there, draft / _ARTIFACTS / _PACKAGE, digest=packed.listing.digest)
            epoch = config.security_epoch
            (draft / _ARTIFACTS / "MLmodel").write_text(_yaml(_mlmodel(package, name, epoch, now_ms)))
            tags = {_DIGEST: name, _VERSION: config.version, "skerry.security_epoch": str(epoch)}
            (draft / "tags").mkdir()
            for key, value in tags.items():
                (draft / "tags" / key).write_text(value)
            number = _place(model, draft, package, now_ms)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
    _register(model, package, now_ms)
    return Exported(
        config.name, number, config.title, name, model / f"version-{number}" / _ARTIFACTS, new=True
    )


def find(store: Path, name: str, version: str = "") -> Found:
    """A model's version, and what of it can be used.

    Args:
        store: MLflow's file store.
        name: of the registered model.
        version: its number or an alias; empty: the newest.

    Raises:
        ConfigError: there is no such model or version.
        PackageError: its files are damaged, lead out of their folder, or are of no flavour that is known.
        Unavailable: its files are elsewhere.
    """
    if not name or name.startswith(".") or "/" in name or "\0" in name:
        raise ConfigError(f"--model: expected the name of a registered model, got {name[:80]!r}")
    model = store / "models" / name
    versions = _versions(model)
    if not versions:
        there = ", ".join(sorted(p.name for p in (store / "models").glob("*") if p.is_dir())) or "none"
        raise ConfigError(
            f"{store}: expected a registered model {name} with versions, got none (there: {there})"
        )
    number = _number(model, version) if version else max(versions)
    if number not in versions:
        raise ConfigError(f"{model}: expected version {number}, got {', '.join(map(str, sorted(versions)))}")
    meta = _read(versions[number] / "meta.yaml")
    folder = _located(store, meta, versions[number])
    flavours = _read(folder / "MLmodel").get("flavors")
    if not isinstance(flavours, dict):
        raise PackageError(f"{folder / 'MLmodel'}: expected flavors, got none")
    package = _data(folder, flavours.get("skerry"))
    onnx = _data(folder, flavours.get("onnx"))
    if package is None and onnx is None:
        known = ", ".join(map(str, flavours)) or "none"
        raise PackageError(f"{folder / 'MLmodel'}: expected flavor skerry or onnx, got {known[:200]}")
    return Found(folder, number, package, onnx)


def take(found: Found, out: Path, *, force: bool = False) -> Package:
    """Make a package folder of a version that is one.

    Raises:
        PackageError: it is damaged.
        ConfigError: `out` is taken.
        OSError: it cannot be written.
    """
    assert found.package is not None
    with tempfile.TemporaryDirectory(prefix="skerry-") as room:
        # What is packed has no links, and nothing that its manifest does not go with.
        layout.pack(found.package, Path(room) / "layout")
        return layout.unpack(Path(room) / "layout", out, force=force)


def _mlmodel(package: Package, digest: str, epoch: int, now_ms: int) -> dict[str, Any]:
    manifest = package.manifest
    flavours: dict[str, Any] = {
        "skerry": {
            "data": _PACKAGE, "digest": digest, "name": manifest.name, "version": manifest.version,
            "security_epoch": epoch,
        }
    }  # fmt: skip
    if manifest.artifact.format == "onnx":
        flavours["onnx"] = {"data": f"{_PACKAGE}/{manifest.artifact.file}"}
    return {
        "flavors": flavours,
        "metadata": {"licence": manifest.licence, "labels": list(package.labels)},
        "model_size_bytes": sum(p.stat().st_size for p in package.folder.rglob("*") if p.is_file()),
        "model_uuid": digest.removeprefix("sha256:")[:32],
        "utc_time_created": _time(now_ms),
    }


def _place(model: Path, draft: Path, package: Package, now_ms: int) -> int:
    """Give a version its number: the next that is free, whoever else is at work there."""
    for number in range(max(_versions(model), default=0) + 1, _MOST_VERSIONS):
        final = model / f"version-{number}"
        where = (final / _ARTIFACTS).as_uri()
        meta = {
            "name": package.manifest.name, "version": number, "creation_timestamp": now_ms,
            "last_updated_timestamp": now_ms, "description": package.manifest.description, "user_id": None,
            "current_stage": "None", "source": where, "storage_location": where, "run_id": None,
            "run_link": None, "status": "READY", "status_message": None,
        }  # fmt: skip
        (draft / "meta.yaml").write_text(_yaml(meta))
        if final.exists():
            continue
        draft.chmod(0o755)
        with suppress(FileExistsError):  # somebody was faster: the next number
            draft.rename(final)
            return number
    raise Unavailable(f"{model}: expected a number for another version, got none that is free")


def _register(model: Path, package: Package, now_ms: int) -> None:
    """The registered model itself: made, or noted as changed. What MLflow keeps there besides stays."""
    path = model / "meta.yaml"
    meta: dict[str, Any] = {
        "name": package.manifest.name, "creation_timestamp": now_ms,
        "description": package.manifest.description,
    }  # fmt: skip
    if path.exists():
        meta = dict(_read(path))
    meta["last_updated_timestamp"] = now_ms
    draft = model / ".meta.yaml.new"
    draft.write_text(_yaml(meta))
    draft.replace(path)


def _versions(model: Path) -> dict[int, Path]:
    if not model.is_dir():
        return {}
    found = {}
    for path in model.iterdir():
        number = path.name.removeprefix("version-")
        if path.name.startswith("version-") and number.isdecimal() and len(number) < 10 and path.is_dir():
            found[int(number)] = path
    return found


def _number(model: Path, version: str) -> int:
    if version.isdecimal() and len(version) < 10:
        return int(version)
    known = "/" not in version and not version.startswith(".")
    said = _text(model / "aliases" / version) if known else ""
    if not said.isdecimal():
        raise ConfigError(f"{model}: expected a version's number or an alias, got {version[:80]!r}")
    return int(said)


def _located(store: Path, meta: Mapping[str, Any], version: Path) -> Path:
    """The folder of a version's files, also where the store was moved or copied since."""
    said = [str(meta[key]) for key in ("storage_location", "source") if meta.get(key)]
    for text in said:
        parts = urlsplit(text)
        if parts.scheme not in ("", "file"):
            continue
        path = Path(unquote(parts.path))
        tails = (store.joinpath(*path.parts[n:]) for n in range(1, len(path.parts)))
        for folder in (path, *tails):
            if (folder / "MLmodel").is_file():
                return folder
    raise Unavailable(
        f"{version / 'meta.yaml'}: expected files of the model in a folder, got "
        f"{', '.join(said)[:200] or 'none'} (copy them here)"
    )


def _data(folder: Path, flavour: Any) -> Path | None:
    if not isinstance(flavour, dict):
        return None
    text = flavour.get("data")
    parts = PurePosixPath(text).parts if isinstance(text, str) else ()
    if not parts or ".." in parts or parts[0] == "/":
        raise PackageError(f"{folder / 'MLmodel'}: expected data inside it, got {str(text)[:80]!r}")
    path = folder.joinpath(*parts)
    if not path.resolve().is_relative_to(folder.resolve()):
        raise PackageError(f"{path}: expected data inside {folder}, got a link out of it")
    if not path.exists():
        raise PackageError(f"{path}: expected data of the model, got nothing there (is the copy complete?)")
    return path


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
        found = yaml.load(raw, Loader=_Plain) if len(raw) <= _MOST_BYTES else None  # noqa: S506 - a safe loader
    except OSError as error:
        raise PackageError(f"{path}: expected a file of MLflow, got {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise PackageError(f"{path}: expected YAML ({str(error)[:200]})") from error
    if not isinstance(found, dict):
        raise PackageError(f"{path}: expected a file of MLflow, got something else")
    return found


class _Plain(yaml.SafeLoader):
    """Without aliases, which can make much of little."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("expected no aliases")
        return super().compose_node(parent, index)


def _text(path: Path) -> str:
    """The content of a small file; empty where there is none."""
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(4096).strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _yaml(value: Mapping[str, Any]) -> str:
    return str(yaml.safe_dump(dict(value), allow_unicode=True, default_flow_style=False))


def _time(now_ms: int) -> str:
    return f"{datetime.fromtimestamp(now_ms / 1000, UTC):%Y-%m-%d %H:%M:%S.%f}"
