import sys

from skerry.cli import main

sys.exit(main())
