import sys

from skerry.inference.module import run
from skerry.inference.settings import InferenceSettings
from skerry.service import main

sys.exit(main("inference", InferenceSettings, run))
