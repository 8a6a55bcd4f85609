"""Pulling from a registry that lies: nothing of it is in the layout."""

from pathlib import Path

import pytest

from model_folders import package_folder, packed
from registry_far_end import RegistryFarEnd
from skerry.errors import PackageError
from skerry.models import layout, oci
from skerry.models.layout import Layout
from skerry.models.pull import pull
from skerry.models.references import Reference
from skerry.updater.registry import Registry
from skerry.updater.web import Patience, Web


def test_another_package_than_the_digest_says_is_refused(tmp_path: Path) -> None:
    good = packed(tmp_path).listing.digest
    other = layout.pack(package_folder(tmp_path / "other", "6.6.6"), tmp_path / "layout").listing.digest
    with RegistryFarEnd(tmp_path / "layout") as far:
        far.manifests |= {good, other}
        registry = Registry(far.url, "models/tiny", Web(Patience(20)))
        wanted = Reference(far.url, "models/tiny", "latest", f"sha256:{good}")
        assert [p.config.version for p in pull(registry, wanted, tmp_path / "out").packages] == ["1.0.0"]
        far.tags[f"sha256:{good}"] = other
        with pytest.raises(PackageError, match="expected sha256"):
            pull(registry, wanted, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_file_that_is_another_is_refused_and_the_package_not_named(tmp_path: Path) -> None:
    listing = packed(tmp_path, size=100_000).listing
    weights = next(f.blob for f in listing.files if f.blob.size == 100_000)
    path = tmp_path / "layout" / "blobs" / "sha256" / weights.digest
    path.write_bytes(bytes(100_000))
    with RegistryFarEnd(tmp_path / "layout") as far:
        far.manifests.add(listing.digest)
        registry = Registry(far.url, "models/tiny", Web(Patience(20)))
        with pytest.raises(PackageError, match="expected that sha256"):
            pull(registry, Reference(far.url, "models/tiny", "latest"), tmp_path / "out")
    assert not (tmp_path / "out" / oci.INDEX_FILE).exists()
    assert not (tmp_path / "out" / "blobs" / "sha256" / weights.digest).exists()
    assert Layout(tmp_path / "layout").entries()
