"""A site as components of Greengrass: recipes that both nuclei read, scripts, and what is found in a site."""

import copy
import json
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import needs
from needs import ROOT
from skerry.cli import main
from skerry.deploy.deployment import Deployment, deployment
from skerry.deploy.greengrass import RENDERER, VARIANTS, findings, render
from skerry.deploy.greengrass_access import access_control
from skerry.deploy.greengrass_recipe import MOST_RECIPE_BYTES, Variant, recipe_troubles
from skerry.deploy.images import Images
from skerry.deploy.site import load_site
from skerry.settings import parse_json
from skerry.uplink.settings import GreengrassLink, UplinkSettings

SCHEMAS = ROOT.parent / "shared" / "schemas" / "greengrass"
PACKAGE = ROOT / "models" / "parts"
SITE = f"""
site: test
version: 1.2.3
cameras:
  - {{name: belt, source: {{kind: synthetic}}, fps: 5}}
models:
  - {{package: {PACKAGE}}}
rules:
  - {{name: counted, kind: line, camera: belt, line: [[0.5, 0], [0.5, 1]]}}
buffer: {{bytes: 67108864}}
link: {{kind: greengrass}}
"""
MODULES = ("broker", "uplink", "buffer", "decision", "inference", "capture")
PREFIXES = {"nucleus": "skerry", "lite": "skerry-lite"}


def on(folder: Path, text: str = SITE, **said: Any) -> Deployment:
    (folder / "site.yaml").write_text(text, encoding="utf-8")
    return deployment(load_site(folder / "site.yaml", here=False), "greengrass", **said)


@cache
def demo() -> dict[str, str]:
    return render(deployment(load_site(ROOT / "sites" / "demo.yaml", here=False), "greengrass"))


def recipes(files: dict[str, str], variant: Variant) -> dict[str, dict[str, Any]]:
    """Recipes by name of the module."""
    found = {}
    for path, text in files.items():
        if path.startswith(f"{variant}/recipes/"):
            recipe = yaml.safe_load(text)
            found[recipe["ComponentName"].rpartition(".")[2]] = recipe
    return found


def scripts(files: dict[str, str]) -> dict[str, str]:
    """Every script by where it is."""
    return {
        f"{variant} {module} {step}": raw["Script"]
        for variant in VARIANTS
        for module, recipe in recipes(files, variant).items()
        for step, raw in recipe["Manifests"][0]["Lifecycle"].items()
    }


def errors(its: Deployment) -> list[tuple[str, str]]:
    return [(found.where, found.text) for found in findings(its) if found.level == "error"]


def warnings(its: Deployment) -> list[str]:
    return [found.where for found in findings(its) if found.level == "warning"]


# Recipes


def test_there_is_a_component_for_each_container_under_a_name_of_each_nucleus(tmp_path):
    files = render(on(tmp_path))
    names = []
    for variant in VARIANTS:
        its = recipes(files, variant)
        assert set(its) == set(MODULES)
        for module, recipe in its.items():
            names.append(recipe["ComponentName"])
            assert recipe["ComponentName"] == f"{PREFIXES[variant]}.test.{module}"
            assert recipe["ComponentVersion"] == "1.2.3"
            assert f"{variant}/recipes/{recipe['ComponentName']}-1.2.3.yaml" in files
    assert len(set(names)) == len(names)  # the cloud takes one recipe for a name and version


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["demo", "line"])
def test_recipes_are_what_both_nuclei_read(name, variant):
    files = render(deployment(load_site(ROOT / "sites" / f"{name}.yaml", here=False), "greengrass"))
    for module, recipe in recipes(files, variant).items():
        assert recipe_troubles(recipe, variant) == [], module


def lowered(raw: Any) -> Any:
    """Keys in lower case, as the development kit compares them."""
    if isinstance(raw, dict):
        return {key.lower(): lowered(value) for key, value in raw.items()}
    return [lowered(value) for value in raw] if isinstance(raw, list) else raw


schemas = needs.unless(SCHEMAS.is_dir(), "schemas of Greengrass are beside the repository, not in it")


def schema(name: str) -> Any:
    return json.loads((SCHEMAS / name).read_text(encoding="utf-8"))


@schemas
@pytest.mark.parametrize("variant", VARIANTS)
def test_recipes_are_what_the_official_schema_wants(variant):
    for recipe in recipes(demo(), variant).values():
        jsonschema.validate(lowered(recipe), schema("recipe_schema.json"))


@schemas
def test_projects_of_the_development_kit_are_what_its_schema_wants():
    found = [text for path, text in demo().items() if path.endswith("gdk-config.json")]
    assert len(found) == 2 * len(MODULES)
    for text in found:
        jsonschema.validate(json.loads(text), schema("config_schema.json"))


@schemas
def test_the_official_schema_lets_a_misspelt_step_pass_and_ours_does_not():
    recipe = copy.deepcopy(recipes(demo(), "lite")["buffer"])
    lifecycle = recipe["Manifests"][0]["Lifecycle"]
    lifecycle["rnu"] = lifecycle.pop("run")
    jsonschema.validate(lowered(recipe), schema("recipe_schema.json"))
    assert [where for where, _ in recipe_troubles(recipe, "lite")] == [
        "$.Manifests[0].Lifecycle.rnu", "$.Manifests[0].Lifecycle",
    ]  # fmt: skip


def put(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """A change of a recipe: what is at a path, e.g. `Manifests/0/Platform/os`."""

    def change(recipe: dict[str, Any]) -> None:
        *parents, last = path.split("/")
        raw: Any = recipe
        for name in parents:
            raw = raw[int(name)] if name.isdigit() else raw.setdefault(name, {})
        raw[last] = value

    return change


def move(path: str, name: str) -> Callable[[dict[str, Any]], None]:
    """A change of a recipe: a key by another name."""

    def change(recipe: dict[str, Any]) -> None:
        *parents, last = path.split("/")
        raw: Any = recipe
        for parent in parents:
            raw = raw[int(parent)] if parent.isdigit() else raw[parent]
        raw[name] = raw.pop(last)

    return change


M = "Manifests/0"
LOCAL = "ComponentConfiguration/DefaultConfiguration/accessControl/aws.greengrass.ipc.pubsub"
AT_LOCAL = f"$.{LOCAL.replace('/', '.')}"
SUBSCRIBE = "aws.greengrass#SubscribeToTopic"
MANAGER = "ComponentDependencies/aws.greengrass.DockerApplicationManager"
BROKEN: dict[str, tuple[Variant, Callable[[dict[str, Any]], None], str]] = {
    "unknown key at the top": ("lite", put("ComponentVersoin", "1"), "$.ComponentVersoin"),
    "casing at the top": ("lite", move("ComponentName", "componentName"), "$.componentName"),
    "format": ("lite", put("RecipeFormatVersion", "2021"), "$.RecipeFormatVersion"),
    "character of a name": ("lite", put("ComponentName", "a b"), "$.ComponentName"),
    "length of a name": ("lite", put("ComponentName", "a" * 129), "$.ComponentName"),
    "name of Amazon's": ("lite", put("ComponentName", "aws.greengrass.Mine"), "$.ComponentName"),
    "version as a number": ("lite", put("ComponentVersion", 1.0), "$.ComponentVersion"),
    "version with leading zeros": ("lite", put("ComponentVersion", "1.02.0"), "$.ComponentVersion"),
    "no manifest": ("lite", put("Manifests", []), "$.Manifests"),
    "key of a manifest": ("lite", move(f"{M}/Artifacts", "artifacts"), "$.Manifests[0].artifacts"),
    "casing of a platform": ("lite", move(f"{M}/Platform/os", "OS"), "$.Manifests[0].Platform.OS"),
    "Docker's word for a processor": (
        "lite", put(f"{M}/Platform/architecture", "arm64"), "$.Manifests[0].Platform.architecture",
    ),
    "lite without its runtime": (
        "lite", lambda r: r["Manifests"][0]["Platform"].pop("runtime"), "$.Manifests[0].Platform.runtime",
    ),
    "nucleus with the runtime of lite": (
        "nucleus", put(f"{M}/Platform/runtime", "aws_nucleus_lite"), "$.Manifests[0].Platform.runtime",
    ),
    "other system": ("lite", put(f"{M}/Platform/os", "darwin"), "$.Manifests[0].Platform.os"),
    "run and startup": (
        "nucleus", put(f"{M}/Lifecycle/run", {"Script": "true"}), "$.Manifests[0].Lifecycle",
    ),
    "casing of a step": (
        "lite", move(f"{M}/Lifecycle/run", "Run"), "$.Manifests[0].Lifecycle.Run",
    ),
    "shutdown on lite": (
        "lite", put(f"{M}/Lifecycle/shutdown", {"Script": "true"}), "$.Manifests[0].Lifecycle.shutdown",
    ),
    "Skipif on lite": (
        "lite", put(f"{M}/Lifecycle/run/Skipif", "onpath x"), "$.Manifests[0].Lifecycle.run.Skipif",
    ),
    "casing in a step": (
        "lite", move(f"{M}/Lifecycle/run/Script", "script"), "$.Manifests[0].Lifecycle.run.script",
    ),
    "privilege as a text": (
        "lite", put(f"{M}/Lifecycle/run/RequiresPrivilege", "true"),
        "$.Manifests[0].Lifecycle.run.RequiresPrivilege",
    ),
    "timeout as a text": (
        "lite", put(f"{M}/Lifecycle/run/Timeout", "30"), "$.Manifests[0].Lifecycle.run.Timeout",
    ),
    "timeout of nothing": (
        "lite", put(f"{M}/Lifecycle/run/Timeout", 0), "$.Manifests[0].Lifecycle.run.Timeout",
    ),
    "brace of the shell": (
        "lite", put(f"{M}/Lifecycle/run/Script", "echo ${HOME}"), "$.Manifests[0].Lifecycle.run.Script",
    ),
    "brace of Docker": (
        "nucleus", put(f"{M}/Lifecycle/startup/Script", "docker ps --format '{{.ID}}'"),
        "$.Manifests[0].Lifecycle.startup.Script",
    ),
    "variable that nobody knows": (
        "lite", put(f"{M}/Lifecycle/run/Script", "cat {artifact:path}"),
        "$.Manifests[0].Lifecycle.run.Script",
    ),
    "long script on lite": (
        "lite", put(f"{M}/Lifecycle/run/Script", "x" * 10_001), "$.Manifests[0].Lifecycle.run.Script",
    ),
    "variable's name": (
        "lite", put(f"{M}/Lifecycle/run/Setenv", {"A-B": "x"}), "$.Manifests[0].Lifecycle.run.Setenv.A-B",
    ),
    "variable as a number": (
        "lite", put(f"{M}/Lifecycle/run/Setenv", {"A": 1}), "$.Manifests[0].Lifecycle.run.Setenv.A",
    ),
    "casing of an artifact": (
        "lite", move(f"{M}/Artifacts/0/Uri", "URI"), "$.Manifests[0].Artifacts[0].URI",
    ),
    "scheme": ("lite", put(f"{M}/Artifacts/0/Uri", "http://x/y"), "$.Manifests[0].Artifacts[0].Uri"),
    "tag and digest": (
        "nucleus", put(f"{M}/Artifacts/0/Uri", f"docker:r.example/x:1@sha256:{'a' * 64}"),
        "$.Manifests[0].Artifacts[0].Uri",
    ),
    "image without a tag": (
        "nucleus", put(f"{M}/Artifacts/0/Uri", "docker:r.example/x"), "$.Manifests[0].Artifacts[0].Uri",
    ),
    "archive": (
        "lite", put(f"{M}/Artifacts/1/Unarchive", "TAR"), "$.Manifests[0].Artifacts[1].Unarchive",
    ),
    "permission": (
        "lite", put(f"{M}/Artifacts/1/Permission", {"Read": "everyone"}),
        "$.Manifests[0].Artifacts[1].Permission.Read",
    ),
    "dependency that lite asks the cloud for": (
        "lite", put(MANAGER, {"VersionRequirement": "*"}), f"$.{MANAGER.replace('/', '.')}",
    ),
    "dependency without a version": (
        "nucleus", put("ComponentDependencies/x", {}), "$.ComponentDependencies.x",
    ),
    "kind of a dependency": (
        "nucleus", put("ComponentDependencies/x", {"VersionRequirement": "1", "DependencyType": "hard"}),
        "$.ComponentDependencies.x.DependencyType",
    ),
    "key of the configuration": (
        "lite", put("ComponentConfiguration/defaultConfiguration", {}),
        "$.ComponentConfiguration.defaultConfiguration",
    ),
    "everything": (
        "lite", put(LOCAL, {"p": {"operations": [SUBSCRIBE], "resources": ["*"]}}),
        f"{AT_LOCAL}.p.resources[0]",
    ),
    "wildcard of MQTT for local topics": (
        "lite", put(LOCAL, {"p": {"operations": [SUBSCRIBE], "resources": ["a/+"]}}),
        f"{AT_LOCAL}.p.resources[0]",
    ),
    "operation of another service": (
        "lite", put(LOCAL, {"p": {"operations": ["aws.greengrass#PublishToIoTCore"], "resources": ["a"]}}),
        f"{AT_LOCAL}.p.operations[0]",
    ),
    "service that nobody knows": (
        "lite",
        put(LOCAL.replace("ipc.", ""), {}), AT_LOCAL.replace("ipc.", ""),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_recipe_is_found_where_it_is_broken(name):
    variant, change, where = BROKEN[name]
    recipe = copy.deepcopy(recipes(demo(), variant)["buffer"])
    assert recipe_troubles(recipe, variant) == []
    change(recipe)
    assert where in [found for found, _ in recipe_troubles(recipe, variant)]


def test_recipes_are_smaller_than_greengrass_takes():
    sizes = [len(text.encode()) for path, text in demo().items() if "/recipes/" in path]
    assert max(sizes) < MOST_RECIPE_BYTES / 2


def test_a_component_of_the_nucleus_waits_for_its_container_and_one_of_lite_is_it(tmp_path):
    files = render(on(tmp_path))
    for recipe in recipes(files, "nucleus").values():
        assert list(recipe["Manifests"][0]["Lifecycle"]) == ["startup", "shutdown", "recover"]
        assert recipe["Manifests"][0]["Platform"] == {"os": "linux"}
    for recipe in recipes(files, "lite").values():
        assert list(recipe["Manifests"][0]["Lifecycle"]) == ["run"]
        assert recipe["Manifests"][0]["Platform"] == {"os": "linux", "runtime": "aws_nucleus_lite"}
        assert re.search(r"^exec docker ", recipe["Manifests"][0]["Lifecycle"]["run"]["Script"], re.MULTILINE)


def test_a_step_has_more_time_than_its_script_takes_at_most(tmp_path):
    its = on(tmp_path)
    stops = {container.name: container.stop_s for container in its.containers}
    for module, recipe in recipes(render(its), "nucleus").items():
        lifecycle = recipe["Manifests"][0]["Lifecycle"]
        wait = int(re.search(r"/proc/uptime\) \+ (\d+)\)\)", lifecycle["startup"]["Script"]).group(1))
        assert lifecycle["startup"]["Timeout"] >= wait + 60
        assert lifecycle["shutdown"]["Timeout"] > stops[module] + 10


def test_only_the_nucleus_depends_on_others_and_everybody_there_on_the_broker(tmp_path):
    files = render(on(tmp_path))
    assert not [r for r in recipes(files, "lite").values() if "ComponentDependencies" in r]
    for module, recipe in recipes(files, "nucleus").items():
        wanted = {"aws.greengrass.DockerApplicationManager"}
        wanted |= {"skerry.test.broker"} if module != "broker" else set()
        assert set(recipe["ComponentDependencies"]) == wanted
    asked = recipes(files, "nucleus")["buffer"]["ComponentDependencies"]["skerry.test.broker"]
    assert asked == {"VersionRequirement": "1.2.3", "DependencyType": "HARD"}


def test_credentials_are_asked_for_where_the_registry_is_a_private_one_of_amazons(tmp_path):
    registry = "123456789012.dkr.ecr.eu-north-1.amazonaws.com/site"
    files = render(on(tmp_path, images=Images(registry=registry)))
    for recipe in recipes(files, "nucleus").values():
        assert "aws.greengrass.TokenExchangeService" in recipe["ComponentDependencies"]
    assert not [r for r in recipes(files, "lite").values() if "ComponentDependencies" in r]


def test_an_image_is_named_by_digest_or_by_tag_and_never_by_both(tmp_path):
    digest = f"sha256:{'a' * 64}"
    names = ("broker", "capture", "inference-cpu", "decision", "buffer")
    images = Images(registry="registry.example:5000/x", tag="9.9", digests=dict.fromkeys(names, digest))
    its = recipes(render(on(tmp_path, images=images)), "nucleus")
    for module, wanted in (
        ("buffer", f"registry.example:5000/x/skerry-buffer@{digest}"),
        ("uplink", "registry.example:5000/x/skerry-uplink:9.9"),
    ):
        manifest = its[module]["Manifests"][0]
        assert manifest["Artifacts"][0] == {"Uri": f"docker:{wanted}"}
        assert wanted in manifest["Lifecycle"]["startup"]["Script"]


@pytest.mark.parametrize(
    ("device", "architecture"),
    [("amd64-gateway", "amd64"), ("arm64-4gb", "aarch64"), ("jetson-8gb", "aarch64")],
)
def test_the_class_of_device_says_the_processor(device, architecture, tmp_path):
    files = render(on(tmp_path, f"{SITE}device: {device}\n"))
    for variant in VARIANTS:
        for recipe in recipes(files, variant).values():
            assert recipe["Manifests"][0]["Platform"]["architecture"] == architecture


# What the uplink may do


def policies(link: GreengrassLink) -> dict[str, list[str]]:
    """Operation to resources."""
    found: dict[str, list[str]] = {}
    for its in access_control(link, "test", "c").values():
        for policy in its.values():
            for operation in policy["operations"]:
                found.setdefault(operation.removeprefix("aws.greengrass#"), []).extend(policy["resources"])
    return found


FAR = [f"skerry/test/far/{lane}" for lane in ("alarm", "event", "telemetry", "bulk")]


def test_only_the_uplink_may_ask_the_nucleus_for_anything(tmp_path):
    for variant in VARIANTS:
        for module, recipe in recipes(render(on(tmp_path)), variant).items():
            configuration = recipe["ComponentConfiguration"]["DefaultConfiguration"]
            assert ("accessControl" in configuration) == (module == "uplink")
            script = next(iter(recipe["Manifests"][0]["Lifecycle"].values()))["Script"]
            assert ("AWS_GG_NUCLEUS" in script) == ("SVCUID" in script) == (module == "uplink")


def test_an_uplink_with_another_way_out_may_ask_for_nothing(tmp_path):
    files = render(on(tmp_path, SITE.replace("link: {kind: greengrass}", "link: {kind: mqtt, host: far}")))
    for variant in VARIANTS:
        recipe = recipes(files, variant)["uplink"]
        assert recipe["ComponentConfiguration"]["DefaultConfiguration"] == {"folder": "/etc/skerry/test"}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (
            {},
            {
                "PublishToIoTCore": [*FAR, "skerry/test/remote/reported", "skerry/test/remote/responses"],
                "SubscribeToIoTCore": ["skerry/test/remote/requests/+"],
                "SubscribeToTopic": ["skerry/test/remote/requests/*"],
                "PublishToTopic": ["skerry/test/remote/responses"],
            },
        ),
        (
            {"commands": ("local",), "reported": "none"},
            {
                "PublishToIoTCore": FAR,
                "SubscribeToTopic": ["skerry/test/remote/requests/*"],
                "PublishToTopic": ["skerry/test/remote/responses"],
            },
        ),
        ({"commands": (), "reported": "configuration"}, {"PublishToIoTCore": FAR}),
        ({"remote_topic": "", "reported": "none"}, {"PublishToIoTCore": FAR}),
        (
            {"remote_topic": "", "reported": "none", "confirm": "echo", "topic": "up"},
            {"PublishToIoTCore": ["up"], "SubscribeToIoTCore": ["up"]},
        ),
        (
            {"remote_topic": "", "reported": "none", "desired": "shadow", "thing": "gate"},
            {
                "PublishToIoTCore": FAR,
                "GetThingShadow": ["$aws/things/gate/shadow/name/skerry"],
                "SubscribeToTopic": [
                    "$aws/things/gate/shadow/name/skerry/update/documents",
                    "$aws/things/gate/shadow/name/skerry/delete/accepted",
                ],
            },
        ),
    ],
)
def test_what_is_allowed_follows_from_the_link(given, wanted):
    assert policies(GreengrassLink(**given)) == wanted


def test_a_reported_shadow_may_be_written():
    found = policies(GreengrassLink(reported="shadow"))
    assert found["UpdateThingShadow"] == ["$aws/things/{iot:thingName}/shadow/name/skerry"]


def test_a_shadow_brings_its_manager_along_on_the_nucleus(tmp_path):
    link = "link: {kind: greengrass, desired: shadow}"
    recipe = recipes(render(on(tmp_path, SITE.replace("link: {kind: greengrass}", link))), "nucleus")[
        "uplink"
    ]
    assert "aws.greengrass.ShadowManager" in recipe["ComponentDependencies"]
    assert "desired" not in recipe["ComponentConfiguration"]["DefaultConfiguration"]


# Artifacts


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_file_of_a_recipe_is_there_or_is_packed_from_the_package(variant):
    for path, text in demo().items():
        if not path.startswith(f"{variant}/recipes/"):
            continue
        recipe = yaml.safe_load(text)
        for artifact in recipe["Manifests"][0]["Artifacts"]:
            uri = artifact["Uri"]
            if uri.startswith("s3://BUCKET_NAME/") and not uri.endswith(".zip"):
                assert uri.replace("s3://BUCKET_NAME", f"{variant}/artifacts") in demo()
            elif uri.endswith(".zip"):
                assert artifact["Unarchive"] == "ZIP"
                assert artifact["Permission"] == {"Read": "ALL"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_the_container_reads_may_be_read_by_its_user(variant):
    artifacts = recipes(demo(), variant)["broker"]["Manifests"][0]["Artifacts"]
    files = {a["Uri"].rpartition("/")[2]: a.get("Permission") for a in artifacts[1:]}
    assert files == {"mosquitto.conf": {"Read": "ALL"}, "acl": {"Read": "ALL"}}


def test_settings_are_what_the_module_takes_and_lite_gets_smaller_messages(tmp_path):
    files = render(on(tmp_path))
    for variant, most in (("nucleus", 128 * 1024), ("lite", 7000)):
        path = f"{variant}/artifacts/{PREFIXES[variant]}.test.uplink/1.2.3/settings.json"
        settings = parse_json(UplinkSettings, files[path], "it")
        assert settings.link.max_payload_bytes == most


def test_commands_that_are_told_pack_a_package_for_each_nucleus(tmp_path, capsys):
    on(tmp_path)
    out = tmp_path / "out"
    assert main(["render", "greengrass", str(tmp_path / "site.yaml"), "--out", str(out)]) == 0
    told = [line.strip() for line in capsys.readouterr().out.splitlines() if "zipfile" in line]
    assert len(told) == 2
    for line in told:
        subprocess.run(["/bin/sh", "-c", line], cwd=out, check=True)
    for variant in VARIANTS:
        path = out / variant / "artifacts" / f"{PREFIXES[variant]}.test.inference" / "1.2.3" / "parts.zip"
        with zipfile.ZipFile(path) as archive:
            assert {"manifest.json", "model.onnx"} <= set(archive.namelist())


def test_a_project_of_the_development_kit_builds_what_it_publishes(tmp_path):
    on(tmp_path)
    out = tmp_path / "out"
    assert main(["render", "greengrass", str(tmp_path / "site.yaml"), "--out", str(out)]) == 0
    name = "skerry.test.broker"
    project = out / "nucleus" / "gdk" / name
    shutil.copy(out / "nucleus" / "recipes" / f"{name}-1.2.3.yaml", project / "recipe.yaml")
    built = project / "greengrass-build"
    (built / "recipes").mkdir(parents=True)  # the kit makes both
    (built / "artifacts" / name / "1.2.3").mkdir(parents=True)
    config = json.loads((project / "gdk-config.json").read_text(encoding="utf-8"))["component"][name]
    subprocess.run(config["build"]["custom_build_command"], cwd=project, check=True)
    assert sorted(p.name for p in (built / "artifacts" / name / "1.2.3").iterdir()) == [
        "acl",
        "mosquitto.conf",
    ]
    assert (built / "recipes" / "recipe.yaml").is_file()


# Scripts


def test_every_script_is_one_of_the_shell():
    found = scripts(demo())
    assert len(found) == 4 * len(MODULES)
    for where, script in found.items():
        done = subprocess.run(["sh", "-n"], input=script, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), where


ENGINE = """#!/bin/sh
for word; do printf '%s\\0' "$word"; done >> "$CALLS"
printf '\\n\\0' >> "$CALLS"
case $1 in ps) echo an-id ;; network) [ "$2" != inspect ] ;; esac
"""
"""Stands in for Docker: writes down every word that it is given."""


def called(folder: Path, script: str, **environment: str) -> tuple[int, list[list[str]], str]:
    """Run a script with the stand-in: its exit code, the calls, what it says on standard error."""
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    for name, text in {
        "docker": ENGINE,
        "sleep": "#!/bin/sh\n",
        "flock": '#!/bin/sh\nshift; exec "$@"\n',
    }.items():
        (tools / name).write_text(text, encoding="utf-8")
        (tools / name).chmod(0o755)
    (folder / "settings.json").write_text('{"a": 1}\n', encoding="utf-8")
    script = script.replace("{artifacts:path}", str(folder)).replace(
        "{artifacts:decompressedPath}", "/unpacked"
    )
    calls = folder / "calls"
    calls.unlink(missing_ok=True)
    path = f"{tools}:/usr/bin:/bin"
    done = subprocess.run(
        ["/bin/sh", "-c", script], env={"PATH": path, "CALLS": str(calls), **environment}, cwd=folder,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    text = calls.read_bytes().decode() if calls.exists() else ""
    return done.returncode, [call.split("\0")[:-1] for call in text.split("\n\0") if call], done.stderr


def run_words(calls: list[list[str]]) -> list[str]:
    return next(call for call in calls if call[0] in ("run", "create"))


def test_a_container_is_given_all_that_it_needs_and_no_more(tmp_path):
    script = scripts(render(on(tmp_path)))["lite capture run"]
    code, calls, said = called(tmp_path, script, SKERRY_FOLDER="/etc/skerry/test")
    assert (code, said) == (0, "")
    assert ["network", "create", "--internal", "skerry-test"] in calls
    words = run_words(calls)
    assert words[:2] == ["run", "--rm"]
    assert words[-1].startswith("skerry-capture:")
    text = " ".join(words)
    for flag in (
        "--name skerry-test-capture", "--user 10001:10001 --read-only --cap-drop ALL",
        "--security-opt no-new-privileges", "--memory 399m --memory-swap 399m --pids-limit 256",
        "--tmpfs /tmp:size=16m,mode=1777,noexec,nosuid,nodev",
        "--log-driver json-file --log-opt max-size=10m --log-opt max-file=3",
        "--network skerry-test --network-alias capture", "--stop-timeout 4",
        "--health-cmd python3 -m skerry.healthcheck 8080", "--env SKERRY_SETTINGS",
        "type=volume,source=skerry-test-capture-state,target=/var/lib/skerry",
        "type=bind,source=/etc/skerry/test/certificates/capture,target=/run/certificates,readonly",
    ):  # fmt: skip
        assert flag in text, flag
    [frames] = [word for word in words if "target=/frames" in word]
    assert frames.endswith('"volume-opt=o=size=15m,mode=0750,uid=10001,gid=10001,nosuid,nodev,noexec"')
    assert "volume-opt=type=tmpfs,volume-opt=device=tmpfs" in frames
    assert not {"--publish", "-p", "--privileged", "--pid", "--ipc"} & set(words)


def test_frames_are_read_only_for_inference_and_of_the_same_volume(tmp_path):
    its = scripts(render(on(tmp_path)))
    mounts = {}
    for module in ("capture", "inference"):
        words = run_words(called(tmp_path, its[f"lite {module} run"], SKERRY_FOLDER="/x")[1])
        mounts[module] = next(word for word in words if "target=/frames" in word)
    assert ",readonly" in mounts["inference"]
    assert mounts["inference"].replace(",readonly", "") == mounts["capture"]


def test_larger_frames_are_in_another_volume_because_an_engine_changes_none(tmp_path):
    large = SITE.replace("kind: synthetic", "kind: synthetic, width: 1920, height: 1080")
    names = []
    for text in (SITE, large):
        its = scripts(render(on(tmp_path, text)))
        words = run_words(called(tmp_path, its["lite capture run"], SKERRY_FOLDER="/x")[1])
        names.append(next(word for word in words if "target=/frames" in word).split(",")[1])
        assert f"docker volume rm {names[-1].removeprefix('source=')} " in its["nucleus capture shutdown"]
    assert len(set(names)) == 2


def test_a_package_is_where_a_local_deployment_has_it_or_where_the_archive_was_unpacked(tmp_path):
    script = scripts(render(on(tmp_path)))["lite inference run"]
    text = " ".join(run_words(called(tmp_path, script, SKERRY_FOLDER="/x")[1]))
    assert "type=bind,source=/unpacked/parts,target=/models/parts,readonly" in text
    (tmp_path / "parts").mkdir()
    text = " ".join(run_words(called(tmp_path, script, SKERRY_FOLDER="/x")[1]))
    assert f"type=bind,source={tmp_path}/parts,target=/models/parts,readonly" in text


def test_the_uplink_is_in_the_group_of_the_nucleus_socket_and_in_no_network_but_the_sites(tmp_path):
    socket = tmp_path / "socket"
    socket.touch()
    script = scripts(render(on(tmp_path)))["lite uplink run"]
    name = "AWS_GG_NUCLEUS_DOMAIN_SOCKET_FILEPATH_FOR_COMPONENT"
    code, calls, said = called(tmp_path, script, SKERRY_FOLDER="/x", **{name: str(socket)})
    assert (code, said) == (0, "")
    words = run_words(calls)
    assert words[words.index("--group-add") + 1] == str(socket.stat().st_gid)
    assert f"type=bind,source={socket},target=/run/nucleus.socket" in words
    assert f"{name}=/run/nucleus.socket" in words
    assert {"SVCUID", "AWS_IOT_THING_NAME", "SKERRY_SETTINGS"} <= set(words)
    assert [call for call in calls if call[:2] == ["network", "create"]] == [
        ["network", "create", "--internal", "skerry-test"]
    ]


def test_who_has_business_outside_is_in_a_second_network(tmp_path):
    far = SITE.replace("link: {kind: greengrass}", "link: {kind: mqtt, host: far}")
    its = scripts(render(on(tmp_path, far)))
    for variant, start in (("lite run", ["start", "--attach"]), ("nucleus startup", ["start"])):
        script = its[f"{variant.split()[0]} uplink {variant.split()[1]}"]
        code, calls, said = called(tmp_path, script, SKERRY_FOLDER="/x")
        assert (code, said) == (0, "")
        assert ["network", "create", "skerry-test-outside"] in calls
        order = [call[0] for call in calls if call[0] in ("create", "start") or call[1] == "connect"]
        assert order == ["create", "network", "start"]
        assert ["network", "connect", "skerry-test-outside", "skerry-test-uplink"] in calls
        assert [*start, "skerry-test-uplink"] in calls
    assert "--rm" in run_words(called(tmp_path, its["lite uplink run"], SKERRY_FOLDER="/x")[1])


def test_devices_come_with_their_groups_and_an_accelerator_with_its_runtime(tmp_path):
    text = SITE.replace("{kind: synthetic}", "{kind: v4l2, device: /dev/video0}")
    text = text.replace(f"package: {PACKAGE}", f"package: {PACKAGE}, device: gpu")
    its = scripts(render(on(tmp_path, text)))
    group = subprocess.run(["getent", "group", "video"], capture_output=True, text=True, check=True)
    words = run_words(called(tmp_path, its["lite capture run"], SKERRY_FOLDER="/x")[1])
    assert words[words.index("--device") + 1] == "/dev/video0"
    assert words[words.index("--group-add") + 1] == group.stdout.split(":")[2]
    assert "--device /dev/dri" in its["lite inference run"]
    cuda = SITE.replace(f"package: {PACKAGE}", f"package: {PACKAGE}, device: cuda")
    assert "--gpus all" in scripts(render(on(tmp_path, cuda)))["nucleus inference startup"]


def test_bounds_of_the_site_are_those_of_its_containers(tmp_path):
    text = f"{SITE}resources: {{decision: {{memory_mb: 99, cpus: 1.5}}}}\n"
    script = scripts(render(on(tmp_path, text)))["lite decision run"]
    assert "--memory 99m --memory-swap 99m" in script
    assert "--cpus 1.5 " in script


@pytest.mark.parametrize(
    "folder", ["", "etc/skerry", "/etc/a,b", '/etc/"x"', "$(touch made)", "`touch made`"]
)
def test_a_folder_that_would_be_something_else_ends_the_start(folder, tmp_path):
    script = scripts(render(on(tmp_path)))["lite buffer run"]
    code, calls, said = called(tmp_path, script, SKERRY_FOLDER=folder)
    assert code == 78
    assert calls == []
    assert "folder: expected the full path of a folder" in said
    assert not (tmp_path / "made").exists()


def test_a_folder_is_a_word_whatever_is_in_it(tmp_path):
    script = scripts(render(on(tmp_path)))["lite buffer run"]
    folder = "/etc/my $(touch made) `touch made` 'site' $HOME"
    code, calls, _ = called(tmp_path, script, SKERRY_FOLDER=folder)
    assert code == 0
    wanted = f"type=bind,source={folder}/certificates/buffer,target=/run/certificates,readonly"
    assert wanted in run_words(calls)
    assert not (tmp_path / "made").exists()


def test_no_network_is_made_twice(tmp_path):
    script = scripts(render(on(tmp_path)))["lite buffer run"]
    assert re.search(r"^flock /run/skerry-test.lock sh -c ", script, re.MULTILINE)


# The deployment


def test_a_deployment_names_every_component_and_what_happens_when_it_fails(tmp_path):
    files = render(on(tmp_path))
    for variant, policy, action in (
        ("nucleus", "ROLLBACK", "NOTIFY_COMPONENTS"),
        ("lite", "DO_NOTHING", "SKIP_NOTIFY_COMPONENTS"),
    ):
        its = json.loads(files[f"{variant}/deployment.json"])
        assert set(its) == {
            "targetArn", "deploymentName", "components", "deploymentPolicies", "iotJobConfiguration",
        }  # fmt: skip
        names = {recipe["ComponentName"] for recipe in recipes(files, variant).values()}
        assert set(its["components"]) == names
        assert {c["componentVersion"] for c in its["components"].values()} == {"1.2.3"}
        assert its["deploymentPolicies"]["failureHandlingPolicy"] == policy
        assert its["deploymentPolicies"]["componentUpdatePolicy"]["action"] == action
        arn = its["targetArn"].replace("REGION", "eu-north-1").replace("ACCOUNT", "123456789012")
        assert re.fullmatch(r"arn:[^:]*:iot:[^:]*:[0-9]+:thinggroup/.+", arn)
        job = its["iotJobConfiguration"]
        rate = job["jobExecutionsRolloutConfig"]["exponentialRate"]
        assert 1 <= rate["incrementFactor"] <= 5
        assert rate["baseRatePerMinute"] <= job["jobExecutionsRolloutConfig"]["maximumPerMinute"] <= 1000
        assert [c["failureType"] for c in job["abortConfig"]["criteriaList"]] == ["FAILED", "TIMED_OUT"]
        assert {c["action"] for c in job["abortConfig"]["criteriaList"]} == {"CANCEL"}


def test_a_new_version_brings_its_rules_along(tmp_path):
    components = json.loads(render(on(tmp_path))["nucleus/deployment.json"])["components"]
    assert components["skerry.test.uplink"]["configurationUpdate"] == {"reset": ["/accessControl"]}
    assert "configurationUpdate" not in components["skerry.test.buffer"]


def test_what_the_operators_page_names_is_what_is_rendered():
    page = (ROOT / "greengrass-components" / "README.md").read_text(encoding="utf-8")
    names = {r["ComponentName"] for variant in VARIANTS for r in recipes(demo(), variant).values()}
    named = set(re.findall(r"skerry(?:-lite)?\.demo\.[a-z]+", page))
    assert len(named) > 5
    assert named <= names
    for placeholder in ("REGION", "ACCOUNT", "RING"):
        assert placeholder in demo()["nucleus/deployment.json"]
        assert f"s/{placeholder}/" in page
    assert all("BUCKET_NAME" in text for path, text in demo().items() if "/recipes/" in path)
    for link in re.findall(r"\]\(([^)#]+)\)", page):
        assert (ROOT / "greengrass-components" / link).exists(), link


# A line of the site

CHANGES = {
    "fps: 5": ("fps: 6", {"artifacts/{}.test.capture/1.2.3/settings.json"}),
    "[0.5, 1]]": ("[0.5, 0.9]]", {"artifacts/{}.test.decision/1.2.3/settings.json"}),
    "bytes: 67108864": ("bytes: 77108864", {"artifacts/{}.test.buffer/1.2.3/settings.json"}),
    "kind: greengrass": (
        "kind: greengrass, confirm: echo",
        {"artifacts/{}.test.uplink/1.2.3/settings.json", "recipes/{}.test.uplink-1.2.3.yaml"},
    ),
    "kind: synthetic": (
        "kind: synthetic, width: 1920, height: 1080",
        {
            "artifacts/{}.test.capture/1.2.3/settings.json", "recipes/{}.test.capture-1.2.3.yaml",
            "recipes/{}.test.inference-1.2.3.yaml",
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("line", CHANGES)
def test_a_changed_line_changes_the_files_of_whom_it_is_about_and_no_other(line, tmp_path):
    instead, wanted = CHANGES[line]
    assert line in SITE
    before, after = render(on(tmp_path)), render(on(tmp_path, SITE.replace(line, instead)))
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {f"{v}/{name.format(PREFIXES[v])}" for v in VARIANTS for name in wanted}


def test_a_site_without_bus_security_has_no_certificates(tmp_path):
    files = render(on(tmp_path, secure=False))
    assert not [where for where, script in scripts(files).items() if "certificates" in script]
    assert "nucleus/artifacts/skerry.test.broker/1.2.3/acl" not in files


def test_a_bus_of_the_sites_own_has_no_component_and_everybody_goes_there(tmp_path):
    files = render(on(tmp_path, f"{SITE}bus: {{host: 10.0.0.5}}\n"))
    for variant in VARIANTS:
        its = recipes(files, variant)
        assert "broker" not in its
        for recipe in its.values():
            assert "skerry.test.broker" not in recipe.get("ComponentDependencies", {})
            script = next(iter(recipe["Manifests"][0]["Lifecycle"].values()))["Script"]
            assert "docker network connect skerry-test-outside" in script


def test_no_secret_lands_in_a_file(tmp_path, capsys):
    (tmp_path / "far.txt").write_text("hunter2", encoding="utf-8")
    link = "link: {kind: mqtt, host: far, user: me, password_file: far.txt}"
    on(tmp_path, SITE.replace("link: {kind: greengrass}", link))
    out = tmp_path / "out"
    assert main(["render", "greengrass", str(tmp_path / "site.yaml"), "--out", str(out)]) == 0
    written = [path for path in out.rglob("*") if path.is_file()]
    assert not [path for path in written if b"hunter2" in path.read_bytes()]
    said = capsys.readouterr().out
    assert f"/etc/skerry/test/secrets/far.txt: put {tmp_path}/far.txt there" in said
    script = scripts(render(on(tmp_path, SITE.replace("link: {kind: greengrass}", link))))["lite uplink run"]
    assert "source=$SKERRY_FOLDER/secrets/far.txt,target=/run/secrets/far.txt,readonly" in script


# What is found

G = "link: {kind: greengrass}"
WRONG = {
    "version with leading zeros": ("version: 1.2.3", "version: 1.02.3", "$.version"),
    "link of IoT Edge": (G, "link: {kind: azure}", "$.link"),
    "loopback as the bus": (G, f"{G}\nbus: {{host: 127.0.0.1}}", "$.bus.host"),
    "broker that is not Mosquitto": (G, f"{G}\nbus: {{broker: amqtt}}", "$.bus.broker"),
    "long topic": (G, f"link: {{kind: greengrass, topic: 'x/{{lane}}/{'a' * 247}'}}", "$.link.topic"),
    "topic with many levels": (G, "link: {kind: greengrass, topic: a/b/c/d/e/f/g/h/i}", "$.link.topic"),
    "topic with a wildcard": (G, "link: {kind: greengrass, topic: 'a/*'}", "$.link.topic"),
    "long topic of commands": (
        G, "link: {kind: greengrass, remote_topic: 'a/b/c/d/e/f/g/h'}", "$.link.remote_topic",
    ),
    "name of a secret": (
        G, "link: {kind: mqtt, host: far, user: me, password_file: 'my, secret'}", "$.link.password_file",
    ),
    "name of a secret on this platform": (
        G, f"{G}\ntargets: {{greengrass: {{link: {{kind: http, url: 'https://x/y', token_file: 'a b'}}}}}}",
        "$.targets.greengrass.link.token_file",
    ),
    "name of a video": (
        "source: {kind: synthetic}", "source: {kind: file, path: 'a{b}.mp4'}", "$.cameras[0].source.path",
    ),
    "name of a device": (
        "source: {kind: synthetic}", "source: {kind: v4l2, device: '/dev/v4l/by-id/usb-{1}'}",
        "$.cameras[0].source.device",
    ),
    "settings that no environment takes": (
        "fps: 5}", "fps: 5, masks: [" + "[[0.1, 0.1], [0.2, 0.1], [0.2, 0.2]]," * 3000 + "]}", "$.cameras",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_greengrass_would_refuse_is_found_with_its_path(name, tmp_path):
    old, new, where = WRONG[name]
    assert old in SITE
    found = errors(on(tmp_path, SITE.replace(old, new)))
    assert [path for path, _ in found] == [where]
    assert all("expected" in text for _, text in found)


def test_a_recipe_that_is_too_large_is_found(tmp_path):
    source = "{{kind: rtsp, url: 'rtsp://c/{n}', user: me, password_file: secret-{n}}}"
    cameras = "".join(f"  - {{name: c{n}, source: {source.format(n=n)}}}\n" for n in range(150))
    text = re.sub(r"  - \{name: belt.*\n", cameras, SITE)
    text = re.sub(r"rules:\n.*\n", "", text)
    found = errors(on(tmp_path, text))
    assert {where for where, _ in found} == {"$.cameras"}
    assert any(f"expected at most {MOST_RECIPE_BYTES} bytes of recipe" in said for _, said in found)
    assert any("Script: expected at most 10000 bytes" in said for _, said in found)


def test_a_component_whose_name_is_too_long_is_found(tmp_path):
    text = SITE.replace("site: test", f"site: {'s' * 64}").replace(
        "rules:", f"captures: {{{'c' * 60}: [belt]}}\nrules:"
    )
    found = errors(on(tmp_path, text))
    assert {where for where, _ in found} == {"$.cameras"}
    assert all("ComponentName: expected at most 128" in said for _, said in found)


def test_a_registry_that_greengrass_does_not_take_is_found(tmp_path):
    found = errors(on(tmp_path, images=Images(registry="registry.example/Site")))
    assert {where for where, _ in found} == {"--registry"}


def test_what_works_on_one_nucleus_only_is_a_warning(tmp_path):
    link = "link: {kind: greengrass, desired: shadow, reported: shadow}"
    images = Images(registry="registry.example")
    its = on(tmp_path, SITE.replace(G, link), images=images)
    assert errors(its) == []
    assert warnings(its) == ["$.link.desired", "$.link.reported"]
    assert warnings(on(tmp_path, images=images)) == []


def test_a_link_past_the_nucleus_is_a_warning(tmp_path):
    identity = "{kind: connection-string, connection_string_file: s}"
    its = on(tmp_path, SITE.replace(G, f"link: {{kind: azure, identity: {identity}}}"))
    assert errors(its) == []
    assert warnings(its) == ["$.link", "--registry"]


def test_the_path_of_a_link_of_this_platform_is_that_in_the_site_file(tmp_path, capsys):
    on(tmp_path, f"{SITE}targets: {{greengrass: {{link: {{kind: azure}}}}}}\n")
    assert main(["check", str(tmp_path / "site.yaml"), "--target", "greengrass"]) == 78
    assert "site.yaml: $.targets.greengrass.link: expected greengrass" in capsys.readouterr().err


def test_the_renderer_copies_packages_and_nothing_else(tmp_path):
    link = "link: {kind: mqtt, host: far, user: me, password_file: far.txt}"
    its = on(tmp_path, SITE.replace(G, link))
    assert [RENDERER.copies(mount) for mount in its.mounts] == ["models/parts", ""]
