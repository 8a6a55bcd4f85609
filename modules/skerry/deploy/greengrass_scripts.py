"""The shell scripts of a Greengrass component: how its container is started, waited for and stopped.

No script has a brace in it but around Greengrass' own variables: nucleus lite takes every brace for one.
What comes from a site is never part of a script's text beyond names that were checked: settings are read
from a file, the operator's folder from the environment.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from skerry.deploy.contained import BUS_CERTIFICATES, USER, Mount
from skerry.deploy.containers import (
    BROKER_FILES,
    LOG_BYTES,
    LOG_FILES,
    TMP_MB,
    Container,
    Volume,
    mib,
    source_bind,
    tmpfs_options,
)
from skerry.deploy.deployment import Deployment
from skerry.uplink.settings import GreengrassLink, UplinkSettings

SETTINGS_FILE = "settings.json"
FOLDER = "SKERRY_FOLDER"
"""The environment variable with the folder of certificates, secrets and inputs on the core device."""
WAIT_S = 90
"""For a container to get well: more than the start of any module takes, on a slow device."""
_IN_A_ROW = 3
"""Health checks, a second apart, that have to go well: who ends right after the start is found, too."""
SOCKET = "/run/nucleus.socket"
"""Where the uplink sees the nucleus' socket."""
_SOCKET_VARIABLE = "AWS_GG_NUCLEUS_DOMAIN_SOCKET_FILEPATH_FOR_COMPONENT"


def name_of(deployment: Deployment, name: str) -> str:
    """What the engine calls something of this site."""
    return f"skerry-{deployment.plan.site}-{name}"


def network_of(deployment: Deployment) -> str:
    """The network of the site's modules, which leads nowhere."""
    return f"skerry-{deployment.plan.site}"


def image_of(deployment: Deployment, container: Container) -> str:
    """How the engine is told of an image: by its tag or by its digest, Greengrass does not take both."""
    reference = deployment.images.reference(container.image)
    name, at, digest = reference.partition("@")
    if not at:
        return reference
    start, _, last = name.rpartition("/")
    last = last.partition(":")[0]
    return f"{start}/{last}@{digest}" if start else f"{last}@{digest}"


def speaks_to_nucleus(container: Container) -> bool:
    """Whether it is an uplink whose way out is the nucleus."""
    settings = container.settings
    return isinstance(settings, UplinkSettings) and isinstance(settings.link, GreengrassLink)


def needs_folder(container: Container) -> bool:
    """Whether it reads anything that an operator puts on the core device."""
    return container.identity or any(mount.role != "models" for mount in container.mounts)


def startup(deployment: Deployment, container: Container) -> str:
    """Start the container, and end with 0 once it is well and with 1 if it does not get well."""
    name = shlex.quote(name_of(deployment, container.name))
    ask = shlex.join(["docker", "exec", name_of(deployment, container.name), *container.health])
    lines = [
        *_before(deployment, container),
        *_start(deployment, container, ()),
        # By the clock that nobody sets.
        f"end=$(($(cut -d. -f1 /proc/uptime) + {WAIT_S}))",
        "well=0",
        f'while [ "$well" -lt {_IN_A_ROW} ]; do',
        f"  if {ask} >/dev/null 2>&1; then well=$((well + 1)); else well=0; fi",
        f"  running=$(docker ps --quiet --filter 'name=^{name_of(deployment, container.name)}$')",
        '  if [ -z "$running" ] || [ "$(cut -d. -f1 /proc/uptime)" -ge "$end" ]; then',
        f'    echo "{container.name}: expected it to get well within {WAIT_S} s, its last lines:" >&2',
        f"    docker logs --tail 20 {name} >&2 || true",
        f"    docker rm --force {name} >/dev/null",
        "    exit 1",
        "  fi",
        "  sleep 1",
        "done",
        "# The nucleus does not look after it from here on, the engine does.",
        f"docker update --restart unless-stopped {name} >/dev/null",
    ]
    return _text(lines)


def shutdown(deployment: Deployment, container: Container) -> str:
    """Let the container drain, and leave nothing of it but its state."""
    name = shlex.quote(name_of(deployment, container.name))
    stop = f"docker stop -t {container.stop_s} {name} >/dev/null 2>&1 || true"
    return _text([stop, *_remove(deployment, container)])


def recover(deployment: Deployment, container: Container) -> str:
    """Leave nothing of a start that failed."""
    return _text(list(_remove(deployment, container)))


def run(deployment: Deployment, container: Container) -> str:
    """Run the container as this process; its end is the container's."""
    return _text([*_before(deployment, container), *_start(deployment, container, ("--rm",))])


def _text(lines: list[str]) -> str:
    return "\n".join(["set -eu", *lines]) + "\n"


def _before(deployment: Deployment, container: Container) -> Iterator[str]:
    """What has to be there, and what must not be."""
    if needs_folder(container):
        yield f'case "${FOLDER}" in'
        yield "  *[,\\\"]* | [!/]* | '')"
        wanted = "expected the full path of a folder, without commas and quotes"
        yield f'    echo "folder: {wanted}, got ${FOLDER}" >&2'
        yield "    exit 78 ;;"
        yield "esac"
    yield f"docker rm --force {shlex.quote(name_of(deployment, container.name))} >/dev/null 2>&1 || true"
    for network, option in _networks(deployment, container):
        make = f"docker network inspect {network} >/dev/null 2>&1 || "
        make += f"docker network create {option}{network} >/dev/null"
        # Docker makes a second one of the same name for who asks at the same moment, and then takes neither.
        yield f"flock /run/{network_of(deployment)}.lock sh -c {shlex.quote(make)}"
    if container.settings is not None:
        yield f'SKERRY_SETTINGS=$(cat "{{artifacts:path}}/{SETTINGS_FILE}")'
        yield "export SKERRY_SETTINGS"
    for n, mount in enumerate(_packages(container), 1):
        # In a local deployment it may lie there as a folder; from the cloud it comes as an archive.
        yield f'package{n}="{{artifacts:path}}/{mount.name}"'
        yield f'[ -d "$package{n}" ] || package{n}="{{artifacts:decompressedPath}}/{mount.name}"'
    if speaks_to_nucleus(container):
        yield "# Whoever is in the group of the nucleus' socket may open it; so is the container's user."
        yield f'group=$(stat -L -c %g "${_SOCKET_VARIABLE}")'


def _start(deployment: Deployment, container: Container, options: tuple[str, ...]) -> Iterator[str]:
    """Start it, in the background or, with `--rm`, as this process."""
    foreground = "--rm" in options
    flags = [*options, *_flags(deployment, container)]
    name = shlex.quote(name_of(deployment, container.name))
    others = [network for network, _ in _networks(deployment, container)][1:]
    begin = "exec docker run" if foreground else "docker run --detach"
    if others:  # an engine before Docker 25 starts a container in one network only
        begin = "docker create"
    image = shlex.quote(image_of(deployment, container))
    quiet = "" if begin.startswith("exec") else " >/dev/null"
    yield " \\\n  ".join([begin, *flags, f"{image}{quiet}"])
    for network in others:
        yield f"docker network connect {network} {name}"
    if others:
        yield f"exec docker start --attach {name}" if foreground else f"docker start {name} >/dev/null"


def _remove(deployment: Deployment, container: Container) -> Iterator[str]:
    yield f"docker rm --force {shlex.quote(name_of(deployment, container.name))} >/dev/null 2>&1 || true"
    for volume in container.volumes:
        if volume.kind == "frames":  # in use by the other one, perhaps
            yield f"docker volume rm {_volume_name(deployment, volume)} >/dev/null 2>&1 || true"
    if container.kind == "broker":
        # All others depend on it, so it is the last to go.
        for network in (network_of(deployment), f"{network_of(deployment)}-outside"):
            yield f"docker network rm {network} >/dev/null 2>&1 || true"


def _networks(deployment: Deployment, container: Container) -> list[tuple[str, str]]:
    """Those that it is in, and how each is made; the site's own first."""
    found = [(network_of(deployment), "--internal ")]
    # The nucleus is behind a socket; with a broker elsewhere everybody has to go there.
    if container.outside and not (speaks_to_nucleus(container) and deployment.broker is not None):
        found.append((f"{network_of(deployment)}-outside", ""))
    return found


def _flags(deployment: Deployment, container: Container) -> Iterator[str]:
    """All that the container is given, and no more, as words of the shell."""
    yield f"--name {shlex.quote(name_of(deployment, container.name))}"
    yield f"--user {USER}:{USER} --read-only --cap-drop ALL --security-opt no-new-privileges"
    memory = f"{container.memory_mb}m"
    yield f"--memory {memory} --memory-swap {memory} --pids-limit {container.pids}"
    if container.cpus:
        yield f"--cpus {container.cpus:g}"
    yield f"--tmpfs /tmp:size={TMP_MB}m,mode=1777,noexec,nosuid,nodev"
    log = f"--log-opt max-size={LOG_BYTES // 1_000_000}m --log-opt max-file={LOG_FILES}"
    yield f"--log-driver json-file {log}"
    yield f"--network {network_of(deployment)} --network-alias {shlex.quote(container.name)}"
    yield f"--stop-timeout {container.stop_s}"
    yield f"--health-cmd {shlex.quote(shlex.join(container.health))}"
    yield "--health-interval 15s --health-timeout 5s --health-retries 3 --health-start-period 60s"
    if container.settings is not None:
        yield "--env SKERRY_SETTINGS"
    yield from _mounted(deployment, container)
    yield from _machine(container)
    if speaks_to_nucleus(container):
        yield f'--mount "type=bind,source=${_SOCKET_VARIABLE},target={SOCKET}"'
        yield f"--env {_SOCKET_VARIABLE}={SOCKET}"
        yield '--env SVCUID --env AWS_IOT_THING_NAME --group-add "$group"'


def _mounted(deployment: Deployment, container: Container) -> Iterator[str]:
    for volume in container.volumes:
        its = f"type=volume,source={_volume_name(deployment, volume)},target={volume.inside}"
        its += ",readonly" if volume.read_only else ""
        if volume.kind == "frames":
            its += ",volume-driver=local,volume-opt=type=tmpfs,volume-opt=device=tmpfs"
            its += f',"volume-opt=o={tmpfs_options(volume)}"'
        yield f"--mount {shlex.quote(its)}"
    for n, mount in enumerate(_packages(container), 1):
        yield f'--mount "type=bind,source=$package{n},target={mount.inside},readonly"'
    for mount in container.mounts:
        if mount.role == "sources":
            # Not --mount, which insists on a folder that is there.
            yield f"--volume {shlex.quote(source_bind(mount, mount.outside))}"
        elif mount.role != "models":
            yield _from_folder(f"{mount.role}/{mount.name}", mount.inside)
    for file in container.files:
        source = f"{{artifacts:path}}/{file}"
        yield f'--mount "type=bind,source={source},target={BROKER_FILES}/{file},readonly"'
    if container.identity:
        yield _from_folder(f"certificates/{container.name}", BUS_CERTIFICATES)


def _from_folder(name: str, inside: str) -> str:
    return f'--mount "type=bind,source=${FOLDER}/{name},target={inside},readonly"'


def _machine(container: Container) -> Iterator[str]:
    """Devices, and the groups that may open them; the number of `render` is the machine's own."""
    if "nvidia" in container.accelerators:
        yield "--gpus all"
    for path in container.devices:
        yield f"--device {shlex.quote(path)}"
    for group in container.groups:
        yield f'--group-add "$(getent group {group} | cut -d: -f3)"'


def _packages(container: Container) -> list[Mount]:
    return [mount for mount in container.mounts if mount.role == "models"]


def _volume_name(deployment: Deployment, volume: Volume) -> str:
    """A volume in memory keeps the size that it was made with, so that is in its name."""
    size = f"-{mib(volume.bytes)}m" if volume.kind == "frames" else ""
    return shlex.quote(f"{name_of(deployment, volume.name)}{size}")
