"""A deployment as components of AWS IoT Greengrass: one a container, for the nucleus and for nucleus lite.

The two differ in what they run (`startup` that waits, `run` in the foreground) and in what they may depend
on, and the cloud takes one recipe for a name and version, so each has names of its own. Settings are an
artifact and not configuration: a configuration outlives the version that it came with.

Source: AWS IoT Greengrass developer guide, Component recipe reference, Create deployments; ADR 21.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, get_args

import msgspec
import yaml

from skerry.deploy.contained import Mount
from skerry.deploy.containers import Container
from skerry.deploy.deployment import Deployment, Finding, Renderer
from skerry.deploy.devices import DEVICES
from skerry.deploy.greengrass_access import access_control, remote_of, topics_of, wants_shadow
from skerry.deploy.greengrass_recipe import MOST_RECIPE_BYTES, Variant, recipe_troubles
from skerry.deploy.greengrass_scripts import (
    FOLDER,
    SETTINGS_FILE,
    WAIT_S,
    image_of,
    needs_folder,
    recover,
    run,
    shutdown,
    startup,
)
from skerry.deploy.plain_yaml import dump
from skerry.settings import compact
from skerry.uplink.settings import AzureLink, EdgeIdentity, GreengrassLink, UplinkSettings

VARIANTS: tuple[Variant, ...] = get_args(Variant)
BUCKET = "BUCKET_NAME"
"""Stands in a recipe for the bucket that its artifacts are in; the development kit puts one there as well."""
_PREFIX: dict[Variant, str] = {"nucleus": "skerry", "lite": "skerry-lite"}
_LITE_PAYLOAD_BYTES = 7000
"""Lite takes packets of 10,000 bytes, of which a payload in base64 is the most."""
_MOST_SETTINGS_BYTES = 131_000
"""Linux takes 128 KiB for one variable of the environment: MAX_ARG_STRLEN."""
_TOPIC_BYTES, _TOPIC_SLASHES = 256, 7
_ARCHITECTURES = {"amd64": "amd64", "arm64": "aarch64"}
_ECR = re.compile(r"^\d+\.dkr\.ecr\.")
_FILE = re.compile(r"[A-Za-z0-9._@+-]+")
_FOLDER = re.compile(r"[A-Za-z0-9_-]+")
_DEVICE = re.compile(r"/[A-Za-z0-9._/-]+")
_OF_KIND = {
    "broker": "$", "capture": "$.cameras", "inference": "$.models", "decision": "$.rules",
    "buffer": "$.buffer", "updater": "$.updater",
}  # fmt: skip
"""Where a site says what a kind of container is told; the uplink's is its link."""


def component_of(deployment: Deployment, name: str, variant: Variant) -> str:
    """Name of the component of a container."""
    return f"{_PREFIX[variant]}.{deployment.plan.site}.{name}"


def render(deployment: Deployment) -> dict[str, str]:
    """The files of a site for Greengrass, by their path beside each other."""
    files: dict[str, str] = {}
    for variant in VARIANTS:
        files |= {f"{variant}/{path}": text for path, text in _rendered(deployment, variant).items()}
    return files


def findings(deployment: Deployment) -> list[Finding]:
    """What Greengrass would refuse, or take and then not do."""
    found = [
        *_version(deployment), *_bus(deployment), *_link(deployment), *_names(deployment),
        *_sizes(deployment), *_images(deployment),
    ]  # fmt: skip
    if not any(finding.level == "error" for finding in found):
        # What is named above would be found a second time, in the words of a recipe.
        found += _recipes(deployment)
    return found


def _rendered(deployment: Deployment, variant: Variant) -> dict[str, str]:
    version = deployment.site.version
    files: dict[str, str] = {}
    for container in deployment.containers:
        name = component_of(deployment, container.name, variant)
        files[f"recipes/{name}-{version}.yaml"] = _text(deployment, container, variant)
        for file, content in _artifacts(container, variant).items():
            files[f"artifacts/{name}/{version}/{file}"] = content
        files[f"gdk/{name}/gdk-config.json"] = _json(_gdk(name, version))
    files["deployment.json"] = _json(_deployment(deployment, variant))
    return files


def _text(deployment: Deployment, container: Container, variant: Variant) -> str:
    """A recipe as a file. Greengrass takes a tag or a digest, people want to know both."""
    image = deployment.images.reference(container.image)
    recipe = dump(_recipe(deployment, container, variant))
    return f"# {deployment.head()}\n# Its image is {image}.\n{recipe}"


def _recipe(deployment: Deployment, container: Container, variant: Variant) -> dict[str, Any]:
    name = component_of(deployment, container.name, variant)
    configuration = _configuration(deployment, container, name)
    dependencies = _dependencies(deployment, container) if variant == "nucleus" else {}
    manifest = {
        "Name": "Linux",
        "Platform": _platform(deployment, variant),
        "Lifecycle": _lifecycle(deployment, container, variant),
        "Artifacts": list(_artifact_list(deployment, container, variant)),
    }
    return {
        "RecipeFormatVersion": "2020-01-25",
        "ComponentName": name,
        "ComponentVersion": deployment.site.version,
        "ComponentDescription": f"Skerry, site {deployment.plan.site}: {container.name}",
        "ComponentPublisher": "Skerry",
        **({"ComponentConfiguration": {"DefaultConfiguration": configuration}} if configuration else {}),
        **({"ComponentDependencies": dependencies} if dependencies else {}),
        "Manifests": [manifest],
    }


def _platform(deployment: Deployment, variant: Variant) -> dict[str, str]:
    platform = {"os": "linux"}
    if deployment.site.device in DEVICES:
        platform["architecture"] = _ARCHITECTURES[DEVICES[deployment.site.device].architecture]
    # Without it a manifest is for the nucleus alone.
    return platform | ({"runtime": "aws_nucleus_lite"} if variant == "lite" else {})


def _configuration(deployment: Deployment, container: Container, name: str) -> dict[str, Any]:
    """What an operator may set in a deployment, and what the nucleus lets the component do."""
    found: dict[str, Any] = {}
    if needs_folder(container):
        found["folder"] = f"/etc/skerry/{deployment.plan.site}"
    link = _link_of(container)
    if link is not None:
        if link.desired == "configuration":
            found["desired"] = {}
        found["accessControl"] = access_control(link, deployment.plan.site, name)
    return found


def _dependencies(deployment: Deployment, container: Container) -> dict[str, Any]:
    wanted = {"aws.greengrass.DockerApplicationManager": "~2.0.0"}
    if _ECR.match(deployment.images.registry):
        wanted["aws.greengrass.TokenExchangeService"] = "^2.0.0"
    link = _link_of(container)
    if link is not None and wants_shadow(link):
        wanted["aws.greengrass.ShadowManager"] = "^2.2.0"
    if deployment.broker is not None and container.kind != "broker":
        wanted[component_of(deployment, deployment.broker.name, "nucleus")] = deployment.site.version
    return {name: {"VersionRequirement": asked, "DependencyType": "HARD"} for name, asked in wanted.items()}


def _lifecycle(deployment: Deployment, container: Container, variant: Variant) -> dict[str, Any]:
    # Who may use the engine is root in effect; asking for it outright needs no group on the device.
    setenv = {"Setenv": {FOLDER: "{configuration:/folder}"}} if needs_folder(container) else {}

    def step(script: str, timeout_s: int, **more: Any) -> dict[str, Any]:
        return {"RequiresPrivilege": True, "Timeout": timeout_s, **more, "Script": script}

    if variant == "lite":
        return {"run": step(run(deployment, container), container.stop_s + 60, **setenv)}
    return {
        # Twice the wait: also to make the container, and for health checks that do not answer.
        "startup": step(startup(deployment, container), 2 * WAIT_S, **setenv),
        "shutdown": step(shutdown(deployment, container), container.stop_s + 60),
        "recover": step(recover(deployment, container), 60),
    }


def _artifacts(container: Container, variant: Variant) -> dict[str, str]:
    """The files of a component that are texts, by name."""
    files = dict(container.files)
    if container.settings is not None:
        settings = container.settings
        link = _link_of(container)
        if link is not None and isinstance(settings, UplinkSettings) and variant == "lite":
            most = min(link.max_payload_bytes, _LITE_PAYLOAD_BYTES)
            link = msgspec.structs.replace(link, max_payload_bytes=most)
            settings = msgspec.structs.replace(settings, link=link)
        files[SETTINGS_FILE] = json.dumps(compact(settings), indent=1, ensure_ascii=False) + "\n"
    return files


def _artifact_list(
    deployment: Deployment, container: Container, variant: Variant
) -> Iterator[dict[str, Any]]:
    name = component_of(deployment, container.name, variant)
    folder = f"s3://{BUCKET}/{name}/{deployment.site.version}"
    yield {"Uri": f"docker:{image_of(deployment, container)}"}
    # The container's user, which is nobody on the device, reads what is mounted; settings are not.
    for file in container.files:
        yield {"Uri": f"{folder}/{file}", "Permission": {"Read": "ALL"}}
    if container.settings is not None:
        yield {"Uri": f"{folder}/{SETTINGS_FILE}"}
    for mount in container.mounts:
        if mount.role == "models":
            yield {"Uri": f"{folder}/{mount.name}.zip", "Unarchive": "ZIP", "Permission": {"Read": "ALL"}}


def _gdk(name: str, version: str) -> dict[str, Any]:
    """The Greengrass Development Kit's project of a component, whose recipe is put beside it."""
    build = f"cp recipe.yaml greengrass-build/recipes/ && cp ../../artifacts/{name}/{version}/* "
    build += f"greengrass-build/artifacts/{name}/{version}/"
    return {
        "component": {
            name: {
                "author": "Skerry",
                "version": version,
                "build": {"build_system": "custom", "custom_build_command": ["sh", "-c", build]},
                "publish": {"bucket": "skerry-components", "region": "us-east-1"},
            }
        },
        "gdk_version": "1.6.2",
    }


def _deployment(deployment: Deployment, variant: Variant) -> dict[str, Any]:
    """What `aws greengrassv2 create-deployment --cli-input-json` takes, for one ring of devices."""
    components: dict[str, Any] = {}
    for container in deployment.containers:
        its: dict[str, Any] = {"componentVersion": deployment.site.version}
        if variant == "nucleus" and _link_of(container) is not None:
            # Configuration outlives a version: without this the rules of the version before would hold on.
            its["configurationUpdate"] = {"reset": ["/accessControl"]}
        components[component_of(deployment, container.name, variant)] = its
    full = variant == "nucleus"
    return {
        "targetArn": "arn:aws:iot:REGION:ACCOUNT:thinggroup/RING",
        "deploymentName": f"{deployment.plan.site} {deployment.site.version} RING",
        "components": components,
        "deploymentPolicies": {
            # Lite cannot roll back, nor ask components whether it suits them.
            "failureHandlingPolicy": "ROLLBACK" if full else "DO_NOTHING",
            "componentUpdatePolicy": {
                "timeoutInSeconds": 60,
                "action": "NOTIFY_COMPONENTS" if full else "SKIP_NOTIFY_COMPONENTS",
            },
            "configurationValidationPolicy": {"timeoutInSeconds": 60},
        },
        "iotJobConfiguration": {
            "jobExecutionsRolloutConfig": {
                "exponentialRate": {
                    "baseRatePerMinute": 5,
                    "incrementFactor": 2.0,
                    "rateIncreaseCriteria": {"numberOfSucceededThings": 10},
                },
                "maximumPerMinute": 50,
            },
            "abortConfig": {
                "criteriaList": [
                    {
                        "failureType": failure, "action": "CANCEL", "thresholdPercentage": 10.0,
                        "minNumberOfExecutedThings": 5,
                    }
                    for failure in ("FAILED", "TIMED_OUT")
                ]
            },
            "timeoutConfig": {"inProgressTimeoutInMinutes": 60},
        },
    }  # fmt: skip


def _link_of(container: Container) -> GreengrassLink | None:
    settings = container.settings
    if isinstance(settings, UplinkSettings) and isinstance(settings.link, GreengrassLink):
        return settings.link
    return None


def _json(raw: Any) -> str:
    return json.dumps(raw, indent=2, ensure_ascii=False) + "\n"


# What is found


def _link_path(deployment: Deployment) -> str:
    """Where the site says the link that is used here."""
    return "$.targets.greengrass.link" if "greengrass" in deployment.site.targets else "$.link"


def _version(deployment: Deployment) -> Iterator[Finding]:
    version = deployment.site.version
    plain = ".".join(str(int(part)) for part in version.split("."))
    if plain != version:
        yield Finding(
            where="$.version", text=f"expected {plain}, got {version} (Greengrass takes no leading zeros)"
        )


def _bus(deployment: Deployment) -> Iterator[Finding]:
    bus = deployment.site.bus
    if bus.host in ("localhost", "::1") or bus.host.startswith("127."):
        text = f"expected an address that containers reach, got {bus.host} (each has a loopback of its own)"
        yield Finding(where="$.bus.host", text=text)
    if not bus.host and bus.broker == "amqtt":
        text = "expected auto or mosquitto, got amqtt (the broker's component is Mosquitto)"
        yield Finding(where="$.bus.broker", text=text)


def _link(deployment: Deployment) -> Iterator[Finding]:
    link, where = deployment.site.link, _link_path(deployment)
    if isinstance(link, AzureLink):
        edge = isinstance(link.identity, EdgeIdentity)
        text = "expected greengrass, aws, mqtt, http or file, got azure"
        about = "there is no IoT Edge here that says who we are" if edge else "it goes past the nucleus"
        yield Finding(where=where, text=f"{text} ({about})", level="error" if edge else "warning")
    if not isinstance(link, GreengrassLink):
        return
    site = deployment.plan.site
    topics = {f"{where}.topic": topics_of(link, site)}
    if link.remote_topic:
        topics[f"{where}.remote_topic"] = (f"{remote_of(link, site)}/responses",)
    for path, names in topics.items():
        longest = max(names, key=len)
        if len(longest.encode()) > _TOPIC_BYTES or max(name.count("/") for name in names) > _TOPIC_SLASHES:
            text = f"expected at most {_TOPIC_BYTES} bytes and {_TOPIC_SLASHES} slashes, got {longest}"
            yield Finding(where=path, text=text)
        if "?" in longest or "*" in longest:
            text = f"expected no ? and no *, which mean something in accessControl, got {longest}"
            yield Finding(where=path, text=text)
    for name in ("desired", "reported"):
        if getattr(link, name) == "shadow":
            text = "expected configuration, topic or none for nucleus lite, which has no shadows, got shadow"
            more = (
                "" if link.thing else "; on the nucleus set interpolateComponentConfiguration: true, or thing"
            )
            yield Finding(where=f"{where}.{name}", text=text + more, level="warning")


def _names(deployment: Deployment) -> Iterator[Finding]:
    """What becomes part of a script or of a mount, and would be something else there."""
    for mount in deployment.brought:
        package = mount.role == "models"
        if not (_FOLDER if package else _FILE).fullmatch(mount.name):
            kind = "a folder of letters, digits and -_" if package else "a file of letters, digits and -_.@+"
            where = _path_of(msgspec.to_builtins(deployment.site), mount.inside) or "$"
            if where.startswith("$.link."):
                where = _link_path(deployment) + where.removeprefix("$.link")
            yield Finding(where=where, text=f"expected {kind}, got {mount.name!r} (rename it)")
    for n, camera in enumerate(deployment.site.cameras):
        device = getattr(camera.source, "device", "")
        if device and not _DEVICE.fullmatch(device):
            text = f"expected a path of letters, digits and -_./, got {device!r} (make a link with udev)"
            yield Finding(where=f"$.cameras[{n}].source.device", text=text)


def _sizes(deployment: Deployment) -> Iterator[Finding]:
    for container in deployment.containers:
        for variant in VARIANTS:
            size = len(_artifacts(container, variant).get(SETTINGS_FILE, "").encode())
            if size > _MOST_SETTINGS_BYTES:
                text = (
                    f"expected at most {_MOST_SETTINGS_BYTES} bytes of settings, {container.name} has {size}"
                )
                yield Finding(where=_where(deployment, container), text=text)
                break


def _images(deployment: Deployment) -> Iterator[Finding]:
    if not deployment.images.registry:
        text = "expected where the images are, got nothing (the nucleus would look for them on Docker Hub)"
        yield Finding(where="--registry", text=text, level="warning")


def _recipes(deployment: Deployment) -> Iterator[Finding]:
    """The recipes as they would be read."""
    said: set[str] = set()
    for variant in VARIANTS:
        for container in deployment.containers:
            text = _text(deployment, container, variant)
            found = [f"{where}: {what}" for where, what in recipe_troubles(yaml.safe_load(text), variant)]
            size = len(text.encode())
            if size > MOST_RECIPE_BYTES:
                found.append(f"expected at most {MOST_RECIPE_BYTES} bytes of recipe, got {size}")
            for trouble in found:
                if trouble in said:
                    continue
                said.add(trouble)
                where = "--registry" if ".Uri: expected docker" in trouble else _where(deployment, container)
                name = component_of(deployment, container.name, variant)
                yield Finding(where=where, text=f"recipe of {name}: {trouble}")


def _where(deployment: Deployment, container: Container) -> str:
    return _OF_KIND.get(container.kind) or _link_path(deployment)


def _path_of(raw: Any, wanted: str, path: str = "$") -> str:
    """Where in plain data a text is; empty: nowhere."""
    match raw:
        case str():
            return path if raw == wanted else ""
        case dict():
            inner = ((f"{path}.{key}", value) for key, value in raw.items() if key != "targets")
        case list() | tuple():
            inner = ((f"{path}[{n}]", value) for n, value in enumerate(raw))
        case _:
            return ""
    return next((found for where, value in inner if (found := _path_of(value, wanted, where))), "")


def _copies(mount: Mount) -> str:
    return f"{mount.role}/{mount.name}" if mount.role == "models" else ""


def _told(deployment: Deployment) -> list[str]:
    version, site = deployment.site.version, deployment.plan.site
    said = []
    for variant in VARIANTS:
        for container in deployment.containers:
            for mount in container.mounts:
                if mount.role == "models":
                    name = component_of(deployment, container.name, variant)
                    zipped = f"../../{variant}/artifacts/{name}/{version}/{mount.name}.zip"
                    said.append(f"(cd models/{mount.name} && python3 -m zipfile -c {zipped} *)")
    said += [
        f"on the core device /etc/skerry/{site}/{m.role}/{m.name}: put {m.outside} there"
        for m in deployment.brought
        if not _copies(m)
    ]
    said += deployment.sources_told
    if deployment.secure:
        said.append("skerry certs SITE --out certificates")
        said.append(
            f"on the core device /etc/skerry/{site}/certificates: put all but certificates/authority there"
        )
    return said


RENDERER = Renderer(render=render, findings=findings, copies=_copies, told=_told)
