"""Judging whole transits: what the answers on one part, picture after picture, add up to.

A site decides on a part from all pictures that show it, so this is what the demo's rules rest on. Each
detection is given to the part that it overlaps: a perfect tracker, which leaves the detector to judge.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from demo_model.package import Exported
from demo_model.samples import SHOWN, WHOLE, shrink, to_rows
from demo_model.scoring import match
from skerry.capture.scene import KINDS, Scene

FPS = 15.0
_ENOUGH = 25


@dataclass
class Transit:
    """One part on its way through the picture; a list holds a value a picture."""

    kind: str
    defect: str
    shown: int = 0
    """Pictures that show a quarter of it or more."""
    found: int = 0
    right_kind: int = 0
    doubts: list[float] = field(default_factory=list)
    """p_defect where it is whole and found."""


@dataclass(frozen=True)
class TransitFigures:
    """Over all parts that were whole in at least 25 pictures."""

    parts: int
    defective: int
    least_found: float
    """Smallest share, over parts, of the pictures that show a part in which it was found."""
    wrong_kind: int
    """Parts of which any picture gave another kind."""
    least_flagged: float
    """Smallest share, over defective parts, of pictures with p_defect at or above the threshold."""
    most_flagged: float
    """Largest share, over sound parts."""
    wrong_verdicts: int
    """Parts on whose defect the majority of their pictures is wrong."""
    spurious: int
    """Detections at or above the threshold that overlap no part."""
    pictures: int


def judge(
    exported: Exported, seeds: Iterable[int], seconds: float, threshold: float, defect_threshold: float
) -> TransitFigures:
    """Follows every part of the demo's scene through `seconds` of each seed, at FPS."""
    transits: dict[tuple[int, int], Transit] = {}
    spurious = pictures = 0
    for seed in seeds:
        scene = Scene(seed)
        for number in range(int(seconds * FPS)):
            spurious += _add_picture(transits, exported, scene, number / FPS, threshold)
            pictures += 1
    return _figures(list(transits.values()), defect_threshold, spurious, pictures)


def _add_picture(
    transits: dict[tuple[int, int], Transit], exported: Exported, scene: Scene, t_s: float, threshold: float
) -> int:
    """Adds what one picture says of each part; returns how many detections found none."""
    views = scene.truth(t_s)
    rows = to_rows(views)[: len(views)]
    found = exported.find(shrink(scene.render(t_s))[None], threshold)[0]
    hits = match(found.boxes, found.scores, rows)
    for view in views:
        transit = transits.setdefault((scene.seed, view.id), Transit(view.kind, view.defect or ""))
        transit.shown += view.visible >= SHOWN
    for kind, p_defect, hit in zip(found.kinds, found.defects, hits, strict=True):
        if hit >= 0 and views[hit].visible >= SHOWN:
            transit = transits[scene.seed, views[hit].id]
            transit.found += 1
            transit.right_kind += KINDS[kind] == transit.kind
            if views[hit].visible >= WHOLE:
                transit.doubts.append(float(p_defect))
    return int((hits < 0).sum())


def _figures(
    transits: list[Transit], defect_threshold: float, spurious: int, pictures: int
) -> TransitFigures:
    whole = [one for one in transits if len(one.doubts) >= _ENOUGH]
    flagged: dict[bool, list[float]] = defaultdict(list)
    for one in whole:
        flagged[bool(one.defect)].append(float(np.mean(np.asarray(one.doubts) >= defect_threshold)))
    return TransitFigures(
        parts=len(whole),
        defective=len(flagged[True]),
        least_found=min(one.found / one.shown for one in whole),
        wrong_kind=sum(one.right_kind < one.found for one in whole),
        least_flagged=min(flagged[True]),
        most_flagged=max(flagged[False]),
        wrong_verdicts=sum(f < 0.5 for f in flagged[True]) + sum(f >= 0.5 for f in flagged[False]),
        spurious=spurious,
        pictures=pictures,
    )
