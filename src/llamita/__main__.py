"""python -m llamita: the command line."""

import os
import sys

from llamita.cli import main

status = main()
if "TORCHELASTIC_RUN_ID" in os.environ:
    # Started by torchrun. The interpreter's teardown can abort in a thread of PyTorch's ("terminate
    # called without an active exception"), and torchrun would report a finished run as failed.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
sys.exit(status)
