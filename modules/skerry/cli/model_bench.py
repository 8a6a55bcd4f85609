"""`skerry model bench`: what a package costs on this machine, judged by the budget of a class of devices."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from skerry import __version__, durable
from skerry.deploy.devices import DEVICES, Device
from skerry.errors import ConfigError, PackageError, Unavailable
from skerry.inference.settings import DEVICES as RUNTIME_DEVICES
from skerry.inference.settings import ModelUse
from skerry.models import layout, package
from skerry.models.benching import machine, statement
from skerry.models.benching.percentiles import least_samples
from skerry.models.benching.statement import Environment, Figures, Judgement, Latency, Measured, Statement

if TYPE_CHECKING:
    from skerry.cli.bench_frames import Run, Say, Setup

T = TypeVar("T", int, float)

_FPS = 15.0
"""Of a camera, where no class says."""
_CAMERAS = 2
_PICTURES = 60
_TITLES = {
    "p95_ms": ("frame to event, p95", "ms"), "frames_per_s": ("throughput", "frames/s"),
    "memory_mib": ("memory of inference", "MiB"), "start_s": ("start", "s"),
    "image_mb": ("image", "MB"), "power_w": ("power", "W"),
}  # fmt: skip


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parser of `skerry model bench`."""
    parser = commands.add_parser(
        "bench",
        help="what a package costs here, against the budget of a class of devices",
        description="Measure a package on this machine, from a camera's frame to its event, through real "
        "processes and a broker, after MLPerf's rules for single-stream and multi-stream; judge it by the "
        "budget of a class of devices, and attest it. Exit code 65 with --require when the budget is missed.",
        epilog="example: skerry model bench build/layout --class amd64-gateway --out gateway.json",
    )
    parser.add_argument("package", type=Path, metavar="PACKAGE", help="folder of the package, or of a layout")
    parser.add_argument(
        "--digest", metavar="HEX", help="which package of a layout with several; its first digits will do"
    )
    parser.add_argument(
        "--epoch", type=int, default=0, metavar="N",
        help="security epoch that a package's folder will be signed with: part of its digest (default 0)",
    )  # fmt: skip
    parser.add_argument(
        "--class", default="", metavar="CLASS", dest="device_class",
        help=f"class of this device ({', '.join(DEVICES)}), or a file of one of your own",
    )  # fmt: skip
    parser.add_argument(
        "--scenario", choices=statement.SCENARIOS, default=None,
        help="one camera, a frame at a time; or the class's cameras at once, in real time "
        "(default: multi-stream with a class, else single-stream)",
    )  # fmt: skip
    parser.add_argument(
        "--cameras", type=_within(1, 64), default=None, metavar="N", help="in place of the class's number"
    )
    parser.add_argument(
        "--fps", type=_within(0.1, 240.0), default=None, metavar="F", help="in place of the class's rate"
    )
    parser.add_argument(
        "--seconds", type=_within(1.0, 86_400.0), default=statement.LEAST_S, metavar="S",
        help="how long, without the warm-up (default %(default)g, as MLPerf wants it)",
    )  # fmt: skip
    parser.add_argument(
        "--video", type=Path, default=None, metavar="FILE",
        help="what every camera sees, again and again (default: the demo's belt, drawn)",
    )  # fmt: skip
    parser.add_argument(
        "--runtime", choices=("auto", *RUNTIME_DEVICES), default="auto", help="default: the fastest"
    )
    parser.add_argument("--device", default="cpu", metavar="NAME", help="what it runs on (default cpu)")
    parser.add_argument(
        "--threads", type=_within(1, 256), default=None, metavar="N", help="of one run on the CPU"
    )
    parser.add_argument(
        "--image-mb", type=_within(1, 1_000_000), default=None, metavar="N",
        help="size of the image that the device runs, as docker tells; judged as it is said",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=None, metavar="FILE", help="write an attestation, to be signed"
    )
    parser.add_argument("--require", action="store_true", help="exit with 65 when the budget is missed")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(func=run)


def _within(least: T, most: T) -> Callable[[str], T]:
    """A parser of numbers of that kind and size."""

    def parse(text: str) -> T:
        try:
            value = type(least)(text)
        except ValueError:
            value = None
        if value is None or not least <= value <= most:
            raise argparse.ArgumentTypeError(f"expected {least} to {most}, got {text}")
        return value

    return parse


def run(arguments: argparse.Namespace) -> int:
    """Measure; returns the exit code.

    Raises:
        ConfigError: the class, or what it is to run on, is wrong.
        PackageError: the package is bad; or, with --require, too expensive.
        Unavailable: a process cannot work, or too little was seen.
    """
    name, device = _class(arguments)
    try:
        bench: Any = import_module("skerry.cli.bench_frames")
        quiet: Any = import_module("skerry.cli.bench_bus").quiet
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"model bench needs {error.name} (pip install 'skerry[capture,inference,cli]')"
        ) from error
    with tempfile.TemporaryDirectory(prefix="skerry-") as room, _cores(device), quiet():
        folder, digest = _package(arguments, Path(room))
        loaded = package.load(folder)
        measured = _Bench(arguments, device, loaded, Path(room), bench).measure()
    title = loaded.title
    made = statement.make(title, digest, measured, name, device) if device is not None else None
    if arguments.out is not None and made is not None:
        try:
            durable.replace(arguments.out, statement.encode(made), 0o644)
        except OSError as error:
            raise Unavailable(f"{arguments.out}: {error.strerror}") from error
    if arguments.json:
        print(json.dumps(_report(title, digest, measured, made)))
    else:
        _print(title, digest, measured, made, arguments.out)
    if arguments.require and made is not None and made.predicate.verdict != "met":
        missed = [_judged(each) for each in made.predicate.judged if each.verdict == "missed"]
        raise PackageError("\n".join(f"{title}: class {name}: {text}" for text in missed))
    return 0


def _class(arguments: argparse.Namespace) -> tuple[str, Device | None]:
    """The class that it is judged by: its name, and what it is.

    Raises:
        ConfigError: there is none, it is not one that this machine can be, or it is needed.
    """
    said: str = arguments.device_class
    if not said:
        needs = [o for o, given in (("--out", arguments.out), ("--require", arguments.require)) if given]
        if needs:
            raise ConfigError(f"{needs[0]}: expected --class too, got none ({', '.join(DEVICES)})")
        return "", None
    if said in DEVICES:
        name, device = said, DEVICES[said]
    elif said.endswith(".yaml"):
        name, device = Path(said).stem, import_module("skerry.deploy.device_files").read_class(Path(said))
    else:
        raise ConfigError(f"--class: expected one of {', '.join(DEVICES)}, or FILE.yaml, got {said!r}")
    if machine.architecture() != device.architecture:
        raise ConfigError(
            f"--class: expected a class of {machine.architecture()}, which this machine is, got {name}, "
            f"of {device.architecture} (measure on such a device)"
        )
    return name, device


@contextmanager
def _cores(device: Device | None) -> Iterator[None]:
    """No more cores than the class has, for us and for whom we start."""
    before = os.sched_getaffinity(0)
    if device is not None and len(before) > device.cores:
        os.sched_setaffinity(0, set(sorted(before)[: device.cores]))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _package(arguments: argparse.Namespace, room: Path) -> tuple[Path, str]:
    """A folder to load, and the digest that the package has or will have."""
    if layout.is_layout(arguments.package):
        found = layout.verify(arguments.package, arguments.digest).listing.digest
        layout.unpack(arguments.package, room / "package", digest=found)
        return room / "package", f"sha256:{found}"
    packed = layout.pack(arguments.package, room / "layout", security_epoch=arguments.epoch)
    return arguments.package.resolve(), f"sha256:{packed.listing.digest}"


class _Bench:
    """All of one measurement, in its order."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        device: Device | None,
        loaded: package.Package,
        room: Path,
        bench: Any,
    ) -> None:
        self.package = loaded
        self._arguments = arguments
        self._bench = bench
        self._cache = room / "cache"
        self.scenario: statement.Scenario = arguments.scenario or (
            "multi-stream" if device is not None else "single-stream"
        )
        count, fps = (device.load.cameras, device.load.fps) if device is not None else (_CAMERAS, _FPS)
        several = self.scenario == "multi-stream"
        self._count: int = (arguments.cameras or count) if several else 1
        self._fps: float = arguments.fps or fps
        self._use = ModelUse(
            package=str(loaded.folder), runtime=arguments.runtime, device=arguments.device,
            threads=arguments.threads,
        )  # fmt: skip

    def measure(self) -> Measured:
        """Measure.

        Raises:
            Unavailable: a process cannot work, or too little was seen.
        """
        arguments = self._arguments
        seconds: float = arguments.seconds
        warm_up_s = min(max(0.5, seconds / 20), 30.0)
        cameras = tuple(f"camera-{n + 1}" for n in range(self._count))
        setup = self._bench.Setup(
            use=self._use, cameras=cameras, video=arguments.video.resolve() if arguments.video else None
        )
        before = self._environment_before()
        say = _say(time.monotonic())
        say(f"{self.package.title}: throughput, {self._count} cameras that wait for nothing but results")
        free = self._bench.Pace(fps=self._fps, waiting=4)
        part = min(max(1.0, seconds / 10), 60.0)
        fast: Run = self._bench.run(setup, free, self._cache, say, seconds=part, warm_up_s=warm_up_s, least=1)
        if not fast.window.frame_to_event_ms:
            raise Unavailable(
                f"{self.package.title}: expected frames that lead to events, got none: the model sees "
                "nothing that moves there (--video FILE with what it knows)"
            )
        several = self.scenario == "multi-stream"
        pace = self._bench.Pace(fps=self._fps, waiting=0 if several else 1)
        shown = f"{self._count} x {self._fps:g} frames/s" if several else "one frame at a time"
        say(f"{self.package.title}: {self.scenario}, {shown}, {seconds:g} s")
        main: Run = self._bench.run(
            setup, pace, self._cache, say, seconds=seconds, warm_up_s=warm_up_s, least=least_samples(0.95)
        )
        say(f"{self.package.title}: the model alone")
        alone, used = _alone(self._use, self._cache, setup, min(seconds, 10.0))
        return Measured(
            scenario=self.scenario,
            cameras=self._count,
            fps=self._fps if several else None,
            seconds=round(main.seconds, 1),
            figures=self._figures(fast, main, alone),
            environment=msgspec.structs.replace(before, **used),
            tool=f"skerry {__version__}",
            measured_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )

    def _figures(self, fast: Run, main: Run, alone: list[float]) -> Figures:
        return Figures(
            frame_to_event_ms=statement.latency(main.window.frame_to_event_ms, main.window.endless),
            unanswered=main.window.unanswered,
            p95_by_tenth_ms=main.window.p95_by_tenth_ms,
            load_frames_per_s=round(main.window.answered_per_s, 2),
            offered_frames_per_s=round(main.window.offered_per_s, 2),
            frames_per_s=round(fast.window.answered_per_s, 2),
            session_ms=statement.latency(main.window.session_ms),
            model_ms=statement.latency(alone),
            memory_mib=round(max(fast.memory_mib, main.memory_mib)),
            start_s=round(main.start_s, 2),
            first_start_s=round(fast.start_s, 2),
            image_mb=self._arguments.image_mb,
            power_w=main.power_w,
            power_source=main.power_source,
        )

    def _environment_before(self) -> Environment:
        cores: Any = import_module("skerry.inference.cores")
        cpuinfo = machine.read(Path("/proc/cpuinfo"))
        video = self._arguments.video
        return Environment(
            cpu=cores.this_cpu(),
            isa=machine.instruction_sets(cpuinfo),
            architecture=machine.architecture(),
            cores=cores.usable_cores(),
            memory_mib=machine.memory_mib(machine.read(Path("/proc/meminfo"))),
            kernel=f"{platform.system()} {platform.release()}",
            python=platform.python_version(),
            virtual=machine.is_virtual(cpuinfo),
            load_before=round(os.getloadavg()[0], 2),
            runtime="",
            form="",
            device=self._arguments.device,
            threads=1,
            source=f"{video.name}, again and again" if video else "the belt, drawn, 640 x 480",
        )


def _say(began: float) -> Say:
    def say(line: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {line}", file=sys.stderr, flush=True)

    return say


def _alone(use: ModelUse, cache: Path, setup: Setup, seconds: float) -> tuple[list[float], dict[str, Any]]:
    """Milliseconds of a frame through the model in this process, and what ran it."""
    runtimes: Any = import_module("skerry.inference.runtimes")
    model: Any = import_module("skerry.inference.model").Model(use, cache, 0.5)
    pictures = _pictures(setup)
    try:
        times: list[float] = []
        until = time.perf_counter() + seconds
        least = 2 * least_samples(0.95)
        for n in range(20 + 2000):
            begin = time.perf_counter()
            model.infer([model.prepare(pictures[n % len(pictures)])])
            now = time.perf_counter()
            if n >= 20:  # caches are warm
                times.append((now - begin) * 1000)
            if now > until and len(times) >= least:
                break
        used = {
            "runtime": runtimes.runtime_version(model.runtime),
            "form": model.package.form,
            "threads": model.threads,
        }
    finally:
        model.close()
    return times, used


def _pictures(setup: Setup) -> list[Any]:
    """The first frames of what the cameras see."""
    if setup.video is None:
        scene: Any = import_module("skerry.capture.scene").Scene(seed=1, width=640, height=480)
        return [scene.render(n / 15) for n in range(_PICTURES)]
    av: Any = import_module("av")
    with av.open(str(setup.video)) as container:
        frames = (frame.to_ndarray(format="bgr24") for frame in container.decode(video=0))
        return [frame for _, frame in zip(range(_PICTURES), frames, strict=False)]


def _report(title: str, digest: str, measured: Measured, made: Statement | None) -> dict[str, Any]:
    said: Measured = measured if made is None else made.predicate
    return {"package": title, "digest": digest, **msgspec.to_builtins(said)}


def _judged(each: Judgement) -> str:
    what, unit = _TITLES[each.figure]
    sign = ">=" if each.figure == "frames_per_s" else "<="
    got = "nothing that bounds it" if each.measured is None else f"{each.measured:g}"
    return f"{what}: expected {sign} {each.budget:g} {unit}, got {got}"


def _print(title: str, digest: str, measured: Measured, made: Statement | None, out: Path | None) -> None:
    figures, env = measured.figures, measured.environment
    load = f"{measured.cameras} x {measured.fps:g} frames/s" if measured.fps else "one frame at a time"
    print(f"{title}  {digest}")
    print(f"{measured.scenario}: {load}, {measured.seconds:g} s, {env.source}")
    print(f"{env.runtime} ({env.form}) on {env.device}, {env.threads} thread{'s' * (env.threads > 1)}")
    print(f"{env.cpu}, {env.cores} cores{', virtual' * env.virtual}, load before {env.load_before:g}")
    print(f"instruction sets: {', '.join(env.isa) or 'none that matter'}\n")
    print(f"{'ms':24} {'p50':>9} {'p90':>9} {'p95':>9} {'p99':>9}  (at most, with 99 % confidence)")
    for what, latency in (
        ("frame to event", figures.frame_to_event_ms),
        ("session, in there", figures.session_ms),
        ("model alone", figures.model_ms),
    ):
        _print_latency(what, latency)
    steady = "too few samples for a p95 of each tenth of the time"
    if figures.p95_by_tenth_ms is not None:
        steady = "p95 of each tenth of the time: {:.1f} to {:.1f} ms".format(*figures.p95_by_tenth_ms)
    print(f"{steady}; {figures.unanswered} frames without an answer\n")
    if made is None:
        rows = (("throughput", figures.frames_per_s, "frames/s"), ("memory", figures.memory_mib, "MiB"),
                ("start", figures.start_s, "s"), ("first start", figures.first_start_s, "s"))  # fmt: skip
        for what, value, unit in rows:
            print(f"{what:24} {value:>9g} {unit}")
        print(_power(figures))
        return
    _print_judged(made, out)


def _print_latency(what: str, latency: Latency) -> None:
    each = (latency.p50, latency.p90, latency.p95, latency.p99)
    print(f"{what:24} {' '.join(f'{_ms(b.value):>9}' for b in each)}  {latency.samples} samples")
    print(f"{'':24} {' '.join(f'{_ms(b.upper):>9}' for b in each)}")


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _power(figures: Figures) -> str:
    if figures.power_w is None:
        return "power                    not read: no RAPL and no sensor in /sys"
    return f"power                    {figures.power_w:g} W ({figures.power_source})"


def _print_judged(made: Statement, out: Path | None) -> None:
    predicate = made.predicate
    print(f"{predicate.device_class:24} {'measured':>9} {'budget':>9}")
    for each in predicate.judged:
        what, unit = _TITLES[each.figure]
        sign = ">=" if each.figure == "frames_per_s" else "<="
        seen = "-" if each.measured is None else f"{each.measured:g}"
        print(f"{what:24} {seen:>9} {sign}{each.budget:>7g} {unit:9} {each.verdict}")
    print(_power(predicate.figures))
    print(f"first start, runtime to be chosen: {predicate.figures.first_start_s:g} s")
    print(f"\nbudget {predicate.verdict}")
    for text in predicate.shortfalls:
        print(f"no attestation of {predicate.device_class}: {text}")
    if out is not None:
        print(f"{out}: to be signed (skerry model sign attest, or add --attestation)")
