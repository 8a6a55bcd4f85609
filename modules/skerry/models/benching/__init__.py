"""What a package costs on a class of devices: judged, attested, listed. On no device itself."""
