"""Order, delivery and timers never depend on the wall clock, so few places may read it, and each is known."""

import re
from pathlib import Path

import pytest

import skerry

ROOT = Path(skerry.__file__).parent
READS = re.compile(r"\btime\.time(_ns)?\(|datetime\.(now|today|utcnow)|date\.today|CLOCK_REALTIME")
KNOWN = {
    "clock.py": 1,  # what people and far ends read: RFC 3339
    "buffer/module.py": 1,  # the stamp of a commit, beside monotonic time
    "uplink/module.py": 2,  # hours of the day, and when credentials end; once the clock is synchronised
    "uplink/links/http.py": 1,  # a Retry-After that is a date, where the answer has no Date of its own
}


@pytest.mark.parametrize("folder", ["", "buffer", "uplink", "uplink/links", "decision"])
def test_the_wall_clock_is_read_only_where_it_is_meant(folder: str) -> None:
    for path in sorted((ROOT / folder).glob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        found = len(READS.findall(path.read_text(encoding="utf-8")))
        assert found == KNOWN.get(name, 0), f"{name} reads the wall clock {found} times"
