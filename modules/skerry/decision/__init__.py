"""Decision: detections to events, through a tracker and rules."""
