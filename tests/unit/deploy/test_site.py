"""The site file: every error at once, each with its path, and what a good one turns into."""

from pathlib import Path

import pytest

from needs import ROOT
from skerry.buffer.settings import BufferSettings, LaneSettings
from skerry.deploy.plan import FLOW, Place, plan
from skerry.deploy.site import SiteBuffer, load_site
from skerry.errors import ConfigError
from skerry.settings import BusSettings
from skerry.uplink.settings import HttpLink, UplinkSettings

PACKAGE = ROOT / "models" / "parts"

GOOD = f"""
site: test
cameras:
  - name: belt
    source: {{kind: synthetic}}
models:
  - package: {PACKAGE}
rules:
  - {{name: counted, kind: line, camera: belt, line: [[0.5, 0], [0.5, 1]], labels: [bolt]}}
"""


FPS = "$.cameras[0].fps: expected a number above 0 and at most 1000"
SCENE, LINE = "{kind: synthetic}", "[[0.5, 0], [0.5, 1]]"


def write(folder: Path, text: str) -> Path:
    path = folder / "site.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problems_of(folder: Path, text: str, **arguments: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_site(write(folder, text), arguments)
    return list(caught.value.problems)


def test_a_good_site_is_read(tmp_path: Path) -> None:
    site = load_site(write(tmp_path, GOOD))
    assert [c.name for c in site.cameras] == ["belt"]
    assert [r.name for r in site.rules] == ["counted"]


@pytest.mark.parametrize("name", ["demo.yaml"])
def test_the_bundled_site_has_no_errors(name: str) -> None:
    assert load_site(ROOT / "sites" / name).cameras


def test_every_error_is_reported_at_once(tmp_path: Path) -> None:
    found = problems_of(
        tmp_path,
        """
site: "a/b"
cameras:
  - {name: belt, source: {kind: synthetic, fps: fast}, fsp: 5}
  - {name: gate, source: {kind: rtps, url: "rtsp://host/x"}, fps: -5}
models: []
rules: [{name: r, kind: line}]
""",
    )
    assert [line.split(": ")[1] for line in found] == [
        "$.site",
        "$.cameras[0].fsp",
        "$.cameras[0].source.fps",
        "$.cameras[1].source.kind",
        "$.cameras[1].fps",
        "$.models",
        "$.rules[0].camera",
        "$.rules[0].line",
    ]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("name: belt", "nmae: belt"), "$.cameras[0].nmae: unknown key (did you mean 'name'?)"),
        ((SCENE, SCENE + "\n    fps: -5"), f"{FPS}, got -5"),
        ((SCENE, SCENE + "\n    fps: often"), f'{FPS}, got "often"'),
        ((SCENE, "{kind: file, path: nowhere.mp4}"), "nowhere.mp4"),
        (("camera: belt", "camera: bolt"), "unknown camera 'bolt' (did you mean 'belt'?)"),
        (("labels: [bolt]", "labels: [blot]"), "'blot'"),
        ((LINE, "[[0.5, 0], [0.5, 1.2]]"), "$.rules[0].line[1][1]: expected a number from 0 to 1, got 1.2"),
        ((LINE, "[[0.5, 0], [0.5, 0]]"), "$.rules[0].line"),
        (("kind: line", "kind: lien"), "$.rules[0].kind: expected one of"),
        (("site: test", "site: te st"), "$.site: expected a name"),
        (("site: test", "site: [test"), "expected YAML"),
        ((str(PACKAGE), "nowhere"), "$.models[0].package"),
        (("rules:", "uplink: {limts: {}}\nrules:"), "$.uplink.limts: unknown key (did you mean 'limits'?)"),
        (
            ("rules:", "uplink: {live_share: 30}\nrules:"),
            "$.uplink.live_share: expected a number from 0.05 to 0.95, got 30",
        ),
        (
            ("rules:", "uplink: {schedules: {bulk: [22-6]}}\nrules:"),
            "$.uplink: schedules.bulk[0]: expected hours like 22:00-06:00, got '22-6'",
        ),
        (("rules:", "uplink: {limits: {preset: aws}}\nrules:"), "$.uplink.limits.preset: expected one of"),
        (("rules:", "buffer: {key_file: no.key}\nrules:"), "no.key: cannot read it: No such file"),
        (
            ("rules:", "buffer: {old_key_files: [site.yaml]}\nrules:"),
            "site.yaml: expected 32 bytes or 64 hexadecimal digits, got",
        ),
        (
            ("rules:", "buffer: {lanes: {bulk: {limit_bytes: 300000000}}}\nrules:"),
            "$.buffer.lanes.bulk.limit_bytes: expected at most the 268435456 of $.buffer.bytes, got 3",
        ),
        (("rules:", "buffer: {lanes: {bulky: {}}}\nrules:"), "$.buffer.lanes"),
    ],
)  # fmt: skip
def test_a_wrong_site_says_what_is_wrong_and_where(
    tmp_path: Path, change: tuple[str, str], expected: str
) -> None:
    (line, *_) = problems_of(tmp_path, GOOD.replace(*change))
    assert line.startswith("site.yaml: ")
    assert expected in line


def test_a_zone_outside_the_picture_is_refused(tmp_path: Path) -> None:
    rule = "{name: z, kind: count, camera: belt, above: 1, zone: [[0, 0], [1.5, 0], [1, 1]]}"
    found = problems_of(tmp_path, GOOD + f"  - {rule}\n")
    assert found == ["site.yaml: $.rules[1].zone[1][0]: expected a number from 0 to 1, got 1.5"]


def test_two_cameras_of_one_name_are_refused(tmp_path: Path) -> None:
    twice = GOOD.replace("models:", "  - {name: belt, source: {kind: synthetic}}\nmodels:")
    assert (
        "$.cameras[1].name: expected a name of its own, got 'belt' again" in problems_of(tmp_path, twice)[0]
    )


def test_two_rules_of_one_name_are_refused(tmp_path: Path) -> None:
    rule = "{name: counted, kind: presence, camera: belt}"
    assert "$.rules[1].name" in problems_of(tmp_path, GOOD + f"  - {rule}\n")[0]


def test_a_camera_without_a_model_is_refused(tmp_path: Path) -> None:
    text = GOOD.replace("models:", "  - {name: gate, source: {kind: synthetic}}\nmodels:")
    text = text.replace(f"package: {PACKAGE}", f"{{package: {PACKAGE}, cameras: [belt]}}")
    assert "expected a model for every camera, 'gate' has none" in problems_of(tmp_path, text)[0]


def test_a_camera_that_two_capture_modules_open_is_refused(tmp_path: Path) -> None:
    text = GOOD + "captures: {hall: [belt], yard: [belt, gone]}\n"
    found = problems_of(tmp_path, text)
    assert any("$.captures.yard[0]: 'belt' is opened by hall already" in line for line in found)
    assert any("$.captures.yard[1]: no camera 'gone'" in line for line in found)


def test_a_missing_site_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone.yaml: cannot read the site file: No such file"):
        load_site(tmp_path / "gone.yaml")


class TestArguments:
    TEXT = GOOD.replace("seed: 1", "").replace(
        "site: test", "site: test\narguments: {package: {help: a package}}"
    )
    TEXT = TEXT.replace(f"package: {PACKAGE}", "package: ${package}")

    def test_an_argument_is_put_in_its_place(self, tmp_path: Path) -> None:
        site = load_site(write(tmp_path, self.TEXT), {"package": str(PACKAGE)})
        assert site.models[0].package == str(PACKAGE)

    def test_a_missing_argument_is_asked_for(self, tmp_path: Path) -> None:
        assert any(
            "expected --set package=VALUE, got nothing (a package)" in p
            for p in problems_of(tmp_path, self.TEXT)
        )

    def test_an_unknown_argument_is_refused(self, tmp_path: Path) -> None:
        found = problems_of(tmp_path, self.TEXT, package=str(PACKAGE), vidoe="x")
        assert found == ["site.yaml: --set vidoe: unknown argument (known: package)"]

    def test_a_reference_to_an_undeclared_argument_is_refused(self, tmp_path: Path) -> None:
        found = problems_of(tmp_path, GOOD.replace(str(PACKAGE), "${pakage}"))
        assert "$.models[0].package: expected a declared argument, got ${pakage}" in found[0]


class TestPlan:
    PLACE = Place(state="/state", frames="/frames", output="/out", bus=BusSettings(port=1))

    def test_every_kind_of_module_is_planned_in_the_order_of_the_flow(self, tmp_path: Path) -> None:
        parts = plan(load_site(write(tmp_path, GOOD)), self.PLACE).parts
        assert tuple(p.kind for p in parts) == FLOW

    def test_each_part_parses_its_own_settings(self, tmp_path: Path) -> None:
        from skerry.settings import parse_json

        for part in plan(load_site(write(tmp_path, GOOD)), self.PLACE).parts:
            assert parse_json(type(part.settings), part.settings_json, part.module) == part.settings

    def test_the_uplink_is_told_how_to_send(self, tmp_path: Path) -> None:
        text = (
            GOOD
            + """
link: {kind: mqtt, host: far, format: batch, compression: gzip}
uplink:
  limits: {preset: aws-iot-core, messages_per_s: 20}
  schedules: {bulk: ["22:00-06:00"]}
  timezone: Europe/Oslo
"""
        )
        (uplink,) = plan(load_site(write(tmp_path, text)), self.PLACE).of("uplink")
        assert isinstance(uplink.settings, UplinkSettings)
        sending = uplink.settings.sending
        assert (sending.limits.all.messages_per_s, sending.limits.all.message_bytes) == (20, 128 * 1024)
        assert (sending.schedules, sending.timezone) == ({"bulk": ("22:00-06:00",)}, "Europe/Oslo")

    def test_the_files_of_an_http_link_are_found_beside_the_site_file(self, tmp_path: Path) -> None:
        text = (
            GOOD
            + """
link:
  kind: http
  url: https://far/in
  token_file: secrets/token
  header_files: {X-Api-Key: secrets/key}
  tls: {ca: ca.pem, certificate: /etc/client.pem, key: secrets/client.key}
"""
        )
        (uplink,) = plan(load_site(write(tmp_path, text)), self.PLACE).of("uplink")
        assert isinstance(uplink.settings, UplinkSettings)
        link = uplink.settings.link
        assert isinstance(link, HttpLink)
        assert link.token_file == str(tmp_path / "secrets/token")
        assert link.header_files == {"X-Api-Key": str(tmp_path / "secrets/key")}
        assert link.tls is not None
        assert (link.tls.ca, link.tls.certificate) == (str(tmp_path / "ca.pem"), "/etc/client.pem")
        assert link.tls.key == str(tmp_path / "secrets/client.key")

    def test_the_buffer_is_told_what_it_may_keep_and_how(self, tmp_path: Path) -> None:
        (tmp_path / "secrets").mkdir()
        for name in ("new", "old"):
            (tmp_path / "secrets" / name).write_text("ab" * 32)
        text = (
            GOOD
            + """
buffer:
  bytes: 100000000
  lanes: {alarm: {when_full: block}, bulk: {limit_bytes: 20000000}}
  compression: zstd
  key_file: secrets/new
  old_key_files: [secrets/old]
  clock: trusted
  linger_ms: 20
"""
        )
        (buffer,) = plan(load_site(write(tmp_path, text)), self.PLACE).of("buffer")
        settings = buffer.settings
        assert isinstance(settings, BufferSettings)
        assert (settings.limit_bytes, settings.compression, settings.clock) == (
            100_000_000,
            "zstd",
            "trusted",
        )
        assert settings.lanes == {
            "alarm": LaneSettings(when_full="block"), "bulk": LaneSettings(limit_bytes=20_000_000)
        }  # fmt: skip
        assert (settings.key_file, settings.old_key_files, settings.linger_ms) == (
            str(tmp_path / "secrets" / "new"),
            (str(tmp_path / "secrets" / "old"),),
            20,
        )

    def test_without_a_word_on_it_the_buffer_has_its_own_defaults(self, tmp_path: Path) -> None:
        (buffer,) = plan(load_site(write(tmp_path, GOOD)), self.PLACE).of("buffer")
        own = BufferSettings(site="test", module="buffer", state="")
        names = {name for name in SiteBuffer.__struct_fields__ if name != "bytes"} | {"limit_bytes"}
        assert {n: getattr(buffer.settings, n) for n in names} == {n: getattr(own, n) for n in names}

    def test_cameras_are_spread_over_capture_modules(self, tmp_path: Path) -> None:
        text = GOOD.replace("models:", "  - {name: gate, source: {kind: synthetic}}\nmodels:")
        text += "captures: {hall: [belt], yard: [gate]}\n"
        parts = plan(load_site(write(tmp_path, text)), self.PLACE).of("capture")
        assert {p.module: [c.name for c in p.settings.cameras] for p in parts} == {
            "hall": ["belt"],
            "yard": ["gate"],
        }

    def test_a_model_without_cameras_takes_the_rest(self, tmp_path: Path) -> None:
        (inference,) = plan(load_site(write(tmp_path, GOOD)), self.PLACE).of("inference")
        assert inference.settings.models[0].cameras == ("belt",)

    def test_no_part_outlives_five_seconds_of_draining(self, tmp_path: Path) -> None:
        parts = plan(load_site(write(tmp_path, GOOD)), self.PLACE).parts
        assert sum(p.settings.grace_s for p in parts) < 5


def test_a_site_for_another_machine_may_name_what_is_not_here(tmp_path: Path) -> None:
    text = GOOD.replace("{kind: synthetic}", "{kind: v4l2, device: /dev/video99}")
    path = write(tmp_path, text + "buffer: {key_file: no-such.key}\n")
    with pytest.raises(ConfigError, match=r"/dev/video99.*"):
        load_site(path)
    assert load_site(path, here=False).buffer.key_file.endswith("no-such.key")


def test_a_site_for_another_machine_still_has_a_package_and_limits(tmp_path: Path) -> None:
    text = GOOD.replace(f"{PACKAGE}", "nowhere") + "buffer: {lanes: {alarm: {limit_bytes: 999999999999}}}\n"
    with pytest.raises(ConfigError) as caught:
        load_site(write(tmp_path, text), here=False)
    assert [p.split(": ")[1] for p in caught.value.problems] == [
        "$.models[0].package",
        "$.buffer.lanes.alarm.limit_bytes",
    ]


def test_a_text_that_no_file_could_hold_is_refused(tmp_path: Path) -> None:
    text = GOOD.replace("site: test", 'site: test\nlink: {kind: mqtt, host: far, user: "\\ud83e"}')
    assert problems_of(tmp_path, text) == [
        "site.yaml: $.link.user: expected text, got half of a surrogate pair (write the character itself)"
    ]
