"""A site that runs from its Kubernetes objects, without a cluster, as containers of `podman kube play`.

podman is not Kubernetes. What it lacks, and what stands in for it here:

    Service, DNS        each pod has an address in a bridge network; `hostAliases` name the broker's
    Secret              podman's own secrets, made from the same files; podman 4.3 does not decode base64
    containerPort       left out: podman would publish it on the machine
    restartPolicy       OnFailure: under Always podman starts an init container again and again
    probes              asked by the test, as the kubelet would; podman wants systemd and curl for that
    NetworkPolicy, ServiceAccount, Pod Security, requests, extended resources   not at all

Everything else is taken as it was rendered: images, init containers, settings, security contexts, limits of
memory, volumes and claims. Images come from the engine that built them.
"""

import ipaddress
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from composed import DOCKER
from skerry.cli import main
from skerry.deploy.contained import BUS_HOST
from skerry.deploy.k3s import IMAGES_FILE
from skerry.deploy.plan import CA_FILE, CERTIFICATE_FILE, KEY_FILE

PODS = ("broker", "updater", "uplink", "buffer", "decision", "vision")
"""In the order of starting; stopped the other way round. A site need not have an updater."""
_WRAPPER = Path(__file__).with_name("runc_without_limits")
Object = dict[str, Any]


class Played:
    """A running site.

    Args:
        folder: what `skerry render k3s` wrote.
        storage: podman's own folder, of this site alone.
    """

    def __init__(self, folder: Path, storage: Path) -> None:
        self.folder = folder
        self._storage = storage
        self._network = f"skerry-test-{os.getpid()}"
        self.names = [name for name in PODS if (folder / f"base/{name}.yaml").exists()]
        self.pods: dict[str, Object] = {}
        """The specification of each pod as it was rendered."""

    def podman(self, *arguments: str, stdin: Any = None, both: bool = False) -> str:
        """Run podman; returns what it says, on standard error too if `both`."""
        storage = self._storage
        command = [
            "podman", "--root", str(storage / "root"), "--runroot", str(storage / "run"),
            "--tmpdir", str(storage / "tmp"), "--network-config-dir", str(storage / "networks"),
            "--cgroup-manager", "cgroupfs", "--events-backend", "none", "--runtime", str(_WRAPPER),
            *arguments,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, stdin=stdin, check=False)
        assert done.returncode == 0, f"podman {' '.join(arguments)}\n{done.stdout}{done.stderr}"
        return done.stdout + (done.stderr if both else "")

    def load(self) -> None:
        """Bring the images of `images.txt` from the engine, as an operator brings them to a node."""
        names = (self.folder / IMAGES_FILE).read_text(encoding="utf-8").split()
        with subprocess.Popen([DOCKER, "save", *names], stdout=subprocess.PIPE) as saved:
            self.podman("load", stdin=saved.stdout)
        assert saved.returncode == 0, f"docker save {' '.join(names)}"

    def secrets(self, certificates: Path) -> None:
        """Make the Secrets of the bus from what `skerry certs` made."""
        for folder in certificates.iterdir():
            if not (folder / KEY_FILE).exists():
                continue
            files = (CA_FILE, CERTIFICATE_FILE, KEY_FILE)
            self.secret(f"certificates-{folder.name}", *(folder / name for name in files))

    def secret(self, name: str, *files: Path) -> None:
        """Make a Secret, its keys being the files' names."""
        data = {file.name: file.read_text(encoding="utf-8") for file in files}
        path = self._storage / "secret.json"
        path.write_text(json.dumps({"data": data}), encoding="utf-8")
        self.podman("secret", "create", name, str(path))
        path.unlink()

    def volume(self, claim: str) -> Path:
        """The folder that a claim is here."""
        return self._storage / "root/volumes" / claim / "_data"

    def play(self) -> None:
        """Start every pod of the base."""
        self.podman("network", "create", self._network)
        [network] = json.loads(self.podman("network", "inspect", self._network))
        first = ipaddress.ip_network(network["subnets"][0]["subnet"])[10]
        for n, name in enumerate(self.names):
            documents = list(
                yaml.safe_load_all((self.folder / f"base/{name}.yaml").read_text(encoding="utf-8"))
            )
            [deployment] = [each for each in documents if each["kind"] == "Deployment"]
            self.pods[name] = deployment["spec"]["template"]["spec"]
            deployment["spec"]["template"]["spec"] = _bridged(self.pods[name], str(first))
            path = self._storage / f"{name}.yaml"
            path.write_text(yaml.safe_dump_all(documents), encoding="utf-8")
            self.podman("kube", "play", "-q", "--network", self._network, "--ip", str(first + n), str(path))

    def container(self, pod: str, name: str) -> str:
        """What podman calls a container."""
        return f"{pod}-pod-0-{name}"

    def containers(self) -> list[tuple[str, str]]:
        """Every container but those that end before the others start, with its pod."""
        return [(pod, c["name"]) for pod in self.names for c in self.pods[pod]["containers"]]

    def run(self, pod: str, name: str, *command: str) -> str:
        """Run a command in a container."""
        return self.podman("exec", self.container(pod, name), *command)

    def delivered(self) -> list[Object]:
        """The events that the far end has, which is a file here."""
        path = self.volume("output") / "events.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]

    def stop(self) -> dict[str, int]:
        """Stop in the order of the flow, each in the time that it has; every container's exit code."""
        codes = {}
        for pod in reversed(self.names):
            seconds = self.pods[pod]["terminationGracePeriodSeconds"]
            self.podman("pod", "stop", "-t", str(seconds), f"{pod}-pod-0")
            for container in self.pods[pod]["containers"]:
                name = self.container(pod, container["name"])
                codes[container["name"]] = int(self.podman("inspect", "-f", "{{.State.ExitCode}}", name))
        return codes

    def remove(self) -> None:
        """Leave nothing behind."""
        self.podman("pod", "rm", "-f", "-a", "-t", "1")
        self.podman("rm", "-f", "-a", "-v", "-t", "1")
        self.podman("network", "rm", "-f", self._network)
        # Where its addresses were noted, which podman forgets. Its empty chains of iptables stay.
        shutil.rmtree(Path("/var/lib/cni/networks", self._network), ignore_errors=True)


@contextmanager
def played(site: Path, folder: Path, secrets: Mapping[str, Path] | None = None) -> Iterator[Played]:
    """Render a site, start its pods on a secured bus, and leave nothing of it behind.

    Args:
        site: its file.
        folder: where the rendering and the certificates go.
        secrets: Secrets besides those of the bus, each with the one file that is in it.
    """
    assert main(["render", "k3s", str(site), "--out", str(folder / "site")]) == 0
    assert main(["certs", str(site), "--out", str(folder / "certificates")]) == 0
    # A short path: sockets are in it, whose names have a bound of 107 characters.
    storage = Path(tempfile.mkdtemp(prefix="skerry-podman-"))
    running = Played(folder / "site", storage)
    try:
        running.load()
        running.secrets(folder / "certificates")
        for name, file in (secrets or {}).items():
            running.secret(name, file)
        running.play()
        yield running
    finally:
        running.remove()
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
        for path in sorted(
            (m.split()[1] for m in mounts if m.split()[1].startswith(str(storage))), reverse=True
        ):
            subprocess.run(["umount", path], check=True)
        shutil.rmtree(storage)


def _bridged(pod: Object, broker: str) -> Object:
    """A pod as podman can run it."""
    return {
        **pod,
        "containers": [{k: v for k, v in c.items() if k != "ports"} for c in pod["containers"]],
        "hostAliases": [{"ip": broker, "hostnames": [BUS_HOST]}],
        "restartPolicy": "OnFailure",
    }
