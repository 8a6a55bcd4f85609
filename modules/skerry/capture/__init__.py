"""Capture: cameras, files and scenes to frames in the frame store."""
