"""`python -m skerry.decision`: one decision module as a process, settings from `SKERRY_SETTINGS`."""

import gc
import sys

from skerry.decision.check import settings_problems
from skerry.decision.module import run
from skerry.decision.settings import DecisionSettings
from skerry.service import main

gc.freeze()  # what was imported stays: a full collection need not look at it, which took 10 ms and more
sys.setswitchinterval(0.001)  # the bus sends an event while rules judge the next result; default 5 ms
sys.exit(main("decision", DecisionSettings, run, settings_problems))
