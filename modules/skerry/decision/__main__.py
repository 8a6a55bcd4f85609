"""One decision module as a process; settings from `SKERRY_SETTINGS`."""

import sys

from skerry.decision.module import run
from skerry.decision.settings import DecisionSettings
from skerry.service import main

if __name__ == "__main__":
    sys.exit(main("decision", DecisionSettings, run))
