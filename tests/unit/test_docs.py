import json
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

import needs
from samples import SAMPLES
from skerry import docs
from skerry.channels import CHANNELS
from skerry.decision.settings import RULES
from skerry.deploy.committed import FOLDERS
from skerry.messages import Detections, Event

GENERATE = [sys.executable, "scripts/generate"]
CLASSES = Path("modules/skerry/deploy/devices.json")


@pytest.fixture(scope="module")
def documents() -> dict[str, str]:
    return docs.documents()


def schema_of(documents, name):
    return json.loads(documents[f"docs/schemas/{name}.json"])


@pytest.mark.parametrize("channel", CHANNELS, ids=lambda c: c.name)
def test_what_is_really_sent_fits_its_schema(documents, channel):
    schema = schema_of(documents, channel.payload.__name__)
    Draft202012Validator.check_schema(schema)
    sent = json.loads(msgspec.json.encode(SAMPLES[channel.name]))
    Draft202012Validator(schema).validate(sent)


@pytest.mark.parametrize("channel", CHANNELS, ids=lambda c: c.name)
def test_schema_refuses_what_the_type_refuses(documents, channel):
    schema = schema_of(documents, channel.payload.__name__)
    for wrong in ([], {}, {"schema": 0}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(wrong, channel.payload)
        with pytest.raises(ValidationError):
            Draft202012Validator(schema).validate(wrong)


@pytest.mark.parametrize("name", ["gate", "a-b_9", "", "a b", "gate\n", "ü", "x" * 65])
def test_names_mean_the_same_to_the_schema_and_to_the_type(documents, name):
    message = {"camera": name, "state": "live", "captured": 1}
    schema = Draft202012Validator(schema_of(documents, "CameraStatus"))
    by_type = True
    try:
        msgspec.convert(message, next(c.payload for c in CHANNELS if c.name == "cameras"))
    except msgspec.ValidationError:
        by_type = False
    assert schema.is_valid(message) == by_type


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.__name__)
def test_schema_of_rules_knows_every_kind(documents, rule):
    schema = schema_of(documents, "Rule")
    Draft202012Validator.check_schema(schema)
    assert rule.__name__ in schema["$defs"]
    assert schema["$defs"][rule.__name__]["description"]


def test_every_channel_message_and_rule_is_on_its_page(documents):
    page = documents["docs/messages.md"]
    for channel in CHANNELS:
        assert channel.address in page
        assert f"## {channel.payload.__name__}\n" in page
    for rule in RULES:
        assert f"## {rule.__struct_config__.tag}\n" in documents["docs/rules.md"]


def test_every_link_inside_a_page_leads_to_a_heading(documents):
    page = documents["docs/messages.md"]
    headings = {line.strip("# ").lower() for line in page.splitlines() if line.startswith("#")}
    targets = {part.split(")")[0] for part in page.split("](#")[1:]}
    assert targets
    assert targets <= headings


def test_field_is_described_by_the_string_after_it_own_or_inherited():
    assert docs.field_docs(Detections)["reason"] == "Why it failed; empty when ok."
    assert docs.field_docs(Event)["monotonic"].startswith("CLOCK_MONOTONIC")
    for rule in RULES:
        assert docs.field_docs(rule)["zone"]


def test_asyncapi_names_every_channel_with_its_bindings(documents):
    document = json.loads(documents["docs/asyncapi.json"])
    assert document["asyncapi"] == "3.0.0"
    for channel in CHANNELS:
        described = document["channels"][channel.name]
        assert described["address"] == channel.address
        assert set(described["parameters"]) == {p.split("}")[0] for p in channel.address.split("{")[1:]}
        (message,) = described["messages"].values()
        payload = document["components"]["messages"][message["$ref"].rpartition("/")[2]]["payload"]
        assert f"docs/{payload['schema']['$ref']}" in documents
        binding = document["operations"][f"send-{channel.name}"]["bindings"]["mqtt"]
        assert (binding["qos"], binding["retain"]) == (channel.qos, channel.retain)


@pytest.fixture
def checkout(tmp_path):
    """A copy of what is generated, and of what generates it."""
    shutil.copytree(needs.ROOT / "docs" / "schemas", tmp_path / "docs" / "schemas")
    for name in ("messages.md", "rules.md", "adjustable.md", "asyncapi.json", "device-classes.md"):
        shutil.copy(needs.ROOT / "docs" / name, tmp_path / "docs")
    (tmp_path / CLASSES.parent).mkdir(parents=True)
    shutil.copy(needs.ROOT / CLASSES, tmp_path / CLASSES)
    # Renderings are made of the sites and their packages.
    for name in ("sites", "models", "device-classes", *FOLDERS.values()):
        if (needs.ROOT / name).is_dir():
            shutil.copytree(needs.ROOT / name, tmp_path / name)
    (tmp_path / "scripts").mkdir()
    shutil.copy(needs.ROOT / "scripts" / "generate", tmp_path / "scripts")
    return tmp_path


def generate(folder, *arguments):
    return subprocess.run(
        [*GENERATE, *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )


def test_committed_documents_are_up_to_date(checkout):
    done = generate(checkout, "--check")
    assert (done.returncode, done.stderr) == (0, "")


def test_check_names_each_document_that_is_stale_missing_or_left_over(checkout):
    page = checkout / "docs" / "messages.md"
    page.write_text(page.read_text() + "by hand\n")
    (checkout / "docs" / "schemas" / "Status.json").unlink()
    (checkout / "docs" / "schemas" / "Old.json").touch()
    done = generate(checkout, "--check")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "docs/messages.md: out of date (run make generate)",
        "docs/schemas/Status.json: out of date (run make generate)",
        "docs/schemas/Old.json: generated by nothing (run make generate)",
    ]
    assert generate(checkout).returncode == 0
    assert generate(checkout, "--check").returncode == 0
