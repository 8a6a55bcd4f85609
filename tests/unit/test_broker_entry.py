"""The entry point of the broker's image: which configuration Mosquitto is started with."""

import subprocess
import sys
from pathlib import Path

from skerry import broker_entry
from skerry.broker_entry import CONFIGURATION, RULES, configuration


def test_texts_of_the_environment_become_files_that_only_the_broker_reads(tmp_path):
    folder = tmp_path / "made" / "here"
    told = {CONFIGURATION: "listener 8883\n", RULES: "user capture\ntopic write skerry/s/frames/belt\n"}
    assert configuration(told, folder) == str(folder / "mosquitto.conf")
    assert (folder / "mosquitto.conf").read_text() == told[CONFIGURATION]
    assert (folder / "acl").read_text() == told[RULES]
    modes = {path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert (folder.stat().st_mode & 0o777, modes) == (0o700, {0o600})


def test_a_restart_in_the_same_container_takes_the_new_texts(tmp_path):
    for port in ("1", "2"):
        configuration({CONFIGURATION: f"listener {port}\n"}, tmp_path)
        assert (tmp_path / "mosquitto.conf").read_text() == f"listener {port}\n"


def test_without_texts_the_mounted_configuration_counts(tmp_path):
    assert configuration({RULES: "user capture\n"}, tmp_path) == "/etc/skerry/mosquitto.conf"
    assert not list(tmp_path.iterdir())


def test_it_stands_alone_and_says_what_is_missing():
    """Run as in the image: no module of ours beside it, and here no Mosquitto at that path."""
    script = (
        Path(broker_entry.__file__).read_text(encoding="utf-8").replace("/usr/sbin/mosquitto", "/nowhere/m")
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], env={}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 69
    assert done.stderr == "broker: /nowhere/m: No such file or directory\n"
