"""The shape of what goes in and comes out, for those who need it without the network."""

from __future__ import annotations

WIDTH, HEIGHT, STRIDE = 256, 192, 8
"""Input in pixels, and pixels to a cell in each direction."""

COLUMNS, ROWS = WIDTH // STRIDE, HEIGHT // STRIDE
CELLS = COLUMNS * ROWS
OUTPUTS = 9
"""cx, cy, w, h, objectness, three kinds, defect."""
