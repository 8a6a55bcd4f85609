"""`python -m skerry.buffer`: the buffer as a process, settings from `SKERRY_SETTINGS`."""

import sys

from skerry.buffer.module import run
from skerry.buffer.settings import BufferSettings
from skerry.service import main

sys.exit(main("buffer", BufferSettings, run))
