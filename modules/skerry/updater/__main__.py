"""`python -m skerry.updater`: the updater as a process, settings from `SKERRY_SETTINGS`."""

import sys

from skerry.service import main
from skerry.updater.module import run
from skerry.updater.settings import UpdaterSettings

sys.exit(main("updater", UpdaterSettings, run))
