"""These tests need a container engine and built images, so `make test-containers` alone collects them."""

import os

collect_ignore_glob = [] if os.environ.get("SKERRY_CONTAINERS") == "1" else ["*"]
if os.environ.get("SKERRY_ARM64") != "1":  # `make test-arm64`
    collect_ignore_glob.append("test_arm64.py")
