"""`python -m skerry.uplink`: the uplink as a process, settings from `SKERRY_SETTINGS`."""

import sys

from skerry.service import main
from skerry.uplink.module import run
from skerry.uplink.settings import UplinkSettings

sys.exit(main("uplink", UplinkSettings, run))
