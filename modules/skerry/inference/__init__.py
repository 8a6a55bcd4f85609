"""Inference: frames to detections, through a model package and a runtime."""
