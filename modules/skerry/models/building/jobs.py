"""What a build does in processes of their own: `python -m skerry.models.building.jobs`, a job on stdin.

So a runtime that crashes refuses an artifact and does not end the build, an older processor can be emulated,
and a converter that numbers what it makes starts at the same number each time.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np

from skerry.errors import PackageError, SkerryError
from skerry.inference.runtimes import SessionFailed, first_line
from skerry.models import package as packages
from skerry.models.datasets import Dataset
from skerry.models.manifest import REFERENCE, Sighting

_TIMEOUT_S = 3600.0


class Judge(msgspec.Struct, frozen=True, kw_only=True, tag="judge"):
    """How good a form is on one runtime, and what it sees in the golden pictures."""

    package: str
    form: str = REFERENCE
    runtime: str
    folder: str
    pictures: tuple[str, ...]
    """Of the folder's labelled ones, those to judge by."""
    golden: tuple[str, ...] = ()


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it; `error` says why nothing did."""

    error: str = ""
    figures: dict[str, object] = {}
    """See `skerry.models.judging.figures`."""
    golden: tuple[tuple[Sighting, ...], ...] = ()
    """Of each golden picture, at the package's own threshold."""


class Convert(msgspec.Struct, frozen=True, kw_only=True, tag="convert"):
    """OpenVINO's format of an ONNX file; quantised by NNCF on the way where there are `feeds`."""

    model: str
    out: str
    """The .xml; the .bin goes beside it."""
    half: bool
    """Weights in 16 bits."""
    feeds: str = ""
    """Inputs to calibrate on, .npz of `INPUT/NUMBER`."""


class Deviate(msgspec.Struct, frozen=True, kw_only=True, tag="deviate"):
    """How far integer kernels are from exact arithmetic, see `skerry.models.quantisation.deviation`."""

    model: str
    feeds: str


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """What the others answer."""

    error: str = ""
    value: float = 0.0


Job = Judge | Convert | Deviate


def judge(job: Judge, emulator: Sequence[str] = ()) -> Judged:
    """Judge in a process of its own; never raises for what the runtime does.

    Args:
        job: what.
        emulator: a command's beginning, for another processor.
    """
    out, error = _call(job, emulator)
    if error:
        return Judged(error=error)
    return msgspec.json.decode(out, type=Judged)


def convert(job: Convert) -> str:
    """Convert in a process of its own; why it failed, empty where it did not."""
    out, error = _call(job, ())
    return error or msgspec.json.decode(out, type=Said).error


def deviation(job: Deviate, emulator: Sequence[str] = ()) -> Said:
    """Run in a process of its own, on another processor if there is an emulator."""
    out, error = _call(job, emulator)
    return Said(error=error) if error else msgspec.json.decode(out, type=Said)


def write_feeds(path: Path, feeds: Sequence[dict[str, np.ndarray]]) -> None:
    """As `Convert` and `Deviate` read them."""
    named = {f"{name}/{n:05}": array for n, each in enumerate(feeds) for name, array in each.items()}
    np.savez(path, **named)  # type: ignore[arg-type] # names of inputs are no keywords of savez


def read_feeds(path: Path) -> list[dict[str, np.ndarray]]:
    """What `write_feeds` wrote."""
    found: dict[str, dict[str, np.ndarray]] = {}
    with np.load(path) as arrays:
        for key in sorted(arrays.files, key=lambda key: key.rpartition("/")[2]):
            name, _, number = key.rpartition("/")
            found.setdefault(number, {})[name] = arrays[key]
    return list(found.values())


def _call(job: Job, emulator: Sequence[str]) -> tuple[bytes, str]:
    """The last line of what a child printed, or why there is none."""
    environment = {**os.environ, "PYTHONHASHSEED": "0", "ORT_DISABLE_TELEMETRY": "1"}
    try:
        done = subprocess.run(
            [*emulator, sys.executable, "-m", "skerry.models.building.jobs"], env=environment,
            input=msgspec.json.encode(job), capture_output=True, timeout=_TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return b"", f"no result in {_TIMEOUT_S:g} s"
    lines = done.stdout.splitlines()
    if done.returncode == 0 and lines:
        return lines[-1], ""
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return b"", f"the process ended with {done.returncode}: {said[-1][:200] if said else 'no message'}"


def main() -> int:
    """Print the answer to a job as one line of JSON."""
    job: Job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    try:
        answer = _do(job)
    except (SkerryError, SessionFailed) as error:
        answer = Judged(error=first_line(error)) if isinstance(job, Judge) else Said(error=first_line(error))
    sys.stdout.write("\n" + msgspec.json.encode(answer).decode() + "\n")
    return 0


def _do(job: Job) -> Judged | Said:
    match job:
        case Judge():
            return _judge(job)
        case Convert():
            return _convert(job)
        case Deviate():
            quantisation = import_module("skerry.models.quantisation")
            content = Path(job.model).read_bytes()
            return Said(value=quantisation.deviation(content, read_feeds(Path(job.feeds))))


def _judge(job: Judge) -> Judged:
    judging = import_module("skerry.models.judging")
    datasets = import_module("skerry.models.datasets")
    settings = import_module("skerry.inference.settings")
    package = packages.load(Path(job.package), only=job.form)
    whole = datasets.read(Path(job.folder))
    wanted = set(job.pictures)
    dataset = Dataset(whole.form, tuple(each for each in whole.pictures if str(each.path) in wanted))
    # One thread: sums come out the same, however many cores there are.
    with judging.opened(job.runtime, package, form=job.form, threads=1) as model:
        figures = judging.figures(model, package, dataset)
        model.adjust(settings.ModelUse(package=job.package))
        pictures = (judging.read_picture(Path(path)) for path in job.golden)
        golden = tuple(judging.sightings(model, pixels) for pixels in pictures)
    return Judged(figures=figures, golden=golden)


def _convert(job: Convert) -> Said:
    runtime = import_module("skerry.inference.runtimes.openvino")
    ov = runtime.ov
    try:
        model = ov.Core().read_model(job.model)
        if job.feeds:
            model = _nncf(model, read_feeds(Path(job.feeds)))
        ov.save_model(model, job.out, compress_to_fp16=job.half)
    except Exception as error:  # OpenVINO's and NNCF's errors have no common base
        raise PackageError(f"openvino cannot convert it: {first_line(error)}") from error
    return Said()


def _nncf(model: object, feeds: Sequence[dict[str, np.ndarray]]) -> object:
    nncf = import_module("nncf")
    return nncf.quantize(model, nncf.Dataset(list(feeds)), subset_size=len(feeds))


def nncf_version() -> str:
    """Of the NNCF that is installed; empty where none is."""
    try:
        return version("nncf")
    except import_module("importlib.metadata").PackageNotFoundError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
