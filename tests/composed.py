"""A site that runs from its compose file, as an operator starts it, and what it leaves behind."""

import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from skerry import __version__
from skerry.cli import main
from skerry.deploy.account import Counts
from skerry.deploy.compose import COMPOSE_FILE
from skerry.deploy.contained import OUTPUT, USER, contained, place
from skerry.deploy.plan import Plan, plan
from skerry.deploy.site import load_site

DOCKER = os.environ.get("SKERRY_ENGINE", "docker")
_numbers = itertools.count(1)
READER = f"skerry-decision:{__version__}"
"""An image with our code, to look into volumes with."""
_TALLIES = """
import json, sys
from pathlib import Path
from skerry.ledger import read_tally
print(json.dumps({name: read_tally(Path("/read", name, name, "tally")) for name in sys.argv[1:]}))
"""


class Composed:
    """A running site.

    Args:
        folder: what `skerry render compose` wrote.
        the_plan: the plan that it was written from.
        project: name of the compose project.
    """

    def __init__(self, folder: Path, the_plan: Plan, project: str) -> None:
        self.folder = folder
        self.plan = the_plan
        self.project = project
        self.file = folder / COMPOSE_FILE
        self.document: dict[str, Any] = yaml.safe_load(self.file.read_text(encoding="utf-8"))
        self.services = list(self.document["services"])
        self._command = [DOCKER, "compose"]
        if subprocess.run([*self._command, "version"], capture_output=True, check=False).returncode:
            # Debian's compose is of the first generation, which does not know that a file may have a name.
            self._command = ["docker-compose"]
            self.file = folder / "compose.nameless.yaml"
            nameless = {key: value for key, value in self.document.items() if key != "name"}
            self.file.write_text(yaml.safe_dump(nameless, sort_keys=False), encoding="utf-8")

    def compose(self, *arguments: str) -> str:
        """Run compose."""
        command = [*self._command, "-p", self.project, "-f", str(self.file), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.folder, check=False)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
        return done.stdout

    def container(self, service: str) -> str:
        """Id of a service's container, running or not."""
        wanted = [
            f"label=com.docker.compose.project={self.project}",
            f"label=com.docker.compose.service={service}",
        ]
        return docker("ps", "-aq", *(f"--filter={w}" for w in wanted)).strip()

    def state(self, service: str) -> dict[str, Any]:
        """What the engine says of a service's process."""
        found: dict[str, Any] = json.loads(
            docker("inspect", "-f", "{{json .State}}", self.container(service))
        )
        return found

    def restarts(self, service: str) -> int:
        """How often the engine has started it again by itself."""
        return int(docker("inspect", "-f", "{{.RestartCount}}", self.container(service)))

    def logs(self, service: str) -> list[str]:
        """All lines that a service has logged."""
        return docker("logs", self.container(service), both=True).splitlines()

    def written(self, service: str) -> list[str]:
        """What a container has changed outside its volumes; a mount point that the engine made is none."""
        mounts = json.loads(docker("inspect", "-f", "{{json .Mounts}}", self.container(service)))
        made = {str(p) for m in mounts for p in (Path(m["Destination"]), *Path(m["Destination"]).parents)}
        changes = docker("diff", self.container(service)).splitlines()
        return [change for change in changes if change.split(maxsplit=1)[1] not in made]

    def counts(self) -> Counts:
        """What every module has counted."""
        volumes = [
            f"-v={self.project}_{part.module}-state:/read/{part.module}:ro" for part in self.plan.parts
        ]
        names = [part.module for part in self.plan.parts]
        text = docker("run", "--rm", "--entrypoint=python3", *volumes, READER, "-c", _TALLIES, *names)
        found: Counts = json.loads(text)
        return found

    def delivered(self) -> list[dict[str, Any]]:
        """The events that the far end has, which is a file here."""
        path = f"pathlib.Path('{OUTPUT}/events.jsonl')"
        code = f"import pathlib\nprint({path}.exists() and {path}.read_text())"
        volume = f"-v={self.project}_output:{OUTPUT}:ro"
        text = docker("run", "--rm", "--entrypoint=python3", volume, READER, "-c", code)
        return [json.loads(line) for line in text.splitlines() if line not in ("", "False")]

    def count(self, module: str, name: str) -> int:
        """One count of one module."""
        return self.counts()[module].get(name, 0)


def docker(*arguments: str, both: bool = False) -> str:
    """Run the engine's client; returns what it says, on standard error too if `both`."""
    done = subprocess.run([DOCKER, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"docker {' '.join(arguments)}\n{done.stdout}{done.stderr}"
    return done.stdout + (done.stderr if both else "")


@contextmanager
def composed(site: Path, folder: Path, *, secure: bool = False) -> Iterator[Composed]:
    """Render a site, start it, and leave nothing of it behind."""
    assert (
        main(["render", "compose", str(site), "--out", str(folder), *([] if secure else ["--plain-bus"])])
        == 0
    )
    if secure:
        certificates = folder / "certificates"
        assert main(["certs", str(site), "--out", str(certificates)]) == 0
        for path in (certificates, *certificates.rglob("*")):
            shutil.chown(path, USER, USER)
    inside, mounts = contained(load_site(site, here=False))
    for mount in mounts:
        if mount.role == "inputs":
            (folder / "inputs").mkdir(exist_ok=True)
            shutil.copy(mount.outside, folder / "inputs" / mount.name)
    running = Composed(
        folder, plan(inside, place(inside, secure=secure)), f"skerry-test-{os.getpid()}-{next(_numbers)}"
    )
    try:
        running.compose("up", "-d")
        yield running
    finally:
        running.compose("down", "-v", "-t", "10")
