"""`skerry model keys`, `sign` and `verify`: who vouches for packages, and what a device makes of it."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec

from skerry import durable
from skerry.cli import model_attest, model_oms
from skerry.errors import ConfigError, PackageError, Unavailable

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner, Key
    from tuf.api.metadata import Metadata, Root

    from skerry.models.layout import Packed
    from skerry.models.signing.metadata import Lasting
    from skerry.models.signing.repository import Repository
    from skerry.trust.packages import TrustedPackage

Subparsers = argparse._SubParsersAction  # noqa: SLF001 - what add_subparsers returns has no public name
RoleName = Literal["root", "targets", "snapshot", "timestamp"]
_ROLES = "root, targets, snapshot or timestamp"
_KNOWN: tuple[RoleName, ...] = get_args(RoleName)
_MISSING = "expected tuf and cryptography, got none (pip install 'skerry[updater,cli]')"


def add_commands(commands: Subparsers[argparse.ArgumentParser]) -> None:
    """Register the commands under `skerry model`."""
    _add_keys(commands)
    _add_sign(commands)
    _add_verify(commands)


def _add_keys(commands: Subparsers[argparse.ArgumentParser]) -> None:
    keys = commands.add_parser(
        "keys",
        help="make the keys of those who sign",
        description="Make or show keys; none leaves the machine.",
    )
    actions = keys.add_subparsers(title="commands", metavar="COMMAND", required=True)
    new = actions.add_parser(
        "new",
        help="make keys",
        description="Make Ed25519 keys: NAME.key stays, NAME.pub travels. A name begins with its role: "
        f"{_ROLES}, then a dash and anything.",
        epilog="example: skerry model keys new keys root-1 root-2 root-3 targets snapshot timestamp",
    )
    new.add_argument("folder", type=Path, metavar="DIR")
    new.add_argument("names", nargs="+", metavar="NAME")
    _add_passphrase(new, "encrypt them with the first line of this file (default: plain, permissions 600)")
    new.set_defaults(func=_keys_new)
    show = actions.add_parser("show", help="ids of the keys in a folder")
    show.add_argument("folder", type=Path, metavar="DIR")
    show.set_defaults(func=_keys_show)


def _add_sign(commands: Subparsers[argparse.ArgumentParser]) -> None:
    sign = commands.add_parser(
        "sign",
        help="vouch for packages in a repository",
        description="Sign a repository: an OCI image layout with metadata/ of The Update Framework beside "
        "its blobs. It is a folder: copy it to a web server, or to a stick.",
    )
    actions = sign.add_subparsers(title="commands", metavar="COMMAND", required=True)

    init = _action(actions, "init", "make a repository, and the root that devices are given", _init)
    init.add_argument(
        "--threshold", type=_numbered, action="append", default=[], metavar="ROLE=N",
        help="how many keys of a role have to sign (default: root=2 where it has more than one, others 1)",
    )  # fmt: skip
    init.add_argument(
        "--days", type=_numbered, action="append", default=[], metavar="ROLE=N",
        help="how long its signatures last (default: root=730, targets=365, snapshot=90, timestamp=30)",
    )  # fmt: skip

    add = _action(actions, "add", "list a package", _add)
    add.add_argument("package", type=Path, metavar="PACKAGE", help="a package's folder, or an image layout")
    add.add_argument("--digest", help="which package of the layout")
    add.add_argument(
        "--epoch", type=int, default=None, metavar="N", help="security epoch of a package's folder"
    )
    add.add_argument(
        "--class", action="append", default=[], metavar="NAME", dest="classes",
        help="a class of devices that it is for; may be repeated (default: any)",
    )  # fmt: skip
    model_attest.add_options(add)

    attest = _action(actions, "attest", "sign what was measured of packages that are listed", _attest)
    attest.add_argument(
        "attestations", type=Path, nargs="+", metavar="FILE", help="of skerry model bench --out"
    )
    model_attest.add_force(attest)
    attest.add_argument("--json", action="store_true", help="print one JSON object")

    remove = _action(actions, "remove", "list a package no more", _remove)
    remove.add_argument("digest", metavar="DIGEST", help="its first hexadecimal digits or all of them")

    _action(actions, "renew", "sign a new timestamp, and what else is about to end", _renew)

    root = _action(actions, "root", "draft the next root; nothing changes yet", _draft, keys=False)
    root.add_argument("--out", type=Path, required=True, metavar="DRAFT", help="file to write")
    root.add_argument(
        "--add", type=_assigned, action="append", default=[], metavar="ROLE=FILE.pub", help="a key it gets"
    )
    root.add_argument(
        "--drop", type=_assigned, action="append", default=[], metavar="ROLE=KEYID", help="a key it loses"
    )
    root.add_argument("--threshold", type=_numbered, action="append", default=[], metavar="ROLE=N")

    approve = _action(actions, "approve", "sign a draft with the root keys at hand", _approve)
    approve.add_argument("draft", type=Path, metavar="DRAFT")

    publish = _action(
        actions, "publish", "put an approved draft in place, and sign anew what it touches", _publish
    )
    publish.add_argument("draft", type=Path, metavar="DRAFT")
    model_oms.add_sign(actions)


def _add_verify(commands: Subparsers[argparse.ArgumentParser]) -> None:
    verify = commands.add_parser(
        "verify",
        help="what a device makes of a repository",
        description="Verify a repository as a device does, and each file of each package it vouches for. "
        "Exit code 65 with the reason if it is refused.",
        epilog="example: skerry model verify /media/stick --root root.json --name parts --class jetson",
    )
    verify.add_argument(
        "repository", type=Path, metavar="REPOSITORY", help="with --oms: a package's folder, or a layout"
    )
    verify.add_argument(
        "--root", type=Path, default=None, metavar="FILE", help="the root that the device was given"
    )
    verify.add_argument(
        "--state", type=Path, default=None, metavar="DIR",
        help="a copy of what a device remembers; it goes on from there (default: a new device)",
    )  # fmt: skip
    verify.add_argument("--name", default="", metavar="MODEL", help="which package of this model is taken")
    verify.add_argument(
        "--class", default="", metavar="NAME", dest="device_class", help="by this class of device"
    )
    verify.add_argument(
        "--require-attestation", action="store_true",
        help="by a device whose policy asks for one of its class that met the budget",
    )  # fmt: skip
    verify.add_argument("--no-clock", action="store_true", help="as a device does whose clock is not set")
    verify.add_argument("--json", action="store_true", help="print one JSON object")
    model_oms.add_verify(verify)
    verify.set_defaults(func=_verify)


def _action(
    actions: Subparsers[argparse.ArgumentParser], name: str, text: str, function: Any, keys: bool = True
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.add_argument("repository", type=Path, metavar="REPOSITORY")
    if keys:
        parser.add_argument(
            "--keys", type=Path, required=True, metavar="DIR", help="folder of the keys at hand"
        )
        _add_passphrase(parser, "its first line opens the keys")
    parser.set_defaults(func=function)
    return parser


def _add_passphrase(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument(
        "--passphrase-file", type=Path, default=None, metavar="FILE", dest="passphrase", help=text
    )


def _assigned(text: str) -> tuple[RoleName, str]:
    said, equals, value = text.partition("=")
    for role in _KNOWN:
        if role == said and equals and value:
            return role, value
    raise argparse.ArgumentTypeError(f"expected ROLE=VALUE of {_ROLES}, got {text!r}")


def _numbered(text: str) -> tuple[RoleName, int]:
    role, value = _assigned(text)
    if not value.isdecimal() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {value!r}")
    return role, int(value)


def _module(name: str) -> Any:
    """A module that needs what only those have who sign or verify."""
    try:
        return import_module(f"skerry.{name}")
    except ModuleNotFoundError as error:
        raise Unavailable(f"model: {_MISSING}") from error


def _signers(arguments: argparse.Namespace) -> Sequence[CryptoSigner]:
    keys = _module("models.signing.keys")
    found: Sequence[CryptoSigner] = keys.signers(arguments.keys, keys.read_passphrase(arguments.passphrase))
    if not found:
        raise ConfigError(f"{arguments.keys}: expected keys (NAME.key), got none (skerry model keys new)")
    return found


def _repository(folder: Path) -> Repository:
    found: Repository = _module("models.signing.repository").Repository(folder)
    return found


def _keys_new(arguments: argparse.Namespace) -> int:
    keys = _module("models.signing.keys")
    for name in arguments.names:
        _role(name, arguments.folder)
    passphrase = keys.read_passphrase(arguments.passphrase)
    for name in arguments.names:
        key: Key = keys.make(arguments.folder, name, passphrase)
        print(f"{name}  {key.keyid}")
    return 0


def _keys_show(arguments: argparse.Namespace) -> int:
    found: dict[str, Key] = _module("models.signing.keys").public_keys(arguments.folder)
    if not found:
        raise Unavailable(f"{arguments.folder}: expected keys (NAME.pub), got none (skerry model keys new)")
    for name, key in found.items():
        private = "" if (arguments.folder / f"{name}.key").exists() else "  (public half only)"
        print(f"{name:16} {key.keyid}{private}")
    return 0


def _role(name: str, where: Path) -> RoleName:
    for role in _KNOWN:
        if role == name.partition("-")[0] and "/" not in name:
            return role
    raise ConfigError(f"{where}: expected a name that begins with {_ROLES}, got {name!r}")


def _init(arguments: argparse.Namespace) -> int:
    making = _module("models.signing.metadata")
    repositories = _module("models.signing.repository")
    public: dict[str, Key] = _module("models.signing.keys").public_keys(arguments.keys)
    by_role: dict[RoleName, list[Key]] = {role: [] for role in making.ROLES}
    for name, key in public.items():
        by_role[_role(name, arguments.keys)].append(key)
    missing = [role for role, keys in by_role.items() if not keys]
    if missing:
        raise ConfigError(f"{arguments.keys}: expected a key of each role, got none of {', '.join(missing)}")
    lasting: Lasting = making.Lasting(**dict(arguments.days))
    thresholds = {"root": min(2, len(by_role["root"])), **dict(arguments.threshold)}
    repository: Repository = repositories.create(
        arguments.repository,
        by_role,
        _signers(arguments),
        time.time(),
        thresholds=thresholds,
        lasting=lasting,
    )
    print(f"{arguments.repository}: made; give devices metadata/1.root.json")
    _print_ends(repository)
    return 0


def _add(arguments: argparse.Namespace) -> int:
    repository, signers = _repository(arguments.repository), _signers(arguments)
    packed = _packed(arguments)
    digest = f"sha256:{packed.listing.digest}"
    attestations = model_attest.read(
        arguments.attestations, digest=digest, classes=arguments.classes, force=arguments.force
    )
    package: TrustedPackage = _module("trust.packages").TrustedPackage(
        digest=digest,
        length=packed.listing.size,
        name=packed.config.name,
        version=packed.config.version,
        security_epoch=packed.config.security_epoch,
        classes=tuple(arguments.classes),
        attestations=tuple(sorted((a.summary for a in attestations), key=lambda a: a.device_class)),
    )
    model_attest.keep(arguments.repository, attestations)
    repository.add(package, signers, time.time())
    _print_package(package)
    _print_ends(repository)
    return 0


def _attest(arguments: argparse.Namespace) -> int:
    repository, signers = _repository(arguments.repository), _signers(arguments)
    listed = {package.digest: package for package in repository.packages}
    by_package: dict[str, list[Path]] = {}
    for path in arguments.attestations:
        by_package.setdefault(model_attest.subject(path), []).append(path)
    strange = [d for d in by_package if d not in listed]
    if strange:
        raise PackageError("\n".join(f"{by_package[d][0]}: {d[:23]}: not listed here" for d in strange))
    read = {
        digest: model_attest.read(paths, digest=digest, classes=listed[digest].classes, force=arguments.force)
        for digest, paths in by_package.items()
    }
    changed: list[TrustedPackage] = []
    for digest, attestations in read.items():
        model_attest.keep(arguments.repository, attestations)
        summaries = [each.summary for each in attestations]
        changed.append(repository.attest(digest, summaries, signers, time.time()))
    if arguments.json:
        print(json.dumps({"packages": [msgspec.to_builtins(package) for package in changed]}))
        return 0
    for package in changed:
        _print_package(package)
    _print_ends(repository)
    return 0


def _print_package(package: TrustedPackage) -> None:
    print(f"{package.title}  {package.digest}")
    for line in model_attest.told(package):
        print(line)


def _packed(arguments: argparse.Namespace) -> Packed:
    """The package, in the repository: its digest is the same wherever it was."""
    layouts = import_module("skerry.models.layout")
    if not layouts.is_layout(arguments.package):
        packed: Packed = layouts.pack(
            arguments.package, arguments.repository, security_epoch=arguments.epoch or 0
        )
        return packed
    found: Packed = layouts.verify(arguments.package, arguments.digest)
    if arguments.epoch not in (None, found.config.security_epoch):
        raise ConfigError(
            f"--epoch: expected {found.config.security_epoch} as in the package, got {arguments.epoch}"
        )
    if arguments.package.resolve() == arguments.repository.resolve():
        return found
    with tempfile.TemporaryDirectory(prefix="skerry-") as room:
        folder = Path(room) / "package"
        layouts.unpack(arguments.package, folder, digest=found.listing.digest)
        packed = layouts.pack(folder, arguments.repository, security_epoch=found.config.security_epoch)
    if packed.listing.digest != found.listing.digest:
        raise PackageError(f"{arguments.package}: expected the same digest once packed again, got another")
    return packed


def _remove(arguments: argparse.Namespace) -> int:
    repository = _repository(arguments.repository)
    gone = repository.remove(arguments.digest, _signers(arguments), time.time())
    print(f"{gone.title}: not listed any more; devices that have it keep it, its files are still there")
    _print_ends(repository)
    return 0


def _renew(arguments: argparse.Namespace) -> int:
    repository = _repository(arguments.repository)
    repository.renew(_signers(arguments), time.time())
    _print_ends(repository)
    return 0


def _draft(arguments: argparse.Namespace) -> int:
    making, keys = _module("models.signing.metadata"), _module("models.signing.keys")
    repository = _repository(arguments.repository)
    draft: Metadata[Root] = making.next_root(
        repository.root,
        lasting=repository.lasting,
        now_s=time.time(),
        add=[(role, keys.read_public(Path(path))) for role, path in arguments.add],
        drop=arguments.drop,
        thresholds=dict(arguments.threshold),
    )
    _write(arguments.out, draft)
    for change in making.changes(repository.root, draft.signed):
        print(change)
    print(f"{arguments.out}: root {draft.signed.version}, to be approved (skerry model sign approve)")
    return 0


def _approve(arguments: argparse.Namespace) -> int:
    making = _module("models.signing.metadata")
    repository, draft = _repository(arguments.repository), _read_draft(arguments.draft)
    for change in making.changes(repository.root, draft.signed):
        print(change)
    for keyid in making.approve(draft, repository.root, _signers(arguments)):
        print(f"{keyid}: approves root {draft.signed.version}")
    _write(arguments.draft, draft)
    for whose, root in (("root before", repository.root), ("new root", draft.signed)):
        role = root.roles["root"]
        count = len({*role.keyids} & {*draft.signatures})
        print(f"{count} of {role.threshold} keys of the {whose}")
    return 0


def _publish(arguments: argparse.Namespace) -> int:
    repository, draft = _repository(arguments.repository), _read_draft(arguments.draft)
    repository.publish(draft, _signers(arguments), time.time())
    print(f"root {repository.root.version}: published")
    _print_ends(repository)
    return 0


def _write(path: Path, draft: Metadata[Root]) -> None:
    try:
        durable.replace(path, draft.to_bytes(), 0o644)
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error


def _read_draft(path: Path) -> Metadata[Root]:
    documents, tuf = _module("trust.documents"), import_module("tuf.api.metadata")
    draft: Metadata[Root] = documents.read(tuf.Root, _bytes(path), str(path))
    return draft


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error


def _print_ends(repository: Repository) -> None:
    signed = {
        "root": repository.root,
        **{role: getattr(repository, role).signed for role in ("targets", "snapshot", "timestamp")},
    }
    print("  ".join(f"{role} {each.version} ends {each.expires:%Y-%m-%d}" for role, each in signed.items()))


def _verify(arguments: argparse.Namespace) -> int:
    if arguments.oms is not None:
        return model_oms.verify(arguments)
    if arguments.root is None:
        raise ConfigError("model verify: expected --root FILE, or --oms FILE --public-key FILE, got neither")
    device, trusted = _module("trust.device"), _module("trust.packages")
    sources = _module("trust.sources")
    with tempfile.TemporaryDirectory(prefix="skerry-") as room:
        trust = device.Trust(arguments.state or Path(room) / "state", _bytes(arguments.root))
        packages: Sequence[TrustedPackage] = trust.refresh(
            sources.Folder(arguments.repository), time.time(), clock_trusted=not arguments.no_clock
        )
        policy = trusted.Policy(require_attestation=arguments.require_attestation)
        taken = (
            trusted.choose(packages, arguments.name, arguments.device_class, policy=policy)
            if arguments.name
            else None
        )
        problems = {p.digest: _problem(arguments.repository, p) for p in packages}
        if arguments.json:
            report = {
                "root": trust.root_version,
                "packages": [_row(p, problems[p.digest], p == taken) for p in packages],
            }
            print(json.dumps(report))
        else:
            print(f"root {trust.root_version}, {len(packages)} packages")
            for package in packages:
                what = problems[package.digest] or "ok"
                mark = "  <- taken" if package == taken else ""
                for_whom = ", ".join(package.classes) or "any device"
                print(f"{package.title:24} epoch {package.security_epoch}  {for_whom}  {what}{mark}")
                for line in model_attest.told(package):
                    print(line)
    found = [text for text in problems.values() if text]
    if found:
        raise PackageError("\n".join(found))
    return 0


def _problem(repository: Path, package: TrustedPackage) -> str:
    """Why what is in the repository is not what is vouched for; empty where it is."""
    layouts = import_module("skerry.models.layout")
    try:
        packed: Packed = layouts.verify(repository, package.digest)
        package.require(
            name=packed.config.name,
            version=packed.config.version,
            security_epoch=packed.config.security_epoch,
            length=packed.listing.size,
        )
    except PackageError as error:
        return str(error)
    return ""


def _row(package: TrustedPackage, problem: str, taken: bool) -> dict[str, Any]:
    return {
        "digest": package.digest,
        "name": package.name,
        "version": package.version,
        "security_epoch": package.security_epoch,
        "classes": list(package.classes),
        "attestations": msgspec.to_builtins(package.attestations),
        "problem": problem,
        "taken": taken,
    }
