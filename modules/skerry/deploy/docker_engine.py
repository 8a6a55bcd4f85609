"""A Docker engine, near or far, that is brought to what a site wants. The only file that imports `docker`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import docker
import msgspec
import requests

from skerry.deploy.archive import Entry, write
from skerry.deploy.engine import (
    DRAFT,
    FILLER,
    KIND_LABEL,
    SITE_LABEL,
    Changes,
    Copy,
    There,
    Thing,
    Wanted,
    WantedContainer,
    WantedVolume,
    labels_of,
)
from skerry.errors import Unavailable
from skerry.redact import cleaned

Say = Callable[[str], None]

_DEFAULT = "unix:///var/run/docker.sock"
_TIMEOUT_S = 60
_FILLED = "/filled"
_STOP_S = 10
"""For a container that does not say how long it may take, as the engine has it."""
_CRASHES = 3
"""Restarts after which waiting longer makes nothing well."""
_LONGEST = 300
"""Characters of a log's line that are shown."""
_IN_MEMORY = 8 * 1024 * 1024


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """How a container does."""

    module: str
    state: str
    """`healthy`, `starting`, `unhealthy`, or what the engine calls one that does not run."""
    restarts: int = 0
    """By the engine, since the container was made."""
    exit_code: int = 0
    said: str = ""
    """The last line of its log, or of its health command, where it is not well."""

    @property
    def well(self) -> bool:
        """Whether it says so itself."""
        return self.state == "healthy"

    @property
    def over(self) -> bool:
        """Whether nobody will start it again."""
        return self.state in ("exited", "dead", "missing")


class Engine:
    """An engine that has answered.

    Args:
        api: the low-level client; what is wanted is already in the words of its API.
        address: how to call it in messages.
    """

    def __init__(self, api: docker.APIClient, address: str) -> None:
        self._api = api
        self._address = address

    def close(self) -> None:
        """Let go of its connections."""
        self._api.close()

    def look(self, images: Sequence[str]) -> There:
        """What is there, and which of these images.

        Raises:
            Unavailable: the engine does not answer, or refuses.
        """
        with self._asked("what is there"):
            containers = [
                Thing(
                    name=(row["Names"] or ["/"])[0].removeprefix("/"), id=row["Id"],
                    labels=row["Labels"] or {}, state=row["State"], image=row["ImageID"],
                )
                for row in self._api.containers(all=True)
            ]  # fmt: skip
            volumes = self._api.volumes()["Volumes"] or []
            return There(
                containers=tuple(containers),
                volumes=tuple(Thing(name=row["Name"], labels=row["Labels"] or {}) for row in volumes),
                networks=tuple(
                    Thing(name=row["Name"], id=row["Id"], labels=row["Labels"] or {})
                    for row in self._api.networks()
                ),
                images={name: its for name in dict.fromkeys(images) if (its := self._image(name))},
            )

    def apply(
        self, changes: Changes, wanted: Wanted, files: Mapping[Copy, Sequence[Entry]], say: Say
    ) -> None:
        """Make the changes. What may fail is done first, while everything old still runs.

        Volumes are filled and new containers made under another name; then the old ones end in the order of
        the flow, and the new ones take their places, those who are sent to first.

        Args:
            changes: as `engine.changes` has them of this engine.
            wanted: what they were made of.
            files: what to fill volumes with.
            say: told of each step.

        Raises:
            Unavailable: the engine does not answer, or refuses. Running again goes on from there.
        """
        self._clear(changes, say)
        for name in changes.new_networks:
            say(f"network {name}")
            with self._asked(f"network {name}"):
                self._api.create_network(
                    name, driver="bridge", internal=wanted.networks[name], check_duplicate=True,
                    labels={SITE_LABEL: wanted.site},
                )  # fmt: skip
        for volume in changes.new_volumes:
            say(f"volume {volume.name}")
            self._make_volume(volume, wanted, files)
        by_name = {container.name: container for container in wanted.containers}
        drafts = {
            change.name: self._draft(by_name[change.name], wanted)
            for change in changes.containers
            if change.action in ("create", "replace")
        }
        self._stop(changes, say)
        for change in changes.containers:
            if change.ends:
                with self._asked(f"container {change.name}"):
                    self._api.remove_container(change.old)
        for change in changes.containers:
            if change.action != "remove":
                say(f"start {change.name}")
                self._start(change.name, drafts.get(change.name), change.old)
        self._remove_old(changes, say)

    def remove(self, changes: Changes, say: Say) -> None:
        """Make the changes of `engine.removal`.

        Raises:
            Unavailable: the engine does not answer, or refuses.
        """
        self._clear(changes, say)
        self._stop(changes, say)
        for change in changes.containers:
            with self._asked(f"container {change.name}"):
                self._api.remove_container(change.old, force=True)
        self._remove_old(changes, say)

    def health(self, wanted: Wanted) -> list[Health]:
        """How every container does.

        Raises:
            Unavailable: the engine does not answer.
        """
        return [self._health_of(container) for container in wanted.containers]

    def _clear(self, changes: Changes, say: Say) -> None:
        """Remove what a run that was cut off has left."""
        for thing in changes.left_over:
            say(f"remove {thing.name}")
            with self._asked(f"container {thing.name}"):
                self._api.remove_container(thing.id, force=True)
        for name in changes.half_filled:
            with self._asked(f"volume {name}"):
                self._api.remove_volume(name)

    def _make_volume(
        self, volume: WantedVolume, wanted: Wanted, files: Mapping[Copy, Sequence[Entry]]
    ) -> None:
        labels = {SITE_LABEL: wanted.site, KIND_LABEL: volume.kind}
        with self._asked(f"volume {volume.name}"):
            if volume.copy is None:
                self._api.create_volume(
                    volume.name, driver="local", driver_opts=volume.options or None, labels=labels
                )
                return
            # Only through a container can files get into a volume of an engine that may be far away; this one
            # never runs. The engine makes the volume with it, so a volume without it is a filled one.
            image = next(
                c.image
                for c in wanted.containers
                if volume.name in (mount["Source"] for mount in c.config["HostConfig"]["Mounts"])
            )
            mount = {
                "Type": "volume", "Source": volume.name, "Target": _FILLED,
                "VolumeOptions": {"NoCopy": True, "Labels": labels},
            }  # fmt: skip
            filler = self._api.create_container_from_config(
                {
                    "Image": image,
                    "Labels": {SITE_LABEL: wanted.site, KIND_LABEL: "filler"},
                    "HostConfig": {"Mounts": [mount], "NetworkMode": "none"},
                },
                name=f"{volume.name}{FILLER}",
            )["Id"]
            with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as archive:
                write(files[volume.copy], archive)
                archive.seek(0)
                self._api.put_archive(filler, _FILLED, archive)
            self._api.remove_container(filler)

    def _draft(self, container: WantedContainer, wanted: Wanted) -> str:
        """Make a container under another name; returns its id."""
        with self._asked(f"container {container.name}"):
            body = {**container.config, "Labels": labels_of(wanted, container)}
            draft: str = self._api.create_container_from_config(body, name=f"{container.name}{DRAFT}")["Id"]
            for network in container.networks:
                self._api.connect_container_to_network(draft, network)
            return draft

    def _stop(self, changes: Changes, say: Say) -> None:
        for change in changes.stopping:
            say(f"stop {change.name}")
            with self._asked(f"container {change.name}"):
                limit = self._api.inspect_container(change.old)["Config"].get("StopTimeout")
                self._api.stop(change.old, timeout=_STOP_S if limit is None else limit)

    def _start(self, name: str, draft: str | None, old: str) -> None:
        with self._asked(f"container {name}"):
            if draft is not None:
                self._api.rename(draft, name)
            its = draft or old
            if self._api.inspect_container(its)["State"]["Paused"]:
                self._api.unpause(its)
            else:
                self._api.start(its)

    def _remove_old(self, changes: Changes, say: Say) -> None:
        for thing in changes.old_volumes:
            say(f"remove volume {thing.name}")
            with self._asked(f"volume {thing.name}"):
                self._api.remove_volume(thing.name)
        for thing in changes.old_networks:
            say(f"remove network {thing.name}")
            with self._asked(f"network {thing.name}"):
                self._api.remove_network(thing.id)

    def _health_of(self, container: WantedContainer) -> Health:
        with self._asked(f"container {container.name}"):
            try:
                row = self._api.inspect_container(container.name)
            except docker.errors.NotFound:
                return Health(module=container.module, state="missing")
            state: dict[str, Any] = row["State"]
            health = state.get("Health") or {}
            status = health.get("Status", "healthy") if state["Status"] == "running" else state["Status"]
            said = "" if status == "healthy" else self._last_words(row["Id"], health, status)
            return Health(
                module=container.module, state=status, restarts=row["RestartCount"],
                exit_code=state["ExitCode"], said=said,
            )  # fmt: skip

    def _last_words(self, container: str, health: dict[str, Any], status: str) -> str:
        if status == "unhealthy" and health.get("Log"):
            text = health["Log"][-1].get("Output", "")
        else:
            text = self._api.logs(container, tail=1).decode(errors="replace")
        last = text.strip().splitlines()[-1:]
        return cleaned(last[0])[:_LONGEST] if last else ""

    def _image(self, reference: str) -> str:
        try:
            return str(self._api.inspect_image(reference)["Id"])
        except docker.errors.ImageNotFound:
            return ""

    @contextmanager
    def _asked(self, what: str) -> Iterator[None]:
        """An error of the engine, or of the way to it, in the project's words."""
        try:
            yield
        except docker.errors.APIError as error:
            reason = error.explanation or error
            raise Unavailable(f"{what}: the engine at {self._address} says: {reason}") from error
        except (docker.errors.DockerException, requests.RequestException) as error:
            raise Unavailable(f"{what}: the engine at {self._address} does not answer: {error}") from error
        except OSError as error:
            raise Unavailable(f"{what}: {error.filename or what}: {error.strerror or error}") from error


def connect() -> Engine:
    """The engine that DOCKER_HOST names, else this machine's.

    Raises:
        Unavailable: nobody answers there.
    """
    its = docker.utils.kwargs_from_env()
    address = its.setdefault("base_url", _DEFAULT)
    try:
        api = docker.APIClient(version="auto", timeout=_TIMEOUT_S, use_ssh_client=True, **its)
    except (docker.errors.DockerException, requests.RequestException, OSError) as error:
        raise Unavailable(
            f"DOCKER_HOST: expected an engine at {address}, got none: {_root(error)} "
            "(start it, join the group docker, or name another engine in DOCKER_HOST)"
        ) from error
    return Engine(api, address)


def wait(
    ask: Callable[[], list[Health]],
    say: Say,
    *,
    seconds: float,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait until every container is healthy, and say so as each gets there.

    Args:
        ask: how they do.
        say: told of each change.
        seconds: how long at most.
        now: monotonic time, s.
        sleep: waits so many seconds.

    Raises:
        Unavailable: one of them is not well, and why, as far as it says.
    """
    begin = now()
    seen: dict[str, str] = {}
    first: dict[str, int] = {}
    while True:
        found = ask()
        for health in found:
            if seen.get(health.module) != health.state:
                seen[health.module] = health.state
                say(f"{health.module:12} {health.state:10} {now() - begin:4.0f} s")
        if all(health.well for health in found):
            return
        lost = [
            h for h in found
            if h.over or h.restarts - first.setdefault(h.module, h.restarts) >= _CRASHES
        ]  # fmt: skip
        if lost or now() - begin >= seconds:
            ill = lost or [h for h in found if not h.well]
            raise Unavailable("\n".join(_told(h, None if lost else seconds) for h in ill))
        sleep(1.0)


def _told(health: Health, seconds: float | None) -> str:
    """Why a container is not well."""
    limit = "" if seconds is None else f" within {seconds:g} s"
    crashed = f", exit code {health.exit_code}" if health.restarts or health.over else ""
    said = f": {health.said}" if health.said else ""
    return f"{health.module}: expected it healthy{limit}, got {health.state}{crashed}{said}"


def _root(error: BaseException) -> str:
    """The innermost reason, which is the one that says something."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    reason = getattr(error, "strerror", None) or error
    return str(reason)
