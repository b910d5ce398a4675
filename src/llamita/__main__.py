"""python -m llamita: the command line."""

import sys

from llamita.cli import main

sys.exit(main())
