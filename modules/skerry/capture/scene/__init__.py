"""The demo scene: a conveyor belt for part inspection, drawn on the spot, with exact truth.

scene = Scene(seed=1)
picture = scene.render(t_s=12.5)     # (480, 640, 3) uint8 BGR
views = scene.truth(t_s=12.5)        # every part in it
"""

from skerry.capture.scene.layout import KINDS, Defect, Kind, Part
from skerry.capture.scene.motion import Stop
from skerry.capture.scene.tally import Crossing, ZoneCount, crossings, in_zone, zone_counts
from skerry.capture.scene.view import Box, Conditions, PartView, Scene

__all__ = [
    "KINDS",
    "Box",
    "Conditions",
    "Crossing",
    "Defect",
    "Kind",
    "Part",
    "PartView",
    "Scene",
    "Stop",
    "ZoneCount",
    "crossings",
    "in_zone",
    "zone_counts",
]
