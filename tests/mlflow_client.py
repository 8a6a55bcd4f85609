"""The real client of MLflow on a file store, as a program of its own: `write STORE` or `read STORE NAME`.

It runs under the interpreter of an environment that has mlflow-skinny; nothing else of the tests does.
"""

import json
import os
import sys
from pathlib import Path

os.environ |= {"MLFLOW_ALLOW_FILE_STORE": "true", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}

import mlflow
from mlflow.models import Model
from mlflow.tracking import MlflowClient


def write(store: Path, files: Path) -> None:
    """Log a folder of files with the flavours onnx and skerry, register it twice, and name one."""
    client = MlflowClient()
    run = client.create_run(client.create_experiment("experiment")).info
    for name, flavours in (("model", {"onnx": {"data": "package/model.onnx"}, "skerry": {"data": "package"}}),
                           ("plain", {"onnx": {"data": "package/model.onnx"}})):  # fmt: skip
        model = Model(artifact_path=name, run_id=run.run_id)
        for flavour, said in flavours.items():
            model.add_flavor(flavour, **said)
        model.save(str(files / "MLmodel"))
        client.log_artifacts(run.run_id, str(files), name)
        if name == "model":
            client.create_registered_model("theirs", description="made by MLflow")
        client.create_model_version("theirs", f"{run.artifact_uri}/{name}", run.run_id)
    client.set_registered_model_alias("theirs", "champion", "1")


def read(_store: Path, name: str) -> None:
    """All of a registered model, and its newest version's files, as JSON."""
    client = MlflowClient()
    found = client.get_registered_model(name)
    versions = sorted(client.search_model_versions(f"name='{name}'"), key=lambda v: int(v.version))
    folder = Path(
        mlflow.artifacts.download_artifacts(client.get_model_version_download_uri(name, versions[-1].version))
    )
    model = Model.load(str(folder / "MLmodel"))
    said = {
        "mlflow": mlflow.__version__,
        "names": [m.name for m in client.search_registered_models()],
        "description": found.description,
        "versions": [int(v.version) for v in versions],
        "status": [v.status for v in versions],
        "tags": versions[-1].tags,
        "flavors": model.flavors,
        "files": sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()),
    }
    client.set_registered_model_alias(name, "blessed", versions[0].version)
    client.update_model_version(name, versions[0].version, description="seen by MLflow")
    print(json.dumps(said))


if __name__ == "__main__":
    there = Path(sys.argv[2]).resolve()
    there.mkdir(exist_ok=True)
    mlflow.set_tracking_uri(there.as_uri())
    mlflow.set_registry_uri(there.as_uri())
    if sys.argv[1] == "write":
        write(there, Path(sys.argv[3]))
    else:
        read(there, sys.argv[3])
