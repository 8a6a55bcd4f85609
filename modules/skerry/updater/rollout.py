"""What comes next for a slot: from what is desired, what is here, and what inference says. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from skerry.messages import SlotUse
from skerry.models.slots import Slots
from skerry.trust.packages import TrustedPackage, order
from skerry.updater.settings import SlotSettings

Step = Literal["stay", "fetch", "offer", "wait", "confirm", "again", "fail", "withdraw", "roll_back", "heal"]
_OVER = ("refused", "rolled_back")


@dataclass(frozen=True)
class Scene:
    """All that is known of a slot.

    Attributes:
        wanted: what the site says.
        slots: what the store holds.
        use: what inference says; None before it has said anything.
        chosen: the package that is desired, vouched for and admitted; None where there is none.
        here: digests of the packages that the store has.
        failed: digest to why it failed on this device.
        attempt: which try of the offered package goes on.
        fresh: the current package was confirmed so lately that drift and failures are laid at its door.
        drifted: what drifted under the package before already.
    """

    wanted: SlotSettings
    slots: Slots
    use: SlotUse | None = None
    chosen: TrustedPackage | None = None
    here: frozenset[str] = frozenset()
    failed: Mapping[str, str] = field(default_factory=dict)
    attempt: int = 0
    fresh: bool = False
    drifted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Next:
    """What to do.

    Attributes:
        step: what.
        digest: of the package that it is about.
        reason: why.
    """

    step: Step
    digest: str = ""
    reason: str = ""


def next_step(scene: Scene) -> Next:
    """What to do for a slot now.

    `stay`: nothing is under way. `wait`: inference has it in its hands. `again`: offer it once more, after a
    while. `fail`: it is not tried here any more. `heal`: what the store names as current cannot be served.
    """
    trial = scene.slots.trial
    if trial is not None:
        return _of_trial(scene, trial)
    if scene.use is None:
        return Next("stay", reason="inference has not said yet what serves")
    why_back = _why_back(scene, scene.use)
    if why_back:
        return Next("roll_back", scene.slots.current or "", why_back)
    new = _new(scene, scene.use)
    if new.step != "stay" or new.reason:
        return new
    return _of_current(scene, scene.use)


def _of_trial(scene: Scene, trial: str) -> Next:
    if scene.chosen is None or _hex(scene.chosen) != trial:
        return Next("withdraw", trial, "it is not what is desired any more")
    use = scene.use
    if use is None or use.offered != trial:
        return Next("wait", trial)
    if use.digest == trial and use.step == "confirmed":
        return Next("confirm", trial, use.reason)
    if use.attempt != scene.attempt:
        return Next("wait", trial)
    if use.step in _OVER:
        return Next("fail" if use.final else "again", trial, f"{use.step}: {use.reason}")
    return Next("wait", trial, use.reason)


def _new(scene: Scene, use: SlotUse) -> Next:
    chosen = scene.chosen
    if chosen is None or _hex(chosen) == scene.slots.current:
        return Next("stay")
    digest = _hex(chosen)
    if scene.slots.current is None and not scene.wanted.version and not _newer(chosen, use.model):
        return Next("stay")
    if digest in scene.failed and not _forced(scene.wanted, digest):
        return Next("stay", digest, f"it failed here: {scene.failed[digest]}")
    return Next("offer" if digest in scene.here else "fetch", digest)


def _of_current(scene: Scene, use: SlotUse) -> Next:
    """Whether inference serves what the store names."""
    current = scene.slots.current or ""
    if use.digest == current:
        return Next("stay")
    if use.passed_over and use.offered != current:
        return Next("heal", current, use.passed_over)
    if (use.offered, use.attempt) == (current, scene.attempt) and use.step in _OVER:
        return Next("heal" if current else "again", current, f"{use.step}: {use.reason}")
    return Next("wait", current)


def _why_back(scene: Scene, use: SlotUse) -> str:
    """Why the current package is to be gone back from; empty where it is not."""
    ours = use.digest == scene.slots.current  # never the bundled one, which has no digest
    if not (scene.fresh and ours):
        return ""
    if use.failing:
        return f"it fails soon after it was confirmed: {use.failing}"
    new = [what for what in use.drift if what not in scene.drifted]
    if not (scene.wanted.rollback_on_drift and new):
        return ""
    return f"drift soon after it was confirmed: {', '.join(new)}"


def _newer(chosen: TrustedPackage, bundled: str) -> bool:
    """Whether a package is newer than the bundled one, name@version; another model always is."""
    name, _, version = bundled.rpartition("@")
    if name != chosen.name:
        return True
    try:
        return order(chosen.version) > order(version)
    except ValueError:  # a bundled package may have any version
        return True


def _forced(wanted: SlotSettings, digest: str) -> bool:
    return bool(wanted.force) and digest.startswith(wanted.force)


def _hex(package: TrustedPackage) -> str:
    return package.manifest.digest
