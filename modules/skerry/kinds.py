"""The settings of every kind of module, for who must check them without being that module.

The one place, besides `deploy`, that knows them all. It takes a module's settings and checks, which are
pure and import nothing heavy; never the module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from skerry.desired import nothing
from skerry.settings import ModuleSettings, Problem

NAMES = ("capture", "inference", "decision", "buffer", "uplink", "updater")


class Kind(NamedTuple):
    """What a kind of module is told."""

    settings: type[ModuleSettings]
    check: Callable[[Any], Sequence[Problem]]


def kind_of(name: str) -> Kind | None:
    """The settings type and the check of a kind; None for a kind that is not known here.

    Each is imported when it is first asked for: not every uplink has desired states.
    """
    if name == "capture":
        from skerry.capture.check import settings_problems as of_capture  # noqa: PLC0415 - see above
        from skerry.capture.settings import CaptureSettings  # noqa: PLC0415

        return Kind(CaptureSettings, of_capture)
    if name == "inference":
        from skerry.inference.settings import InferenceSettings  # noqa: PLC0415 - see above

        return Kind(InferenceSettings, nothing)
    if name == "decision":
        from skerry.decision.check import settings_problems as of_decision  # noqa: PLC0415 - see above
        from skerry.decision.settings import DecisionSettings  # noqa: PLC0415

        return Kind(DecisionSettings, of_decision)
    if name == "buffer":
        from skerry.buffer.settings import BufferSettings  # noqa: PLC0415 - see above

        return Kind(BufferSettings, nothing)
    if name == "uplink":
        from skerry.uplink.settings import UplinkSettings  # noqa: PLC0415 - see above

        return Kind(UplinkSettings, nothing)
    if name == "updater":
        from skerry.updater.settings import UpdaterSettings  # noqa: PLC0415 - see above

        return Kind(UpdaterSettings, nothing)
    return None
