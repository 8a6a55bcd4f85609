"""What reaches a block device of one's own, as the kernel counts it."""

import os
import subprocess
from pathlib import Path

import pytest

import needs
from skerry.cli.bench_appends import PAYLOAD, RawFile, weigh
from skerry.cli.device import LoopDisk

SIZE = 32 * 1024 * 1024
MIB = 1024 * 1024


@needs.loop_devices
class TestLoopDisk:
    def test_every_byte_that_is_written_is_counted_and_only_once(self, tmp_path: Path) -> None:
        with LoopDisk(tmp_path, SIZE) as disk:
            before = disk.counters()
            (disk.root / "file").write_bytes(os.urandom(4 * MIB))
            written = disk.counters().since(before).bytes_written
        assert 4 * MIB <= written < 4.5 * MIB

    def test_each_fdatasync_over_blocks_on_disk_is_one_flush(self, tmp_path: Path) -> None:
        with LoopDisk(tmp_path, SIZE) as disk:
            log = RawFile(disk.root / "log")
            (done,) = weigh(disk, log, batch=1, passes=(50,), seconds=30)
            log.close()
        assert done.appends == 50
        assert done.payload_bytes == 50 * PAYLOAD
        assert done.flushes == 50

    def test_what_is_never_flushed_shows_no_flush(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with LoopDisk(tmp_path, SIZE) as disk:
            log = RawFile(disk.root / "log")
            monkeypatch.setattr(os, "fdatasync", lambda _file: None)
            (done,) = weigh(disk, log, batch=1, passes=(50,), seconds=30)
            log.close()
        assert done.flushes < 5

    def test_written_through_each_write_is_on_disk_without_being_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with LoopDisk(tmp_path, SIZE) as disk:
            disk.write_through()
            log = RawFile(disk.root / "log")
            monkeypatch.setattr(os, "fdatasync", lambda _file: None)
            (done,) = weigh(disk, log, batch=1, passes=(50,), seconds=30)
            log.close()
        assert done.flushes >= 50

    def test_it_leaves_no_mount_no_loop_device_and_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(KeyError), LoopDisk(tmp_path, SIZE):
            raise KeyError
        assert list(tmp_path.iterdir()) == []
        used = subprocess.run(["losetup", "--all"], capture_output=True, text=True, check=True).stdout
        assert str(tmp_path) not in used
        assert str(tmp_path) not in Path("/proc/mounts").read_text()

    def test_half_a_disk_is_taken_down_again(self, tmp_path: Path) -> None:
        (tmp_path / "disk").mkdir()  # in the way of the mount point
        with pytest.raises(FileExistsError), LoopDisk(tmp_path, SIZE):
            pass
        used = subprocess.run(["losetup", "--all"], capture_output=True, text=True, check=True).stdout
        assert str(tmp_path) not in used
