"""`skerry run` as an operator meets it: signals, leftovers, wrong surroundings."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import needs
from site_run import leftovers, site_run

SITE = """
site: small
cameras: [{name: belt, source: {kind: synthetic, fps: 15}}]
models: [{package: %s, runtime: onnxruntime}]
rules: [{name: crossed, kind: line, camera: belt, line: [[0.5, 0], [0.5, 1]]}]
""" % (needs.ROOT / "models" / "parts")  # fmt: skip


def write(folder: Path, text: str = SITE) -> Path:
    path = folder / "site.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def skerry(*arguments: str, within_s: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "skerry", *arguments],
        capture_output=True,
        text=True,
        timeout=within_s,
        check=False,
    )


def frame_stores(site: str) -> set[str]:
    return {p.name for p in Path("/dev/shm").glob(f"skerry-{site}-*")}


@needs.mosquitto
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_drains_and_leaves_nothing_within_five_seconds(
    tmp_path: Path, number: signal.Signals
) -> None:
    site = f"signalled-{os.getpid()}-{number}"  # other runs of the small site may be under way
    text = SITE.replace("site: small", f"site: {site}")
    with site_run(tmp_path / "out", "run", str(write(tmp_path, text))) as run:
        run.wait_for_events(1)
        assert frame_stores(site)
        began = time.monotonic()
        code, result = run.finish(number=number, within_s=10)
        assert time.monotonic() - began < 5
        assert code == 0, run.stderr()
        assert result["ledger_balanced"]
        assert result["events"]["waiting"] == 0
    assert leftovers(run.out) == []
    assert frame_stores(site) == set()


@needs.mosquitto
def test_events_that_the_link_could_not_take_are_delivered_by_the_next_run(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    down = SITE + f"link: {{kind: mqtt, host: 127.0.0.1, port: {port}}}\n"
    out = tmp_path / "out"
    with site_run(out, "run", str(write(tmp_path, down)), "--seconds", "12") as run:
        code, first = run.finish(within_s=40)
        assert code == 0, run.stderr()
        assert first["events"]["waiting"] == first["events"]["accepted"] > 0
    with site_run(out, "run", str(write(tmp_path, SITE)), "--seconds", "4") as run:
        code, second = run.finish(within_s=40)
        assert code == 0, run.stderr()
        assert second["events"]["carried_over"] == first["events"]["waiting"]
        assert second["events"]["waiting"] == 0
        assert len(run.delivered()) == first["events"]["accepted"] + second["events"]["accepted"]


@needs.mosquitto
def test_two_cameras_in_two_capture_modules_are_each_accounted_for(tmp_path: Path) -> None:
    text = f"""
site: small
cameras:
  - {{name: hall, source: {{kind: synthetic, seed: 1, fps: 10}}}}
  - {{name: yard, source: {{kind: synthetic, seed: 2, fps: 5}}, rotate: 180}}
captures: {{capture-hall: [hall], capture-yard: [yard]}}
models: [{{package: {needs.ROOT / "models" / "parts"}, runtime: onnxruntime}}]
rules:
  - {{name: in-hall, kind: presence, camera: hall}}
  - {{name: in-yard, kind: presence, camera: yard}}
"""
    with site_run(tmp_path / "out", "run", str(write(tmp_path, text))) as run:
        run.wait_for_events(2)
        code, result = run.finish(number=signal.SIGTERM)
        assert code == 0, run.stderr()
        assert result["ledger_balanced"]
        assert all(result["cameras"][name]["inferred"] > 0 for name in ("hall", "yard"))
        assert {"capture-hall", "capture-yard"} <= set(result["memory_mb"])
        assert {e["data"]["camera"] for e in run.delivered()} == {"hall", "yard"}


class TestWrongSurroundings:
    def test_an_unknown_package_is_a_configuration_error(self, tmp_path: Path) -> None:
        done = skerry("check", str(write(tmp_path, SITE.replace("parts", "gone"))))
        assert done.returncode == 78
        assert "site.yaml: $.models[0].package" in done.stderr

    def test_a_port_in_use_is_named(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            done = skerry(
                "run", str(write(tmp_path, SITE + f"bus: {{port: {port}}}\n")), "--out", str(tmp_path / "o")
            )
        assert done.returncode in (69, 78)
        assert str(port) in done.stderr

    @pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/version").exists(), reason="needs /proc")
    def test_an_unwritable_output_folder_is_named(self, tmp_path: Path) -> None:
        done = skerry("run", str(write(tmp_path)), "--out", "/proc/skerry-out")
        assert done.returncode == 69
        assert "/proc/skerry-out: cannot write the output folder" in done.stderr

    @needs.mosquitto
    def test_two_runs_of_one_folder_are_refused(self, tmp_path: Path) -> None:
        with site_run(tmp_path / "out", "run", str(write(tmp_path))) as run:
            run.child("capture")
            done = skerry("run", str(write(tmp_path)), "--out", str(tmp_path / "out"))
            assert done.returncode == 69
            assert "another run is using this folder" in done.stderr
            run.finish(number=signal.SIGTERM)

    @needs.mosquitto
    @needs.root
    def test_a_frame_store_that_is_too_small_is_a_clear_error_at_start(self, tmp_path: Path) -> None:
        small = tmp_path / "small"
        small.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small)], check=True)
        try:
            text = SITE + f"frames: {{folder: {small}}}\n"
            done = skerry("run", str(write(tmp_path, text)), "--out", str(tmp_path / "out"))
        finally:
            subprocess.run(["umount", str(small)], check=True)
        assert done.returncode in (69, 78)
        assert str(small) in done.stderr
        assert "bytes" in done.stderr

    def test_a_missing_value_is_explained_by_usage(self) -> None:
        done = skerry("run", "x.yaml", "--seconds", "-1")
        assert done.returncode == 2
        assert "expected a number above 0, got '-1'" in done.stderr


@needs.mosquitto
@needs.data
def test_a_video_file_is_read_to_its_end_and_the_run_ends_by_itself(tmp_path: Path) -> None:
    text = SITE.replace(
        "{kind: synthetic, fps: 15}",
        f"{{kind: file, path: {needs.DATA / 'bottle-detection.mp4'}, pace: fast}}",
    )
    with site_run(tmp_path / "out", "run", str(write(tmp_path, text))) as run:
        code, result = run.finish(within_s=100)
        assert code == 0, run.stderr()
        assert result["cameras"]["belt"]["captured"] == result["cameras"]["belt"]["inferred"] == 1189
