"""Uplink: the one module that talks to the far end."""
