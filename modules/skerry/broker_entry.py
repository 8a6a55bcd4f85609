"""What the broker's image starts: Mosquitto, with files that are mounted or with texts that it is told.

A platform that brings no files beside an image (Azure IoT Edge, AWS Greengrass) tells the broker in its
environment what would be in them: neither configuration nor access rules are secret. It stands alone, as
`healthcheck` does: the image of the bus has these two files and no other of ours.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

CONFIGURATION, RULES = "SKERRY_BROKER_CONF", "SKERRY_BROKER_ACL"
"""Names of the texts in the environment."""
MADE = "/tmp/skerry"  # noqa: S108 - the container's own, in memory: the one place that it may write to
"""Where the texts become `mosquitto.conf` and `acl`."""
_MOUNTED = "/etc/skerry/mosquitto.conf"
_MOSQUITTO = "/usr/sbin/mosquitto"


def configuration(environment: Mapping[str, str], folder: Path) -> str:
    """The path of the configuration to start with; texts of the environment are written first.

    Args:
        environment: of the process. Without a configuration in it, the mounted one counts.
        folder: where to write; made if missing. Whoever else is in the container cannot read it.

    Raises:
        OSError: the folder cannot be written.
    """
    text = environment.get(CONFIGURATION, "")
    if not text:
        return _MOUNTED
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, content in (("mosquitto.conf", text), ("acl", environment.get(RULES, ""))):
        path = folder / name
        path.write_text(content, encoding="utf-8")
        path.chmod(0o600)
    return str(folder / "mosquitto.conf")


def main() -> int:
    """Become the broker, which is the container's first process then. Returns only on failure."""
    try:
        path = configuration(os.environ, Path(MADE))
        os.execv(_MOSQUITTO, [_MOSQUITTO, "-c", path, *sys.argv[1:]])  # noqa: S606 - no shell is wanted
    except OSError as error:
        print(f"broker: {error.filename or _MOSQUITTO}: {error.strerror}", file=sys.stderr)
    return 69


if __name__ == "__main__":
    sys.exit(main())
