from pathlib import Path

import pytest

from publisher import NOW, Publisher, Refused, package
from skerry.trust.device import Trust
from skerry.trust.refusals import Untrusted
from skerry.trust.sources import Memory, Source
from skerry.trust.times import Running


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Publisher:
    return Publisher(tmp_path_factory.mktemp("published") / "repository").add(package("1.0.0"))


@pytest.fixture
def publisher(tmp_path: Path, published: Publisher) -> Publisher:
    """Who has published version 1.0.0; of each test its own."""
    return published.copied(tmp_path / "repository")


@pytest.fixture
def trust(tmp_path: Path, publisher: Publisher) -> Trust:
    """A device that has seen version 1.0.0."""
    device = Trust(tmp_path / "state", publisher.anchor)
    assert device.refresh(publisher.source, NOW, clock_trusted=True) == (package("1.0.0"),)
    return device


@pytest.fixture
def refused(tmp_path: Path, publisher: Publisher, trust: Trust) -> Refused:
    """Refresh, be refused for one reason, and find everything as it was, on disk and after a restart."""

    def check(
        kind: type[Untrusted],
        source: Source | dict[str, bytes],
        now: float = NOW,
        clock_trusted: bool = True,
        running: Running | None = None,
    ) -> Untrusted:
        before = {p.name: p.read_bytes() for p in (tmp_path / "state").iterdir()}
        known = trust.packages
        with pytest.raises(kind) as caught:
            trust.refresh(Memory(source) if isinstance(source, dict) else source, now, clock_trusted, running)
        assert type(caught.value) is kind, caught.value
        assert kind.attack in str(caught.value)
        assert {p.name: p.read_bytes() for p in (tmp_path / "state").iterdir()} == before
        assert trust.packages == known == Trust(tmp_path / "state", publisher.anchor).packages
        return caught.value

    return check
