"""Models onto this device: fetched, verified, kept, and fallen back from."""
