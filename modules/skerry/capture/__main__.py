"""`python -m skerry.capture`: capture as a process of its own."""

import sys

from skerry.capture.check import settings_problems
from skerry.capture.module import run
from skerry.capture.settings import CaptureSettings
from skerry.service import main

sys.exit(main("capture", CaptureSettings, run, settings_problems))
