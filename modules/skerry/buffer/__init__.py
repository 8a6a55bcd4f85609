"""Buffer: events to disk, and from there outbound until the far end has them."""
