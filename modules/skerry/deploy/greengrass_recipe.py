"""What Greengrass takes as a recipe: every key, its casing and its values, for the nucleus and nucleus lite.

The official schema compares keys in lower case and lets a misspelt lifecycle step pass; the cloud, the
nucleus and lite then each do something else with it. Here is one form that all three read the same way.

Source: AWS IoT Greengrass developer guide, Component recipe reference; greengrass-lite,
docs/RECIPE_SUPPORT_CHANGES.md and its modules recipe-runner and ggl-recipe; greengrass-nucleus,
DockerImageArtifactParser.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal

Variant = Literal["nucleus", "lite"]
"""Which software runs the component: Greengrass nucleus (Java), or nucleus lite."""
Trouble = tuple[str, str]
"""Where in a recipe, and what is wrong there."""

MOST_RECIPE_BYTES = 16_000
MOST_SCRIPT_BYTES = 10_000
"""Of a script on lite."""
MOST_NAME = 128

_TOP = {
    "RecipeFormatVersion", "ComponentName", "ComponentVersion", "ComponentDescription", "ComponentPublisher",
    "ComponentType", "ComponentConfiguration", "ComponentDependencies", "Manifests", "Lifecycle",
}  # fmt: skip
_NAME = re.compile(r"[a-zA-Z0-9-_.]+")
_SEMVER = re.compile(
    r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?(\+[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?"
)
_ENVIRONMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_STEPS = ("bootstrap", "install", "run", "startup", "shutdown", "recover")
_NOT_ON_LITE = ("bootstrap", "shutdown", "recover")
_ARCHITECTURES = ("amd64", "aarch64", "arm", "x86", "*")
_RUNTIMES_OF_LITE = ("aws_nucleus_lite", "*")
_IGNORED_BY_LITE = ("aws.greengrass.Nucleus", "aws.greengrass.TokenExchangeService", "aws.greengrass.Cli")
_BRACE = re.compile(r"\{([^{}]*)\}?")
_VARIABLE = re.compile(
    r"artifacts:path|artifacts:decompressedPath|work:path|kernel:rootPath|iot:thingName|configuration:/[^:{}]+"
)
_OPERATIONS = {
    "aws.greengrass.ipc.mqttproxy": ("PublishToIoTCore", "SubscribeToIoTCore"),
    "aws.greengrass.ipc.pubsub": ("PublishToTopic", "SubscribeToTopic"),
    "aws.greengrass.ShadowManager": (
        "GetThingShadow", "UpdateThingShadow", "DeleteThingShadow", "ListNamedShadowsForThing",
    ),
}  # fmt: skip
_WORD = r"[a-z0-9]+(?:(?:[_.]|__|-*)[a-z0-9]+)*"
_DOMAIN = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*(?::\d+)?"
_IMAGE = re.compile(
    rf"docker:(?:{_DOMAIN}/)?{_WORD}(?:/{_WORD})*(?::[\w][\w.-]{{0,127}}|@[A-Za-z][A-Za-z0-9]*:[0-9a-fA-F]{{32,}})"
)


def recipe_troubles(recipe: Any, variant: Variant) -> list[Trouble]:
    """Everything about a recipe that one of those who read it would refuse, or overlook.

    Args:
        recipe: as it was read from YAML or JSON.
        variant: who runs it.
    """
    if not isinstance(recipe, dict):
        return [("$", f"expected an object, got {recipe!r}")]
    found = [
        *_keys(recipe, "$", _TOP, {"RecipeFormatVersion", "ComponentName", "ComponentVersion", "Manifests"}),
        *_head(recipe),
        *_configuration(recipe.get("ComponentConfiguration", {})),
        *_dependencies(recipe.get("ComponentDependencies", {}), variant),
    ]
    manifests = recipe.get("Manifests")
    if not isinstance(manifests, list) or not manifests:
        return [*found, ("$.Manifests", f"expected a list with a manifest, got {manifests!r}")]
    for n, manifest in enumerate(manifests):
        found += _manifest(manifest, f"$.Manifests[{n}]", variant)
    return found


def _head(recipe: dict[str, Any]) -> Iterator[Trouble]:
    if recipe.get("RecipeFormatVersion") != "2020-01-25":
        seen = recipe.get("RecipeFormatVersion")
        yield "$.RecipeFormatVersion", f"expected the text 2020-01-25, got {seen!r}"
    name = recipe.get("ComponentName")
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > MOST_NAME:
        text = f"expected at most {MOST_NAME} letters, digits and -_., got {name!r}"
        yield "$.ComponentName", text
    elif name.startswith("aws.greengrass."):
        yield "$.ComponentName", f"expected a name that is not Amazon's, got {name!r}"
    version = recipe.get("ComponentVersion")
    if not isinstance(version, str) or not _SEMVER.fullmatch(version):
        yield "$.ComponentVersion", f"expected a text like 1.0.0 without leading zeros, got {version!r}"


def _configuration(configuration: Any) -> Iterator[Trouble]:
    where = "$.ComponentConfiguration"
    yield from _keys(configuration, where, {"DefaultConfiguration"})
    given = configuration.get("DefaultConfiguration", {}) if isinstance(configuration, dict) else {}
    if not isinstance(given, dict):
        yield f"{where}.DefaultConfiguration", f"expected an object, got {given!r}"
        return
    where = f"{where}.DefaultConfiguration.accessControl"
    access = given.get("accessControl", {})
    yield from _keys(access, where, set(_OPERATIONS))
    for service, policies in access.items() if isinstance(access, dict) else ():
        for name, policy in policies.items() if isinstance(policies, dict) else ():
            yield from _policy(policy, f"{where}.{service}.{name}", service)


def _policy(policy: Any, where: str, service: str) -> Iterator[Trouble]:
    keys = {"policyDescription", "operations", "resources"}
    yield from _keys(policy, where, keys, {"operations", "resources"})
    if not isinstance(policy, dict):
        return
    allowed = [f"aws.greengrass#{name}" for name in _OPERATIONS.get(service, ())]
    for n, operation in enumerate(policy.get("operations", ())):
        if operation not in allowed:
            text = f"expected one of {', '.join(allowed)}, got {operation!r}"
            yield f"{where}.operations[{n}]", text
    for n, resource in enumerate(policy.get("resources", ())):
        if not isinstance(resource, str) or not resource or resource == "*" or "?" in resource:
            yield f"{where}.resources[{n}]", f"expected what it needs and no more, got {resource!r}"
        elif service.endswith("pubsub") and ("+" in resource or "#" in resource):
            yield f"{where}.resources[{n}]", f"expected * as the wildcard of this service, got {resource!r}"


def _dependencies(dependencies: Any, variant: Variant) -> Iterator[Trouble]:
    where = "$.ComponentDependencies"
    if not isinstance(dependencies, dict):
        yield where, f"expected an object, got {dependencies!r}"
        return
    for name, its in dependencies.items():
        yield from _keys(
            its, f"{where}.{name}", {"VersionRequirement", "DependencyType"}, {"VersionRequirement"}
        )
        kind = its.get("DependencyType", "HARD") if isinstance(its, dict) else "HARD"
        if kind not in ("HARD", "SOFT"):
            yield f"{where}.{name}.DependencyType", f"expected HARD or SOFT, got {kind!r}"
        if variant == "lite" and name.startswith("aws.greengrass.") and name not in _IGNORED_BY_LITE:
            text = "expected none of Amazon's that lite does not ignore: it asks the cloud for it"
            yield f"{where}.{name}", text


def _manifest(manifest: Any, where: str, variant: Variant) -> Iterator[Trouble]:
    keys = {"Name", "Platform", "Lifecycle", "Artifacts", "Selections"}
    yield from _keys(manifest, where, keys, {"Platform", "Lifecycle"})
    if not isinstance(manifest, dict):
        return
    yield from _platform(manifest.get("Platform", {}), f"{where}.Platform", variant)
    yield from _lifecycle(manifest.get("Lifecycle", {}), f"{where}.Lifecycle", variant)
    for n, artifact in enumerate(manifest.get("Artifacts", ())):
        yield from _artifact(artifact, f"{where}.Artifacts[{n}]")


def _platform(platform: Any, where: str, variant: Variant) -> Iterator[Trouble]:
    yield from _keys(platform, where, {"os", "architecture", "architecture.detail", "runtime"}, {"os"})
    if not isinstance(platform, dict):
        return
    if platform.get("os") != "linux":
        yield f"{where}.os", f"expected linux, got {platform.get('os')!r}"
    architecture = platform.get("architecture", "*")
    if architecture not in _ARCHITECTURES:
        yield f"{where}.architecture", f"expected one of {', '.join(_ARCHITECTURES)}, got {architecture!r}"
    runtime = platform.get("runtime")
    if variant == "lite" and runtime not in _RUNTIMES_OF_LITE:
        yield f"{where}.runtime", f"expected aws_nucleus_lite, got {runtime!r} (lite skips the manifest)"
    if variant == "nucleus" and runtime not in (None, "*"):
        yield f"{where}.runtime", f"expected nothing or *, got {runtime!r} (the nucleus skips the manifest)"


def _lifecycle(lifecycle: Any, where: str, variant: Variant) -> Iterator[Trouble]:
    yield from _keys(lifecycle, where, {"Setenv", *_STEPS})
    if not isinstance(lifecycle, dict):
        return
    begins = [name for name in ("run", "startup") if name in lifecycle]
    if len(begins) != 1:
        yield where, f"expected run or startup, got {' and '.join(begins) or 'neither'}"
    yield from _setenv(lifecycle.get("Setenv", {}), f"{where}.Setenv")
    for name in _STEPS:
        if name in lifecycle:
            yield from _step(lifecycle[name], f"{where}.{name}", variant)
            if variant == "lite" and name in _NOT_ON_LITE:
                yield f"{where}.{name}", "expected no such step, lite does not run it"


def _step(step: Any, where: str, variant: Variant) -> Iterator[Trouble]:
    optional = {"RequiresPrivilege", "Timeout", "Setenv"} | ({"Skipif"} if variant == "nucleus" else set())
    yield from _keys(step, where, {"Script"} | optional, {"Script"})
    if not isinstance(step, dict):
        return
    privilege = step.get("RequiresPrivilege", False)
    if not isinstance(privilege, bool):
        yield f"{where}.RequiresPrivilege", f"expected true or false without quotes, got {privilege!r}"
    timeout = step.get("Timeout", 1)
    if not isinstance(timeout, int) or isinstance(timeout, bool) or timeout <= 0:
        yield f"{where}.Timeout", f"expected whole seconds above 0, got {timeout!r}"
    yield from _setenv(step.get("Setenv", {}), f"{where}.Setenv")
    yield from _script(step.get("Script"), f"{where}.Script", variant)


def _script(script: Any, where: str, variant: Variant) -> Iterator[Trouble]:
    if not isinstance(script, str) or not script.strip():
        yield where, f"expected a text, got {script!r}"
        return
    size = len(script.encode())
    if variant == "lite" and size > MOST_SCRIPT_BYTES:
        yield where, f"expected at most {MOST_SCRIPT_BYTES} bytes, got {size}"
    yield from _variables(script, where)


def _variables(text: str, where: str) -> Iterator[Trouble]:
    """Lite takes any brace for the start of a variable, and ends over one that it does not know."""
    for match in _BRACE.finditer(text):
        if not match.group().endswith("}") or not _VARIABLE.fullmatch(match.group(1)):
            yield where, f"expected braces around variables of Greengrass alone, got {match.group()!r}"


def _setenv(setenv: Any, where: str) -> Iterator[Trouble]:
    if not isinstance(setenv, dict):
        yield where, f"expected an object, got {setenv!r}"
        return
    for name, value in setenv.items():
        if not _ENVIRONMENT.fullmatch(str(name)):
            yield f"{where}.{name}", "expected letters, digits and _ as a name"
        if isinstance(value, str):
            yield from _variables(value, f"{where}.{name}")
        else:
            yield f"{where}.{name}", f"expected a text, got {value!r}"


def _artifact(artifact: Any, where: str) -> Iterator[Trouble]:
    yield from _keys(artifact, where, {"Uri", "Unarchive", "Permission"}, {"Uri"})
    if not isinstance(artifact, dict):
        return
    uri = artifact.get("Uri")
    if not isinstance(uri, str) or not uri.startswith(("docker:", "s3://")):
        yield f"{where}.Uri", f"expected docker: or s3://, got {uri!r}"
    elif uri.startswith("docker:") and not _IMAGE.fullmatch(uri):
        text = f"expected docker:registry/name and a tag or a digest, not both, got {uri!r}"
        yield f"{where}.Uri", text
    if artifact.get("Unarchive", "NONE") not in ("NONE", "ZIP"):
        yield f"{where}.Unarchive", f"expected NONE or ZIP, got {artifact['Unarchive']!r}"
    permission = artifact.get("Permission", {})
    yield from _keys(permission, f"{where}.Permission", {"Read", "Execute"})
    for key, value in permission.items() if isinstance(permission, dict) else ():
        if value not in ("NONE", "OWNER", "ALL"):
            yield f"{where}.Permission.{key}", f"expected NONE, OWNER or ALL, got {value!r}"


def _keys(raw: Any, where: str, known: set[str], wanted: set[str] = frozenset()) -> Iterator[Trouble]:  # type: ignore[assignment]  # an empty set that cannot change
    """A key that nobody knows, above all by its casing, or one that is not there."""
    if not isinstance(raw, dict):
        yield where, f"expected an object, got {raw!r}"
        return
    alike = {name.lower(): name for name in known}
    for key in raw:
        if key not in known:
            meant = alike.get(str(key).lower())
            hint = (
                f"{meant} (lite compares letter by letter)" if meant else f"one of {', '.join(sorted(known))}"
            )
            yield f"{where}.{key}", f"expected {hint}, got {key!r}"
    for key in sorted(wanted - raw.keys()):
        yield where, f"expected {key}, got nothing"
