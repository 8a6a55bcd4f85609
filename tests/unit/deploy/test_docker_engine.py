"""What to do on an engine, given what is there. No engine is asked."""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest

from needs import ROOT
from skerry.deploy.contained import USER
from skerry.deploy.deployment import Deployment, deployment
from skerry.deploy.docker_engine import Health, wait
from skerry.deploy.engine import (
    DRAFT,
    FILLER,
    KIND_LABEL,
    SITE_LABEL,
    Changes,
    Options,
    There,
    Thing,
    Wanted,
    changes,
    copies,
    labels_of,
    lines,
    missing_images,
    removal,
    wanted,
)
from skerry.deploy.site import load_site
from skerry.errors import ConfigError, Unavailable

NAMES = ("broker", "uplink", "buffer", "decision", "inference", "capture")
CAMERA = "{kind: synthetic, scene: belt, seed: 1, fps: 15, width: 640, height: 480}"
replace = msgspec.structs.replace


DEMO = (ROOT / "sites" / "demo.yaml").read_text(encoding="utf-8")


@cache
def want(old: str = "", new: str = "", content: str = "0" * 12) -> Wanted:
    assert old in DEMO
    its = deployed(DEMO.replace(old, new) if old else DEMO)
    return wanted(its, dict.fromkeys(copies(its), content))


def deployed(text: str) -> Deployment:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "site.yaml"
        file.write_text(text.replace("../models", str(ROOT / "models")))
        return deployment(load_site(file, here=False), "compose")


def there_of(its: Wanted, state: str = "running") -> There:
    """An engine that has just been brought to it."""
    images = {c.image: f"sha256:{c.module}" for c in its.containers}
    return There(
        containers=tuple(
            Thing(
                name=c.name, id=f"id-{c.module}", labels=labels_of(its, c), state=state, image=images[c.image]
            )
            for c in its.containers
        ),
        volumes=tuple(
            Thing(name=v.name, labels={SITE_LABEL: its.site, KIND_LABEL: v.kind}) for v in its.volumes
        ),
        networks=tuple(Thing(name=n, id=f"id-{n}", labels={SITE_LABEL: its.site}) for n in its.networks),
        images=images,
    )


def done(found: Changes) -> dict[str, str]:
    return {change.module: change.action for change in found.containers}


def test_on_an_empty_engine_everything_is_made_in_the_order_of_starting():
    found = changes(want(), There())
    assert [(c.module, c.action) for c in found.containers] == [(name, "create") for name in NAMES]
    assert found.new_networks == ("skerry-demo-site",)
    assert {v.kind for v in found.new_volumes} == {
        "state", "output", "frames", "models", "broker", "certificates",
    }  # fmt: skip


def test_where_everything_is_there_is_nothing_to_do():
    found = changes(want(), there_of(want()))
    assert not found
    assert lines(found) == ["= 6 containers stay as they are"]


def test_a_changed_rule_replaces_decision_alone_and_says_what_changed():
    found = changes(want("above: 3", "above: 4"), there_of(want()))
    assert done(found) == {"decision": "replace"}
    assert found.containers[0].why == ("settings.rules[3].above: 3 -> 4",)
    assert found.same == 5


def test_another_content_is_another_volume_and_replaces_its_readers():
    its = want()
    [models] = [v for v in its.volumes if v.kind == "models"]
    contents = {v.copy: ("f" if v is models else "0") * 12 for v in its.volumes if v.copy}
    after = wanted(deployed(DEMO), contents)
    found = changes(after, there_of(its))
    assert done(found) == {"inference": "replace"}
    assert [v.name for v in found.new_volumes] == ["skerry-demo-models-ffffffffffff"]
    assert [t.name for t in found.old_volumes] == ["skerry-demo-models-000000000000"]
    assert found.containers[0].why == (
        'mount /models: "skerry-demo-models-000000000000" -> "skerry-demo-models-ffffffffffff"',
    )


def test_larger_frames_are_another_volume_for_both_who_share_it():
    found = changes(want("height: 480", "height: 1080"), there_of(want()))
    assert done(found) == {"inference": "replace", "capture": "replace"}
    assert [v.kind for v in found.new_volumes] == ["frames"]
    assert len(found.old_volumes) == 1


def test_an_image_that_was_built_again_replaces_its_container():
    there = there_of(want())
    images = {**there.images, "skerry-buffer:0.1.0": "sha256:other"}
    found = changes(want(), replace(there, images=images))
    assert done(found) == {"buffer": "replace"}
    assert found.containers[0].why == ("image id: buffer -> other",)


@pytest.mark.parametrize(
    ("state", "action"),
    [("exited", "start"), ("paused", "start"), ("created", "replace"), ("dead", "replace")],
)
def test_one_that_does_not_run_is_started_or_made_again(state, action):
    found = changes(want(), there_of(want(), state))
    assert done(found) == dict.fromkeys(NAMES, action)


@pytest.mark.parametrize("state", ["running", "restarting"])
def test_one_that_the_engine_looks_after_is_left_alone(state):
    assert not changes(want(), there_of(want(), state))


def test_those_that_end_do_so_in_the_order_of_the_flow():
    found = changes(want(content="1" * 12), there_of(want()))
    assert [c.module for c in found.stopping] == list(reversed(NAMES))


def test_a_capture_module_that_is_gone_is_removed_and_its_state_is_kept():
    two = want("cameras:", "captures: {left: [belt]}\ncameras:")
    found = changes(want(), there_of(two))
    assert done(found)["left"] == "remove"
    assert done(found)["capture"] == "create"
    assert found.kept == ("skerry-demo-left-state",)
    assert "= volume skerry-demo-left-state stays, with what was not delivered" in lines(found)
    assert found.stopping[0].module == "left"


def test_a_network_is_there_only_for_those_who_go_out():
    out = want("link: {kind: file, path: events.jsonl}", "link: {kind: mqtt, host: far.example}")
    assert out.networks == {"skerry-demo-site": True, "skerry-demo-outside": False}
    assert {c.module for c in out.containers if c.networks} == {"uplink"}
    found = changes(want(), there_of(out))
    assert [t.name for t in found.old_networks] == ["skerry-demo-outside"]
    assert done(found) == {"uplink": "replace"}
    assert 'network skerry-demo-outside: "member" -> nothing' in found.containers[0].why


def test_what_a_run_that_was_cut_off_has_left_goes_first():
    there = there_of(want())
    labels = {SITE_LABEL: "demo"}
    volume = next(v for v in there.volumes if "models" in v.name)
    left = (
        Thing(name=f"skerry-demo-buffer{DRAFT}", id="a", labels=labels, state="created"),
        Thing(name=f"{volume.name}{FILLER}", id="b", labels=labels, state="created"),
    )
    found = changes(want(), replace(there, containers=(*there.containers, *left)))
    assert {t.id for t in found.left_over} == {"a", "b"}
    assert found.half_filled == (volume.name,)
    assert [v.name for v in found.new_volumes] == [volume.name]
    assert found.same == 6


@pytest.mark.parametrize("what", ["containers", "volumes", "networks"])
@pytest.mark.parametrize("labels", [{}, {SITE_LABEL: "other"}])
def test_a_name_that_is_somebody_elses_is_refused(what, labels):
    there = there_of(want())
    first, *rest = getattr(there, what)
    foreign = (replace(first, labels=labels), *rest)
    with pytest.raises(ConfigError, match=f"{what[:-1]} {first.name}: expected none"):
        changes(want(), msgspec.structs.replace(there, **{what: foreign}))


def test_another_site_is_not_seen():
    other = replace(there_of(want("site: demo", "site: other")), images={})
    found = changes(want(), other)
    assert done(found) == dict.fromkeys(NAMES, "create")
    assert not found.old_volumes
    assert not removal("demo", other, state=True)


def test_removal_keeps_state_unless_it_is_told():
    found = removal("demo", there_of(want()), state=False)
    assert [c.module for c in found.stopping] == list(reversed(NAMES))
    assert {name.rpartition("-")[2] for name in found.kept} == {"state", "output"}
    assert len(found.kept) == 6
    everything = removal("demo", there_of(want()), state=True)
    assert len(everything.old_volumes) == len(want().volumes)
    assert everything.kept == ()


def test_a_bind_takes_the_place_of_a_copy():
    site, options = deployed(DEMO), Options(binds={"models/parts": "/data/parts"})
    its = wanted(site, dict.fromkeys(copies(site, options), "0"), options)
    [inference] = [c for c in its.containers if c.module == "inference"]
    bound = [m for m in inference.config["HostConfig"]["Mounts"] if m["Type"] == "bind"]
    assert bound == [{"Type": "bind", "Source": "/data/parts", "Target": "/models/parts", "ReadOnly": True}]
    assert not [v for v in its.volumes if v.kind == "models"]


def test_a_bind_of_what_the_site_has_not_is_an_error():
    with pytest.raises(ConfigError, match="expected one of models/parts, got inputs/x"):
        copies(deployed(DEMO), Options(binds={"inputs/x": "/data"}))


def test_some_of_a_folder_cannot_be_bound_without_the_rest():
    text = DEMO.replace(CAMERA, "{kind: file, path: /a/one.mp4}").replace(
        "models:", "  - {name: two, source: {kind: file, path: /a/two.mp4}}\nmodels:", 1
    )
    its = deployed(text)
    with pytest.raises(ConfigError, match="all or none of capture's inputs, got none of inputs/two"):
        copies(its, Options(binds={"inputs/one.mp4": "/data/one.mp4"}))


def test_missing_images_are_named_with_how_to_get_them():
    assert missing_images(want(), there_of(want())) == []
    assert (
        'image skerry-broker:0.1.0: expected it on the engine, got none (make images ARGS="--only broker")'
        in missing_images(want(), There())
    )


def test_containers_are_confined():
    for container in want().containers:
        host = container.config["HostConfig"]
        assert host["ReadonlyRootfs"] is True
        assert host["CapDrop"] == ["ALL"]
        assert host["Memory"] == host["MemorySwap"] > 0
        assert container.config["User"] == f"{USER}:{USER}"
        read_only = {m["Target"]: m["ReadOnly"] for m in host["Mounts"]}
        assert read_only["/run/certificates"] is True
        assert read_only.get("/models", True) is True


def test_the_same_site_gives_the_same_specifications():
    again = wanted(
        its := deployed(DEMO),
        dict.fromkeys(copies(its), "0" * 12),
    )
    assert [c.spec for c in again.containers] == [c.spec for c in want().containers]


def test_a_label_that_somebody_changed_is_a_reason_to_replace():
    there = there_of(want())
    first = replace(there.containers[0], labels={SITE_LABEL: "demo"})
    found = changes(want(), replace(there, containers=(first, *there.containers[1:])))
    assert done(found) == {"broker": "replace"}
    assert "no longer what skerry wrote" in found.containers[0].why[0]


def test_accelerators_and_cameras_of_the_machine_are_asked_for():
    text = DEMO.replace(CAMERA, "{kind: v4l2, device: /dev/video0, width: 640, height: 480}").replace(
        "models/parts ", "models/parts\n    device: gpu "
    )
    its = deployed(text)
    options = Options(render_gid=993)
    found = {c.module: c for c in wanted(its, dict.fromkeys(copies(its), "0"), options).containers}
    assert found["capture"].config["HostConfig"]["Devices"][0]["PathOnHost"] == "/dev/video0"
    assert found["capture"].config["HostConfig"]["GroupAdd"] == ["video"]
    assert found["inference"].config["HostConfig"]["GroupAdd"] == ["993"]


def test_no_difference_shows_a_login():
    there = there_of(want())
    spec = json.loads(want().containers[0].spec)
    spec[0]["Env"] = ["PROXY=http://me:hunter2@far.example"]
    labels = {**there.containers[0].labels, "skerry.made-from": json.dumps(spec), "skerry.digest": "old"}
    found = changes(
        want(),
        replace(there, containers=(replace(there.containers[0], labels=labels), *there.containers[1:])),
    )
    assert "hunter2" not in "\n".join(lines(found))


class Clock:
    """A time that goes on when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def waited(answers, seconds: float = 30.0) -> tuple[list[str], Clock]:
    clock, said = Clock(), []
    its = iter(answers)
    last = []

    def ask():
        nonlocal last
        last = next(its, last)
        return last

    wait(ask, said.append, seconds=seconds, now=clock, sleep=clock.sleep)
    return said, clock


def test_waiting_ends_when_everybody_is_healthy():
    starting, healthy = (Health(module="buffer", state=s) for s in ("starting", "healthy"))
    said, clock = waited([[starting], [starting], [healthy]])
    assert [line.split()[1] for line in said] == ["starting", "healthy"]
    assert clock.now == 2.0


def test_waiting_ends_with_its_time_and_says_who_is_not_well_and_why():
    ill = Health(module="buffer", state="unhealthy", said="no disk")
    with pytest.raises(Unavailable, match="buffer: expected it healthy within 30 s, got unhealthy: no disk"):
        waited([[ill, Health(module="uplink", state="healthy")]])


def test_one_that_falls_over_again_and_again_is_not_waited_for():
    answers = [[Health(module="buffer", state="starting", restarts=n, exit_code=78)] for n in range(9)]
    with pytest.raises(Unavailable, match="buffer: expected it healthy, got starting, exit code 78"):
        waited(answers, 86_400)


def test_restarts_of_long_ago_do_not_count():
    ill, well = (Health(module="buffer", state=s, restarts=7) for s in ("starting", "healthy"))
    assert waited([[ill], [well]])[1].now == 1.0


def test_one_that_is_gone_is_not_waited_for():
    with pytest.raises(Unavailable, match="got exited, exit code 1"):
        waited([[Health(module="buffer", state="exited", exit_code=1)]], 86_400)
