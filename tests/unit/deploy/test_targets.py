"""What holds for every target: a changed line changes what it should, and no secret is ever rendered."""

import re
from pathlib import Path

import pytest

from needs import ROOT
from skerry.deploy.committed import renderings
from skerry.deploy.deployment import Deployment, deployment
from skerry.deploy.images import Images
from skerry.deploy.site import load_site
from skerry.deploy.targets import TARGETS

SITE = f"""
site: test
version: 1.0.0
cameras:
  - name: belt
    source: {{kind: rtsp, url: 'rtsp://192.0.2.10/stream', user: me, password_file: camera.txt}}
    fps: 5
    width: 640
    height: 480
models:
  - {{package: {ROOT / "models" / "parts"}}}
rules:
  - {{name: counted, kind: line, camera: belt, line: [[0.5, 0], [0.5, 1]]}}
buffer: {{bytes: 67108864}}
link: {{kind: mqtt, host: far, user: me, password_file: far.txt}}
resources: {{decision: {{memory_mb: 200}}}}
log_level: info
"""
EVERYBODY = {"broker", "capture", "inference", "decision", "buffer", "uplink"}
CHANGES = {
    "fps of a camera": ("fps: 5", "fps: 6", {"capture"}),
    "size of a camera's pictures": ("width: 640", "width: 1280", {"capture", "inference"}),
    "address of a camera": ("192.0.2.10", "192.0.2.11", {"capture"}),
    "secret of a camera": ("camera.txt", "door.txt", {"capture"}),
    "runtime of a model": ("parts}", "parts, runtime: openvino}", {"inference"}),
    "line of a rule": ("[0.5, 1]", "[0.6, 1]", {"decision"}),
    "bytes of the buffer": ("67108864", "67108865", {"buffer"}),
    "host of the far end": ("host: far", "host: farther", {"uplink"}),
    "memory of a module": ("memory_mb: 200", "memory_mb: 201", {"decision"}),
    "name of a camera": ("belt", "ramp", {"broker", "capture", "inference", "decision"}),
    "level of the logs": ("log_level: info", "log_level: debug", EVERYBODY - {"broker"}),
}


def on(target: str, folder: Path, text: str = SITE, **said: object) -> Deployment:
    folder.mkdir(exist_ok=True)
    (folder / "site.yaml").write_text(text, encoding="utf-8")
    return deployment(load_site(folder / "site.yaml", here=False), target, **said)


def rendered(its: Deployment) -> dict[str, str]:
    return TARGETS[its.target].render(its)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("old", "new", "changed"), CHANGES.values(), ids=CHANGES)
def test_a_changed_line_changes_whom_it_should_and_nobody_else(target, old, new, changed, tmp_path):
    assert old in SITE
    before, after = on(target, tmp_path), on(target, tmp_path, SITE.replace(old, new))
    pairs = zip(before.containers, after.containers, strict=True)
    assert {one.name for one, other in pairs if one != other} == changed
    assert rendered(before) != rendered(after)


@pytest.mark.parametrize("target", TARGETS)
def test_a_comment_in_the_site_changes_nothing(target, tmp_path):
    assert rendered(on(target, tmp_path)) == rendered(on(target, tmp_path, f"# to be read\n{SITE}"))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("secure", [True, False])
def test_the_same_site_gives_the_same_files_wherever_it_is(target, secure, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    files = rendered(on(target, here, secure=secure))
    assert files == rendered(on(target, there, secure=secure))
    text = "\n".join(files.values())
    assert str(tmp_path) not in text
    assert str(ROOT) not in text


@pytest.mark.parametrize("target", TARGETS)
def test_no_secret_lands_in_a_file(target, tmp_path):
    for name in ("camera.txt", "far.txt"):
        (tmp_path / name).write_text(f"hunter2-{name}", encoding="utf-8")
    files = rendered(on(target, tmp_path))
    assert not [name for name, text in files.items() if "hunter2" in text]
    assert not [name for name, text in files.items() if "PRIVATE KEY" in text]


@pytest.mark.parametrize("target", TARGETS)
def test_every_image_is_named_with_its_registry_tag_and_digest(target, tmp_path):
    digest = f"sha256:{'a' * 64}"
    names = ("broker", "capture", "inference-cpu", "decision", "buffer", "uplink")
    images = Images(registry="registry.example/x", tag="9.9", digests=dict.fromkeys(names, digest))
    text = "\n".join(rendered(on(target, tmp_path, images=images)).values())
    # IoT Edge's agent takes a tag or a digest, never both; the tag is the module's version there.
    tag = "" if target == "iotedge" else ":9.9"
    for name in names:
        assert f"registry.example/x/skerry-{name}{tag}@{digest}" in text, name
    assert "9.9" in text


@pytest.mark.parametrize("target", TARGETS)
def test_file_names_stay_below_their_folder(target, tmp_path):
    for name in rendered(on(target, tmp_path)):
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_.][A-Za-z0-9_.-]*)*", name), name
        assert ".." not in name


@pytest.mark.parametrize("target", TARGETS)
def test_a_file_that_has_comments_says_what_it_came_from(target, tmp_path):
    its = on(target, tmp_path)
    for name, text in rendered(its).items():
        if name.endswith((".yaml", ".yml")):
            assert f"skerry render {target} from the site test" in text.splitlines()[0], name


def test_committed_renderings_are_those_of_their_sites():
    for name, text in renderings(ROOT).items():
        assert (ROOT / name).read_text(encoding="utf-8") == text, f"{name}: out of date (run make generate)"
