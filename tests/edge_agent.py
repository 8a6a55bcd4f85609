"""A device of Azure IoT Edge without Azure: what agent and daemon do with a manifest, on a real engine.

Each module becomes a container from its `createOptions` as they are; what is added is what IoT Edge adds:
image, environment, labels, the module's socket, and the network, where a module is found by its name. (On a
device its container is called so. Here that is an alias, since other tests use the same engine.)

Source: Azure/iotedge, edge-agent, DockerConfig.cs and CombinedEdgeletConfigProvider.cs (chunks, socket,
network); edgelet-docker, runtime.rs (`create`, `merge_env`).
"""

import http.client
import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from skerry.deploy.contained import USER

ENGINE = Path(os.environ.get("SKERRY_ENGINE_SOCKET", "/var/run/docker.sock"))
SOCKET = "/var/run/iotedge/workload.sock"
"""Where a module finds the workload API."""
OWNER = {"net.azure-devices.edge.owner": "Microsoft.Azure.Devices.Edge.Agent"}


class Engine:
    """The engine's API, version 1.41, on its socket."""

    def ask(self, method: str, path: str, body: Any = None, *, missing: bool = False) -> Any:
        """One request; the answer's JSON, or its text.

        Args:
            method: of HTTP.
            path: below the version.
            body: sent as JSON.
            missing: whether what is not there is fine; None then.
        """
        connection = _Local("localhost", timeout=120)
        try:
            headers = {"Content-Type": "application/json"}
            content = None if body is None else json.dumps(body)
            connection.request(method, f"/v1.41{path}", content, headers)
            answer = connection.getresponse()
            raw = answer.read()
        finally:
            connection.close()
        if missing and answer.status == 404:
            return None
        assert answer.status < 300, f"{method} {path}: {answer.status} {raw.decode(errors='replace')}"
        if answer.getheader("Content-Type", "").startswith("application/json"):
            return json.loads(raw)
        return raw.decode(errors="replace")


class _Local(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(ENGINE))


def joined(settings: dict[str, str]) -> dict[str, Any]:
    """The options of a module, put together from their chunks as the agent does."""
    text = settings.get("createOptions", "")
    for n in range(1, 100):
        piece = settings.get(f"createOptions{n:02d}")
        if piece is None:
            break
        text += piece
    options: dict[str, Any] = json.loads(text)
    return options


def merged(env: dict[str, dict[str, str]], options: dict[str, Any], more: dict[str, str]) -> list[str]:
    """The environment: the module's `env`, what the daemon adds, and on top what the options have."""
    told = {name: value["value"] for name, value in env.items()} | more
    told |= dict(line.split("=", 1) for line in options.get("Env", []))
    return [f"{name}={value}" for name, value in sorted(told.items())]


class Device:
    """A device that has a manifest.

    Args:
        manifest: a full one, parsed.
        prefix: of the names of what is made.
        workload: the workload API's socket on this machine.
        told: by the daemon, to every module.
    """

    def __init__(
        self, manifest: dict[str, Any], prefix: str, workload: Path, told: dict[str, str] | None = None
    ) -> None:
        desired = manifest["modulesContent"]["$edgeAgent"]["properties.desired"]
        self.modules: dict[str, dict[str, Any]] = dict(
            sorted(desired["modules"].items(), key=lambda item: item[1]["startupOrder"])
        )
        self.engine = Engine()
        self.prefix = prefix
        self.network = f"{prefix}-azure-iot-edge"
        self._workload = workload
        self.told = told or {}

    @property
    def gateway(self) -> str:
        """This machine's address in the device's network."""
        found: str = self.engine.ask("GET", f"/networks/{self.network}")["IPAM"]["Config"][0]["Gateway"]
        return found

    def connect(self) -> None:
        """Make the network, as the daemon does when it starts."""
        self.engine.ask("POST", "/networks/create", {"Name": self.network, "CheckDuplicate": True})

    def apply(self) -> None:
        """Create and start every module in the order of starting."""
        for name in self.modules:
            self.create(name)
            self.engine.ask("POST", f"/containers/{self.prefix}-{name}/start")

    def create(self, name: str) -> None:
        """Create one module's container."""
        module = self.modules[name]
        options = joined(module["settings"])
        binds = [*options["HostConfig"].get("Binds", []), f"{self._workload}:{SOCKET}"]
        body = {
            **options,
            "Image": module["settings"]["image"],
            "Env": merged(module.get("env", {}), options, self.told),
            "Labels": OWNER,
            "HostConfig": {**options["HostConfig"], "Binds": binds},
            "NetworkingConfig": {"EndpointsConfig": {self.network: {"Aliases": [name]}}},
        }
        self.engine.ask("POST", f"/containers/create?name={self.prefix}-{name}", body)

    def inspect(self, name: str) -> dict[str, Any]:
        """What the engine says of a module's container."""
        found: dict[str, Any] = self.engine.ask("GET", f"/containers/{self.prefix}-{name}/json")
        return found

    def written(self, name: str) -> list[str]:
        """What a module has changed outside its volumes; a mount point that the engine made is none."""
        mounts = [Path(mount["Destination"]) for mount in self.inspect(name)["Mounts"]]
        made = {str(path) for mount in mounts for path in (mount, *mount.parents)}
        changes = self.engine.ask("GET", f"/containers/{self.prefix}-{name}/changes") or []
        # /var/run is a link in our images.
        made |= {path.replace("/var/run", "/run", 1) for path in made}
        return [change["Path"] for change in changes if change["Path"] not in made]

    def run(self, name: str, code: str) -> str:
        """What a Python program says in a module's container."""
        command = [
            os.environ.get("SKERRY_ENGINE", "docker"),
            "exec",
            f"{self.prefix}-{name}",
            "python3",
            "-c",
        ]
        done = subprocess.run([*command, code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def volumes(self) -> set[str]:
        """Names of the volumes that the modules have."""
        options = [joined(module["settings"]) for module in self.modules.values()]
        mounts = [mount for each in options for mount in each["HostConfig"]["Mounts"]]
        return {mount["Source"] for mount in mounts if mount["Type"] == "volume"}

    def logs(self) -> str:
        """The end of what everybody has logged, to say why a test fails."""
        said = []
        for name in self.modules:
            path = f"/containers/{self.prefix}-{name}/logs?stdout=1&stderr=1&tail=15"
            lines = self.engine.ask("GET", path, missing=True)
            said.append(f"== {name}\n" + re.sub(r"[^\n\x20-\x7e]", "", lines or "is not there\n"))
        return "\n".join(said)

    def remove(self) -> None:
        """Leave nothing behind."""
        for name in self.modules:
            self.engine.ask("DELETE", f"/containers/{self.prefix}-{name}?force=1", missing=True)
        self.remove_volumes()
        self.engine.ask("DELETE", f"/networks/{self.network}", missing=True)

    def remove_volumes(self) -> None:
        for volume in sorted(self.volumes()):
            self.engine.ask("DELETE", f"/volumes/{volume}", missing=True)


@contextmanager
def brought(folder: Path, target: Path) -> Iterator[None]:
    """The files of a device in their place, brought as the README of deployment-manifests says."""
    assert not target.exists(), f"{target} is there already"
    packed = folder.parent / "device.tgz"
    owner = [f"--owner={USER}", f"--group={USER}"]
    subprocess.run(["tar", "-C", str(folder), *owner, "-czf", str(packed), "."], check=True)
    target.mkdir(parents=True)
    try:
        subprocess.run(["tar", "-C", str(target), "-xzpf", str(packed)], check=True)
        yield
    finally:
        shutil.rmtree(target)
