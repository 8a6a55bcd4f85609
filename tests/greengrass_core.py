"""A core device of Greengrass without Greengrass: what either nucleus does with a recipe, on a real engine.

Variables are put into scripts as each of them does it, artifacts are where each has them, and scripts run
with the environment that a component has. Names of the site's containers, networks and volumes get a start of
their own, since other tests use the same engine.

Source: greengrass-lite, modules/recipe-runner/src/runner.c (braces, quoting, Setenv) and ggdeploymentd (the
artifacts of a local deployment stay as they are); greengrass-nucleus, KernelConfigResolver.java
(interpolation, as text) and GenericExternalService.java (Setenv, as environment).
"""

import os
import re
import shutil
import signal
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import yaml

from skerry.deploy.greengrass_recipe import Variant
from skerry.deploy.greengrass_scripts import WAIT_S

PATIENCE_S = 200
_ENGINE = os.environ.get("SKERRY_ENGINE", "docker")


def allowed(recipe: dict[str, Any]) -> dict[str, list[str]]:
    """A recipe's accessControl as operation to resources, which is how the nucleus of the tests has it."""
    found: dict[str, list[str]] = {}
    configuration = recipe["ComponentConfiguration"]["DefaultConfiguration"]
    for policies in configuration.get("accessControl", {}).values():
        for policy in policies.values():
            for operation in policy["operations"]:
                found.setdefault(operation.partition("#")[2], []).extend(policy["resources"])
    return found


class Core:
    """A core device that was given a rendering.

    Args:
        rendering: what `skerry render greengrass` wrote, with `models/` beside.
        variant: which nucleus it has.
        root: the nucleus' own folder, made here.
        configuration: of every component, in place of its default, key by key.
        name: what names of this site begin with instead of `skerry-SITE`.
    """

    def __init__(
        self, rendering: Path, variant: Variant, root: Path, configuration: dict[str, str], name: str
    ) -> None:
        self.variant = variant
        self.root = root
        self.name = name
        self.environment: dict[str, str] = {}
        self._configuration = configuration
        self.recipes: dict[str, dict[str, Any]] = {}
        for path in sorted((rendering / variant / "recipes").iterdir()):
            recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
            self.recipes[recipe["ComponentName"].rpartition(".")[2]] = recipe
        self._site = next(iter(self.recipes.values()))["ComponentName"].split(".")[1]
        for recipe in self.recipes.values():
            self._place(recipe, rendering)

    def artifacts(self, module: str, *, unarchived: bool = False) -> Path:
        """Where a component's files are."""
        recipe = self.recipes[module]
        folder = "artifacts-unarchived" if unarchived else "artifacts"
        return self.root / "packages" / folder / recipe["ComponentName"] / recipe["ComponentVersion"]

    def container(self, module: str) -> str:
        """What the engine calls a module's container here."""
        return f"{self.name}-{module}"

    def step(self, module: str, name: str) -> tuple[str, dict[str, str], int]:
        """A lifecycle step as it is run: script, environment, seconds that it has."""
        raw = self.recipes[module]["Manifests"][0]["Lifecycle"][name]
        setenv: dict[str, str] = raw.get("Setenv", {})
        environment = {"PATH": os.environ["PATH"], "HOME": "/root", **self.environment}
        if self.variant == "lite":
            exports = [f"export {k}='{self._lite(v, module, single=True)}'\n" for k, v in setenv.items()]
            script = "#!/bin/sh\n" + "".join(exports) + self._lite(raw["Script"], module, single=False)
        else:
            environment |= {k: self._nucleus(v, module) for k, v in setenv.items()}
            script = self._nucleus(raw["Script"], module)
        return script.replace(f"skerry-{self._site}", self.name), environment, raw["Timeout"]

    def do(self, module: str, name: str, wait_s: int = PATIENCE_S) -> subprocess.CompletedProcess[str]:
        """Run a step to its end.

        Args:
            module: whose.
            name: of the step.
            wait_s: what `startup` waits at most; a device is never as busy as a machine that tests.
        """
        script, environment, timeout_s = self.step(module, name)
        if name == "startup":
            assert f"+ {WAIT_S}))" in script
            script = script.replace(f"+ {WAIT_S}))", f"+ {wait_s}))")
        return subprocess.run(
            ["/bin/sh", "-c", script], env=environment, capture_output=True, text=True,
            timeout=timeout_s + PATIENCE_S, check=False,
        )  # fmt: skip

    def begin(self, module: str) -> subprocess.Popen[bytes]:
        """Run the step `run`, as a unit of systemd has it: one process in the foreground."""
        script, environment, _ = self.step(module, "run")
        path = self.root / f"{module}.sh"
        path.write_text(script, encoding="utf-8")
        path.chmod(0o700)
        with (self.root / f"{module}.log").open("wb") as log:
            return subprocess.Popen([str(path)], env=environment, stdout=log, stderr=log, cwd=self.root)

    def end(self, process: subprocess.Popen[bytes]) -> int:
        """Stop such a process as systemd does."""
        process.send_signal(signal.SIGTERM)
        return process.wait(PATIENCE_S)

    def clear(self) -> None:
        """Leave nothing on the engine."""
        for listed, remove in (
            (["ps", "-aq"], ["rm", "-f"]),
            (["network", "ls", "-q"], ["network", "rm"]),
            (["volume", "ls", "-q"], ["volume", "rm"]),
        ):
            found = subprocess.run(
                [_ENGINE, *listed, "--filter", f"name={self.name}"],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.split()
            if found:
                subprocess.run([_ENGINE, *remove, *found], capture_output=True, check=True)
        Path(f"/run/{self.name}.lock").unlink(missing_ok=True)

    def left(self) -> dict[str, list[str]]:
        """What of the site is on the engine: names of containers, networks and volumes."""
        formats = {
            "containers": ["ps", "-a", "--format", "{{.Names}}"],
            "networks": ["network", "ls", "--format", "{{.Name}}"],
            "volumes": ["volume", "ls", "--format", "{{.Name}}"],
        }
        return {
            kind: sorted(
                subprocess.run(
                    [_ENGINE, *asked, "--filter", f"name={self.name}"],
                    capture_output=True, text=True, check=True,
                ).stdout.split()
            )
            for kind, asked in formats.items()
        }  # fmt: skip

    def _place(self, recipe: dict[str, Any], rendering: Path) -> None:
        module = recipe["ComponentName"].rpartition(".")[2]
        given = rendering / self.variant / "artifacts" / recipe["ComponentName"] / recipe["ComponentVersion"]
        there = self.artifacts(module)
        shutil.copytree(given, there)
        for artifact in recipe["Manifests"][0]["Artifacts"]:
            name = artifact["Uri"].rpartition("/")[2]
            if artifact["Uri"].startswith("s3://"):
                assert artifact["Uri"].split("/")[3:] == [*given.parts[-2:], name]
            if artifact.get("Unarchive") != "ZIP":
                continue
            if self.variant == "lite":  # a local deployment: nothing is unpacked
                (there / name).unlink(missing_ok=True)
                shutil.copytree(rendering / "models" / name.removesuffix(".zip"), there / name[:-4])
            else:
                unpacked = self.artifacts(module, unarchived=True) / name.removesuffix(".zip")
                with zipfile.ZipFile(there / name) as archive:
                    archive.extractall(unpacked)
                for path in (unpacked, *unpacked.rglob("*")):
                    path.chmod(0o755 if path.is_dir() else 0o444)

    def _values(self, module: str) -> dict[str, str]:
        slash = "/" if self.variant == "lite" else ""
        default = self.recipes[module].get("ComponentConfiguration", {}).get("DefaultConfiguration", {})
        configuration = default | self._configuration
        return {
            "artifacts:path": f"{self.artifacts(module)}{slash}",
            "artifacts:decompressedPath": f"{self.artifacts(module, unarchived=True)}{slash}",
        } | {f"configuration:/{key}": value for key, value in configuration.items() if isinstance(value, str)}

    def _nucleus(self, text: str, module: str) -> str:
        """Only what looks like a variable is one, and its value is put in as it is."""
        values = self._values(module)
        return re.sub(r"\{([.\w-]+:[^:}]+)}", lambda found: values[found.group(1)], text)

    def _lite(self, text: str, module: str, *, single: bool) -> str:
        """Every brace begins a variable; a value is quoted for where it stands."""
        values = self._values(module)
        pieces = re.split(r"(\{[^}]*\}?)", text)
        for n, piece in enumerate(pieces):
            if piece.startswith("{"):
                value = values[piece.removeprefix("{").removesuffix("}")]
                if piece.startswith("{configuration"):
                    value = value.replace("'", "'\\''") if single else re.sub(r'(["\\$`])', r"\\\1", value)
                pieces[n] = value
            elif single:
                pieces[n] = piece.replace("'", "'\\''")
        return "".join(pieces)
