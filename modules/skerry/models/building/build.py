"""From a spec to a package: what is made, in which order, and what is let through.

Nothing ships that was not measured here, on every runtime that may load it, on pictures that it was not
calibrated on. The package holds no time, path or name of this machine; how fast things were is told beside.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import onnx
import onnxruntime

from skerry.errors import ConfigError, PackageError
from skerry.inference.runtimes import (
    Place,
    SessionFailed,
    first_line,
    installed,
    open_session,
    runtime_version,
)
from skerry.models import fold, importing, judging, layout, oci, quantisation
from skerry.models.building import data, gates, jobs, processor, report, transforms
from skerry.models.building.record import (
    RECORD,
    ArtifactRecord,
    BuildRecord,
    Content,
    Figure,
    Source,
    Step,
    encode,
)
from skerry.models.building.source import fetch, strip
from skerry.models.building.spec import KINDS, REFERENCE_KIND, BuildSpec, Kind, Wish, read_spec
from skerry.models.evidence import files as evidence
from skerry.models.manifest import (
    READERS,
    REFERENCE,
    Baseline,
    Delta,
    File,
    Golden,
    GoldenPicture,
    Input,
    Manifest,
    Sighting,
    Variant,
)
from skerry.models.manifest import encode as encode_manifest
from skerry.models.package import MANIFEST, Package, digest, load, read_manifest
from skerry.settings import parse

Say = Callable[[str], None]
Feeds = list[dict[str, Any]]

_FEEDS = 8
"""Real inputs that transforms are compared on; besides them some noise."""
_NOISE = 2
_FEW_FEEDS = 4
"""The same where each takes a second, on an emulated processor."""


@dataclass(frozen=True)
class Built:
    """What came of a build.

    Attributes:
        package: where it is now.
        record: what is in its `build.json`.
        digest: of the OCI manifest that it is packed to.
        ms: median milliseconds of a picture, by the clock and of the processor, by artifact, runtime and
            instruction set; one thread.
        refused: artifacts that were left out, and why.
    """

    package: Package
    record: BuildRecord
    digest: str
    ms: report.Ms
    refused: tuple[str, ...]


class _Refused(Exception):  # noqa: N818 - a reason
    """An artifact is not good enough."""


@dataclass
class _Made:
    """An artifact that is being made."""

    kind: Kind
    files: tuple[Path, ...]
    """In the package; of OpenVINO's format the .xml and the .bin."""
    step: Step
    figures: tuple[Figure, ...] = ()
    seen: dict[tuple[str, str], tuple[tuple[Sighting, ...], ...]] = field(default_factory=dict)
    """Of the golden pictures, by runtime and instruction set."""
    golden: Golden | None = None
    broken: str = ""
    """Why there is nothing."""


def build(path: Path, out: Path, say: Say, *, force: bool = False) -> Built:
    """Build what a spec asks for.

    Args:
        path: the spec.
        out: folder of the package; it appears as a whole, or not at all.
        say: is told what is done.
        force: replace a package that is there.

    Raises:
        ConfigError: the spec, or something that it names, is wrong; `out` is taken.
        PackageError: something is refused.
        Unavailable: an emulator is not installed.
    """
    spec, labels = read_spec(path)
    if out.exists() and not (force and (out / MANIFEST).exists()):
        raise ConfigError(f"{out}: expected a new folder, got one that is there (choose another)")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
        work = _Build(path, spec, labels, Path(folder), say)
        work.run()
        if out.exists():
            out.rename(Path(folder) / "old")
        work.folder.rename(out)
        return Built(load(out), work.record, work.digest, work.ms, tuple(work.refused))


class _Build:
    """One build, in a folder of its own."""

    def __init__(self, path: Path, spec: BuildSpec, labels: tuple[str, ...], work: Path, say: Say) -> None:
        self._path, self._base, self._spec, self._labels = path, path.parent, spec, labels
        self._work, self._say = work, say
        self.folder = work / "package"
        self.isa = processor.this_instruction_set()
        self._emulators: dict[str, list[str]] = {
            isa: processor.emulator(isa) for isa in spec.instruction_sets if isa != self.isa
        }
        self._steps: list[Step] = []
        self._artifacts: list[ArtifactRecord] = []
        self._variants: dict[Kind, Variant] = {}
        self._reference: dict[tuple[str, str], Figure] = {}
        self.ms: dict[tuple[str, str, str], tuple[float, float]] = {}
        self.refused: list[str] = []
        self.digest = ""
        self.record: BuildRecord
        self._source: Source

    # The order of things

    def run(self) -> None:
        self._read_data()
        self._say(f"{self._spec.name} {self._spec.version}: {self._source_said()}")
        self._clean()
        if self._spec.prune is not None:
            self._prune(self._spec.prune.share, self._spec.prune.most_loss)
        self._take_reference()
        for kind, wish in self._spec.wishes.items():
            if kind != REFERENCE_KIND:
                self._take(kind, wish)
        self._finish()

    def _read_data(self) -> None:
        wish, base = self._spec.data, self._base
        self._judges = data.evaluation(base / wish.evaluation.folder, wish.evaluation)
        assert self._judges.labelled is not None, "it is read with its labels"
        known = set(self._labels) & set(self._judges.labelled.labels)
        if not known:
            raise ConfigError(
                f"data.evaluation: expected labels of the model ({', '.join(self._labels)}), "
                f"got {', '.join(self._judges.labelled.labels)}"
            )
        self._calibration = None
        if wish.calibration is not None:
            self._calibration = data.calibration(base / wish.calibration.folder, wish.calibration)
            data.check_apart(self._calibration, self._judges)
        folder = base / wish.golden.folder if wish.golden.folder else None
        self._golden = data.golden(folder, wish.golden, self._judges)
        n = min(self._spec.emulated_pictures, len(self._judges.pictures))
        self._few = self._judges.pictures[:: max(1, len(self._judges.pictures) // n)][:n]

    def _source_said(self) -> str:
        self._source, step = fetch(self._spec.source, self._base, self._work / "source.onnx")
        self._steps.append(step)
        return f"{self._source.file}, {self._source.onnx_sha256[:16]}..."

    def _clean(self) -> None:
        made = importing.import_model(
            self._work / "source.onnx", self._spec.short(), self._labels, self._feeds_of, self.folder
        )
        path = self.folder / "model.onnx"
        model = onnx.load(path)
        strip(model)
        path.write_bytes(model.SerializeToString(deterministic=True))
        self._write(read_manifest(self.folder))
        folded = made.folded
        self._say(
            f"clean: {'; '.join(folded.changes) or 'nothing to do'}; differs by {folded.difference:.1e}"
        )
        source = Content(name="source.onnx", sha256=digest(self._work / "source.onnx"))
        said = (*folded.changes, f"outputs differ by at most {folded.difference:.1e}")
        self._steps.append(
            Step(
                name="clean", tool="onnxruntime", version=onnxruntime.__version__,
                parameters={"tolerance": f"{fold.TOLERANCE:g}"}, inputs=(source,),
                outputs=(self._content(path),), said=said,
            )
        )  # fmt: skip
        self._feeds = self._real(read_manifest(self.folder).input, self._sample(_FEEDS))
        self._model = model

    def _prune(self, share: float, most_loss: float) -> None:
        before = self._judged(REFERENCE, REFERENCE_KIND)[0]
        path = self.folder / "model.onnx"
        content, said = transforms.prune(self._model, share)
        inputs = (self._content(path),)
        path.write_bytes(content)
        self._write(read_manifest(self.folder))
        after = self._judged(REFERENCE, REFERENCE_KIND)[0]
        losses = {one.runtime: one.value - two.value for one, two in zip(before, after, strict=True)}
        told = ", ".join(f"{name} loses {loss:.4f}" for name, loss in losses.items())
        self._say(f"prune {share:g}: {said}; {told}")
        if max(losses.values()) > most_loss:
            raise PackageError(f"prune: expected a loss of at most {most_loss:g}, got: {told}")
        self._steps.append(
            Step(
                name="prune", tool="skerry", version=runtime_of("skerry"), parameters={"share": f"{share:g}"},
                inputs=inputs, outputs=(self._content(path),), said=(said, told),
            )
        )  # fmt: skip
        self._model = onnx.load(path)

    def _take_reference(self) -> None:
        wish = self._spec.wishes[REFERENCE_KIND]
        figures, seen = self._judged(REFERENCE, REFERENCE_KIND, isas=("", *self._emulators))
        self._reference = {(each.runtime, each.isa): each for each in figures}
        low = [f for f in figures if wish.least is not None and f.isa == self.isa and f.value < wish.least]
        if low:
            told = ", ".join(f"{f.value:.4f} on {f.runtime}" for f in low)
            raise PackageError(f"{REFERENCE_KIND}: expected at least {wish.least:g}, got {told}")
        pictures = self._keep_pictures()
        step = Step(name=REFERENCE_KIND, tool="skerry", version=runtime_of("skerry"))
        made = _Made(REFERENCE_KIND, (self.folder / "model.onnx",), step, figures, seen)
        try:
            golden = self._agreed(made, pictures)
        except _Refused as refused:
            raise PackageError(f"{REFERENCE_KIND}: {refused}") from refused
        if not any(picture.objects for picture in golden.pictures):
            raise PackageError(
                "golden: expected something to be seen in the pictures, got nothing in any of them "
                "(choose others, data.golden)"
            )
        baseline = self._baseline()
        manifest = read_manifest(self.folder)
        self._write(
            msgspec.structs.replace(manifest, golden=golden, budget=self._spec.budget, baseline=baseline)
        )
        self._artifacts.append(self._recorded(made, "reference"))

    def _take(self, kind: Kind, wish: Wish) -> None:
        """Make an artifact, and keep it if it is good enough."""
        reasons: list[str] = []
        try:
            for made in self._made(kind, wish):
                title = made.step.parameters.get("recipe", "")
                try:
                    self._pass(made, wish)
                except _Refused as refused:
                    reasons.append(self._plain(f"{title}: {refused}" if title else str(refused)))
                    self._say(f"{kind}: refused: {reasons[-1]}")
                    self._drop(made)
                    continue
                self._ship(made, reasons)
                return
        except PackageError as error:
            reasons.append(self._plain(first_line(error)))
            self._say(f"{kind}: refused: {reasons[-1]}")
        self._refuse(kind, reasons)

    def _refuse(self, kind: Kind, reasons: Sequence[str]) -> None:
        form, precision = KINDS[kind]
        text = f"{kind}: {'; '.join(reasons) or 'nothing could be made'}"
        if self._spec.when_refused == "fail":
            raise PackageError(f"{text} (when_refused: leave_out builds without it)")
        self.refused.append(text)
        self._steps.append(
            Step(
                name=kind, tool="skerry", version=runtime_of("skerry"),
                said=tuple(f"refused: {reason}" for reason in reasons),
            )
        )  # fmt: skip
        self._artifacts.append(
            ArtifactRecord(
                name=kind, format=form, precision=precision, status="refused", reason="; ".join(reasons)
            )
        )

    # Making

    def _made(self, kind: Kind, wish: Wish) -> Iterator[_Made]:
        """Each way of making an artifact, until somebody is content.

        Raises:
            PackageError: it cannot be made.
        """
        if kind == "onnx-fp16":
            path = self._path_of(kind)
            path.write_bytes(transforms.half(self._model))
            yield self._step_of(kind, (path,), "onnxruntime", onnxruntime.__version__, {})
        elif kind == "onnx-int8":
            yield from self._quantised(kind, wish)
        elif kind == "openvino-fp16":
            yield self._converted(kind, self.folder / "model.onnx", half=True)
        elif kind == "openvino-int8":
            yield self._openvino_int8(kind, wish)

    def _quantised(self, kind: Kind, wish: Wish) -> Iterator[_Made]:
        narrow = bool(self._emulators) or "vnni" not in self.isa
        feeds = self._calibrated()
        path = self._path_of(kind)
        for recipe in transforms.recipes(narrow=narrow, most=wish.recipes):
            broken = ""
            try:
                path.write_bytes(quantisation.quantise(self.folder / "model.onnx", feeds, recipe))
            except PackageError as error:
                path.write_bytes(b"")
                broken = str(error).splitlines()[0]
            parameters = {"recipe": recipe.title, "pictures": str(len(feeds))}
            made = self._step_of(kind, (path,), "onnxruntime", onnxruntime.__version__, parameters)
            made.broken = broken
            yield made

    def _openvino_int8(self, kind: Kind, wish: Wish) -> _Made:
        nncf = jobs.nncf_version() if wish.through in ("auto", "nncf") else ""
        if wish.through == "nncf" and not nncf:
            raise PackageError("expected NNCF, found it not installed (pip install nncf, or through: onnx)")
        if nncf:
            feeds = self._work / "feeds.npz"
            jobs.write_feeds(feeds, self._calibrated())
            return self._converted(kind, self.folder / "model.onnx", half=False, feeds=feeds, nncf=nncf)
        if "onnx-int8" not in self._variants:
            raise PackageError("expected an onnx-int8 that is good enough to make it of, got none")
        return self._converted(kind, self._path_of("onnx-int8"), half=False)

    def _converted(
        self, kind: Kind, model: Path, *, half: bool, feeds: Path | None = None, nncf: str = ""
    ) -> _Made:
        if "openvino" not in installed():
            raise PackageError("expected OpenVINO, found it not installed (pip install 'skerry[openvino]')")
        xml = self._path_of(kind)
        job = jobs.Convert(model=str(model), out=str(xml), half=half, feeds=str(feeds) if feeds else "")
        error = jobs.convert(job)
        if error:
            raise PackageError(error)
        tool, version = ("nncf", nncf) if feeds else ("openvino", runtime_of("openvino"))
        files = (xml, xml.with_suffix(".bin"))
        return self._step_of(kind, files, tool, version, {"of": model.name, "half": str(half).lower()})

    def _step_of(
        self, kind: Kind, files: tuple[Path, ...], tool: str, version: str, parameters: dict[str, str]
    ) -> _Made:
        inputs = [self._content(self.folder / parameters.get("of", "model.onnx"))]
        if KINDS[kind][1] == "int8" and self._calibration is not None and "of" not in parameters:
            inputs.append(Content(name="calibration", sha256=self._calibration.record.sha256))
        outputs = tuple(self._content(path) for path in files)
        step = Step(
            name=kind, tool=tool, version=version, parameters=parameters, inputs=tuple(inputs),
            outputs=outputs,
        )  # fmt: skip
        return _Made(kind, files, step)

    # Judging

    def _pass(self, made: _Made, wish: Wish) -> None:
        """Every gate, the cheap ones first.

        Raises:
            _Refused: it does not get through one.
        """
        if made.broken:
            raise _Refused(made.broken)
        names = self._runtimes(made.kind, wish)
        manifest = read_manifest(self.folder)
        self._write(
            msgspec.structs.replace(manifest, variants=(*manifest.variants, self._variant(made, names)))
        )
        try:
            self._still_equal(made, names)
        except (PackageError, SessionFailed) as error:
            raise _Refused(first_line(error)) from error
        made.figures, made.seen = self._judged(made.kind, made.kind, names=names, wish=wish)
        self._as_good_emulated(made, names, wish)
        golden = manifest.golden
        assert golden is not None, "the reference wrote it"
        made.golden = self._agreed(made, golden.pictures)

    def _still_equal(self, made: _Made, names: Sequence[str]) -> None:
        """What the graph must still be on real inputs."""
        form, precision = KINDS[made.kind]
        path = made.files[0]
        if form == "onnx":
            content = path.read_bytes()
            found = gates.traps(content, self._model.SerializeToString(), self._feeds)
            if precision == "int8":
                found += self._overflow(path, self.isa)
            if found:
                raise _Refused("; ".join(found))
        for name in names:
            got = self._outputs(name, made.kind)
            if (precision == "int8" and form == "onnx") or made.step.tool == "nncf":
                # Equal it cannot be; how good it is, is measured. Numbers it must give.
                wrong = gates.unequal(got, got, gates.SAME)
            elif precision == "int8":
                wrong = gates.unequal(self._outputs(name, "onnx-int8"), got, gates.SAME)
            else:
                wrong = gates.unequal(self._outputs(name, REFERENCE), got, gates.HALF)
            if wrong:
                raise _Refused(f"{name}: {wrong}")

    def _overflow(self, path: Path, isa: str) -> list[str]:
        """Whether sums of 8-bit products overflow on a processor: this one, or an emulated one."""
        feeds = self._work / "few.npz"
        jobs.write_feeds(feeds, self._feeds[:_FEW_FEEDS])
        job = jobs.Deviate(model=str(path), feeds=str(feeds))
        said = jobs.deviation(job, self._emulators.get(isa, []))
        text = said.error or gates.overflow(said.value, isa)
        return [text] if text else []

    def _as_good_emulated(self, made: _Made, names: Sequence[str], wish: Wish) -> None:
        """On an older processor it must find what it finds here, in the same pictures."""
        for isa in self._emulators:
            if KINDS[made.kind] == ("onnx", "int8") and (found := self._overflow(made.files[0], isa)):
                raise _Refused(found[0])
            figures, seen = self._judged(made.kind, made.kind, names=names, isas=(isa,))
            made.figures += figures
            made.seen |= seen
            for figure in figures:
                here = self._ask(made.kind, figure.runtime, self._few, ())
                lost = _value(here.figures)[1] - figure.value
                if lost > wish.most_loss:
                    raise _Refused(f"loses {lost:.4f} on {figure.runtime} where there is only {isa}")

    def _judged(
        self,
        form: str,
        kind: Kind,
        *,
        names: Sequence[str] = (),
        isas: Sequence[str] = ("",),
        wish: Wish | None = None,
    ) -> tuple[tuple[Figure, ...], dict[tuple[str, str], tuple[tuple[Sighting, ...], ...]]]:
        """Figures of a form on every runtime, and what it sees in golden pictures.

        Args:
            form: of the package as it is now.
            kind: what it is.
            names: of runtimes; none: all that ran the reference.
            isas: instruction sets to emulate; an empty one is this processor's own.
            wish: what it must be, here.

        Raises:
            _Refused: a runtime cannot do it, or it is less good there than is wished for.
        """
        figures, seen = [], {}
        for name in names or self._runtimes(kind, self._spec.wishes[REFERENCE_KIND]):
            for isa in isas:
                emulator = self._emulators.get(isa, [])
                pictures = self._few if isa else self._judges.pictures
                answer = self._ask(form, name, pictures, emulator)
                where = _emulated(isa) if isa else self.isa
                if answer.error:
                    error = f"{name} on {where}: {answer.error}"
                    if form == REFERENCE:
                        raise PackageError(f"{kind}: {error}")
                    raise _Refused(error)
                figures.append(self._figure(answer.figures, name, where))
                seen[name, where] = answer.golden
                if not isa:
                    ms, cpu_ms = (float(str(answer.figures[key])) for key in ("ms", "cpu_ms"))
                    self.ms[kind, name, where] = ms, cpu_ms
                self._say(f"{kind}: {_told(figures[-1])}")
                if wish is not None and not isa:
                    _check(figures[-1], wish)
        return tuple(figures), seen

    def _ask(self, form: str, runtime: str, pictures: Sequence[Path], emulator: Sequence[str]) -> jobs.Judged:
        job = jobs.Judge(
            package=str(self.folder), form=form, runtime=runtime,
            folder=str(self._base / self._spec.data.evaluation.folder),
            pictures=tuple(str(path) for path in pictures),
            golden=tuple(str(path) for path in self._golden.pictures),
        )  # fmt: skip
        return jobs.judge(job, emulator)

    def _figure(self, raw: dict[str, object], runtime: str, isa: str) -> Figure:
        metric, value = _value(raw)
        reference = self._reference.get((runtime, isa))
        counts = raw.get("labels")
        sums = {
            key: sum(int(its[key]) for its in counts.values()) if isinstance(counts, dict) else None
            for key in ("right", "wrong", "missed")
        }
        map50 = raw.get("map50")
        return Figure(
            runtime=runtime, version=runtime_of(runtime), isa=isa, pictures=int(str(raw["pictures"])),
            metric=metric, value=value,
            delta=round(value - reference.value, 4) if reference is not None else 0.0,
            map50=round(map50, 4) if isinstance(map50, float) else None, **sums,
        )  # fmt: skip

    def _agreed(self, made: _Made, pictures: Sequence[GoldenPicture]) -> Golden:
        """What the form answers in the golden pictures, and how close to that others come.

        Raises:
            _Refused: two runtimes or processors do not see the same.
        """
        seen = {f"{name} on {isa}": objects for (name, isa), objects in made.seen.items()}
        golden, told = judging.agreed(pictures, seen, read_manifest(self.folder).decoder.score_threshold)
        if told:
            raise _Refused(f"golden pictures: {told}")
        return golden

    # Keeping

    def _ship(self, made: _Made, reasons: Sequence[str]) -> None:
        said = [f"refused: {reason}" for reason in reasons]
        self._steps.append(msgspec.structs.replace(made.step, said=tuple(said)))
        self._artifacts.append(self._recorded(made, "shipped"))
        names = tuple(dict.fromkeys(figure.runtime for figure in made.figures))
        variant = self._variant(made, names)
        self._variants[made.kind] = variant
        manifest = read_manifest(self.folder)
        self._write(msgspec.structs.replace(manifest, variants=tuple(self._variants.values())))

    def _drop(self, made: _Made) -> None:
        manifest = read_manifest(self.folder)
        self._write(msgspec.structs.replace(manifest, variants=tuple(self._variants.values())))
        for path in made.files:
            path.unlink(missing_ok=True)
        self.ms = {key: ms for key, ms in self.ms.items() if key[0] != made.kind}

    def _variant(self, made: _Made, names: Sequence[str]) -> Variant:
        form, precision = KINDS[made.kind]
        first, *rest = (File(file=path.name, sha256=digest(path)) for path in made.files)
        return Variant(
            name=made.kind, file=first.file, sha256=first.sha256, format=form, precision=precision,
            weights=rest[0] if rest else None,
            runtimes=tuple(name for name in READERS[form] if name in names),
            golden=made.golden,
            measured=tuple(
                Delta(runtime=f.runtime, isa=f.isa, metric=f.metric, value=f.value, delta=f.delta)
                for f in made.figures
            ),
        )  # fmt: skip

    def _recorded(self, made: _Made, status: Literal["reference", "shipped"]) -> ArtifactRecord:
        form, precision = KINDS[made.kind]
        return ArtifactRecord(
            name=made.kind, format=form, precision=precision, status=status,
            files=tuple(self._content(path) for path in made.files),
            bytes=sum(path.stat().st_size for path in made.files), figures=made.figures,
        )  # fmt: skip

    def _keep_pictures(self) -> tuple[GoldenPicture, ...]:
        """The golden pictures in the package, named by their content."""
        kept = []
        for path in self._golden.pictures:
            content = report.png(judging.read_picture(path))
            sha256 = oci.sha256(content)
            name = f"golden-{sha256[:12]}.png"
            (self.folder / name).write_bytes(content)
            kept.append(GoldenPicture(file=name, sha256=sha256))
        return tuple(kept)

    def _finish(self) -> None:
        tools = ("skerry", "onnx", "onnxruntime", "openvino", "numpy", "opencv-python-headless")
        sets = [self._calibration, self._judges, self._golden]
        self.record = BuildRecord(
            name=self._spec.name, version=self._spec.version, security_epoch=self._spec.security_epoch,
            licence=self._spec.licence,
            spec=Content(name=self._path.name, sha256=digest(self._path)), source=self._source,
            data=tuple(each.record for each in sets if each is not None),
            steps=tuple(self._steps), artifacts=tuple(self._artifacts),
            tools={"python": platform.python_version()} | {t: v for t in tools if (v := runtime_of(t))},
        )  # fmt: skip
        (self.folder / RECORD).write_bytes(encode(self.record))
        (self.folder / report.TEXT).write_text(report.text(self.record, {}), encoding="utf-8")
        (self.folder / report.PICTURE).write_text(report.picture(self.record, {}), encoding="utf-8")
        evidence.add(self.folder, self.record)
        load(self.folder)
        packed = layout.pack(self.folder, self._work / "layout", security_epoch=self._spec.security_epoch)
        self.digest = packed.listing.digest

    def _write(self, manifest: Manifest) -> None:
        """The manifest, with the reference as it is now."""
        artifact = msgspec.structs.replace(manifest.artifact, sha256=digest(self.folder / "model.onnx"))
        manifest = msgspec.structs.replace(manifest, artifact=artifact)
        (self.folder / MANIFEST).write_bytes(encode_manifest(manifest))

    def _baseline(self) -> Baseline | None:
        if not self._spec.baseline:
            return None
        path = self._base / self._spec.baseline
        try:
            raw = msgspec.json.decode(path.read_bytes())
        except msgspec.DecodeError as error:
            raise ConfigError(f"baseline: {path}: expected JSON ({error})") from error
        if not isinstance(raw, dict) or not isinstance(raw.get("baseline"), dict):
            raise ConfigError(f"baseline: {path}: expected a manifest with a baseline, got none")
        return parse(Baseline, raw["baseline"], str(path))

    # Inputs

    def _sample(self, most: int) -> tuple[Path, ...]:
        used = self._calibration or self._judges
        return used.pictures[:: max(1, len(used.pictures) // most)][:most]

    def _real(self, spec: Input, paths: Sequence[Path]) -> Feeds:
        return [judging.feed(spec, path) for path in paths]

    def _calibrated(self) -> Feeds:
        assert self._calibration is not None, "the spec was checked"
        return self._real(read_manifest(self.folder).input, self._calibration.pictures)

    def _feeds_of(self, spec: Input) -> Feeds:
        """For the comparison of the cleaned graph: real pictures, and noise."""
        feeds = self._real(spec, self._sample(_FEEDS))
        noise = np.random.default_rng(0)
        for _ in range(_NOISE):
            like = feeds[0][spec.name]
            feeds.append({spec.name: noise.uniform(like.min(), like.max(), like.shape).astype(like.dtype)})
        return feeds

    def _outputs(self, runtime: str, form: str) -> list[dict[str, Any]]:
        package = load(self.folder, only=form).using(form)
        session = open_session(runtime, package, Place())
        return [session.run(each) for each in self._feeds]

    # Names

    def _runtimes(self, kind: Kind, wish: Wish) -> tuple[str, ...]:
        names = [n for n in READERS[KINDS[kind][0]] if n in installed() and n in (wish.runtimes or (n,))]
        compared = self._spec.wishes[REFERENCE_KIND].runtimes
        names = [n for n in names if n in (compared or (n,))]
        if not names:
            raise PackageError(
                f"{kind}: expected a runtime that is installed, loads it and ran the reference, found none"
            )
        return tuple(names)

    def _path_of(self, kind: Kind) -> Path:
        suffix = ".xml" if KINDS[kind][0] == "openvino" else ".onnx"
        return self.folder / f"model-{kind}{suffix}"

    def _plain(self, text: str) -> str:
        """Without where on this machine it happened."""
        return text.replace(f"{self.folder}/", "").replace(str(self.folder), self._spec.name)

    def _content(self, path: Path) -> Content:
        return Content(name=path.name, sha256=digest(path))


def runtime_of(distribution: str) -> str:
    """Version of a distribution or runtime; empty where it is not installed."""
    return report.version_of(distribution) or runtime_version_of(distribution)


def runtime_version_of(name: str) -> str:
    """Of a runtime whose distribution has another name."""
    return runtime_version(name).rpartition(" ")[2] if name in installed() else ""


def _value(raw: dict[str, object]) -> tuple[Literal["map", "top1"], float]:
    """What a loss is counted in."""
    metric: Literal["map", "top1"] = "top1" if "top1" in raw else "map"
    return metric, round(float(str(raw[metric] or 0.0)), 4)


def _check(figure: Figure, wish: Wish) -> None:
    """That a form is as good as is wished for.

    Raises:
        _Refused: it is not, with the figure.
    """
    if -figure.delta > wish.most_loss:
        raise _Refused(
            f"loses {-figure.delta:.4f} on {figure.runtime}, at most {wish.most_loss:g} is allowed"
        )
    if wish.least is not None and figure.value < wish.least:
        raise _Refused(f"expected at least {wish.least:g} on {figure.runtime}, got {figure.value:.4f}")


def _emulated(isa: str) -> str:
    return f"emulated {isa}"


def _told(figure: Figure) -> str:
    name = {"map": "mAP50-95", "top1": "top-1"}[figure.metric]
    return f"{figure.runtime} on {figure.isa}: {name} {figure.value:.4f} ({figure.delta:+.4f})"
