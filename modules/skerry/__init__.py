"""Skerry: camera AI at the edge that loses nothing when the link drops.

Five modules, each a process, that meet only on an MQTT bus (and, for pixels, in the frame store):
capture, inference, decision, buffer, uplink. What crosses the bus is in `skerry.messages`, every
topic is a line in `skerry.channels`, and what all modules share is in `skerry.service`.
"""

__version__ = "0.1.0"
