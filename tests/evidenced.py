"""Packages with evidence in them, as a build would leave them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from model_folders import package_folder, weights
from skerry.models.building.record import (
    ArtifactRecord,
    BuildRecord,
    Content,
    DataSet,
    Figure,
    Source,
    Step,
    encode,
)


def sha(text: str | bytes) -> str:
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()


CALIBRATION = sha("calibration set")


def record(version: str = "1.0.0", **changes: Any) -> BuildRecord:
    """Of `package_folder` of this version: calibrated to int8, which is the model it has."""
    exported, model = Content(name="exported.onnx", sha256=sha("exported")), weights(version)
    whole = BuildRecord(
        name="tiny", version=version, security_epoch=2, licence="Apache-2.0",
        spec=Content(name="tiny.yaml", sha256=sha("spec")),
        source=Source(form="python", file="hook.py", sha256=sha("hook"), function="make",
                      onnx_sha256=exported.sha256),
        data=(
            DataSet(role="calibration", form="pictures", sha256=CALIBRATION, files=64, pictures=64),
            DataSet(role="evaluation", form="coco", sha256=sha("evaluation"), files=201, pictures=200),
        ),
        steps=(
            Step(name="export", tool="torch", version="2.9.0",
                 inputs=(Content(name="hook.py", sha256=sha("hook")),), outputs=(exported,)),
            Step(name="onnx-int8", tool="onnxruntime", version="1.31.1", parameters={"method": "minmax"},
                 inputs=(exported, Content(name="calibration", sha256=CALIBRATION)),
                 outputs=(Content(name="model.onnx", sha256=sha(model)),), said=("outputs differ by 0.01",)),
        ),
        artifacts=(
            ArtifactRecord(
                name="onnx-int8", format="onnx", precision="int8", status="shipped", bytes=len(model),
                files=(Content(name="model.onnx", sha256=sha(model)),),
                figures=(
                    Figure(runtime="onnxruntime", version="1.31.1", isa="avx512_vnni", pictures=200,
                           metric="map", value=0.912345, delta=-0.004, map50=0.98,
                           right=390, wrong=3, missed=7),
                    Figure(runtime="openvino", version="2026.4.1", isa="avx2", pictures=200, metric="map",
                           value=0.91, delta=-0.0065),
                ),
            ),
            ArtifactRecord(name="openvino-int8", format="openvino", precision="int8", status="refused",
                           reason="map fell by 0.2"),
        ),
        tools={"python": "3.11.7", "skerry": "0.1.0", "onnxruntime": "1.31.1"},
    )  # fmt: skip
    return msgspec.structs.replace(whole, **changes)


def built(
    folder: Path, version: str = "1.0.0", *, budget: dict[str, float] | None = None, **changes: Any
) -> tuple[Path, BuildRecord]:
    """A package with its record, and without evidence."""
    about = {"description": "Good parts and bad ones.", "licence": "Apache-2.0", "budget": budget or {}}
    package_folder(folder, version, **about)
    made = record(version, **changes)
    (folder / "build.json").write_bytes(encode(made))
    return folder, made
