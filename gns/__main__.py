"""``python -m gns``: what a policy is, and what a schedule would act on. See :mod:`gns.tools.command_line`."""

import os
import sys

from gns.tools.command_line import main

if __name__ == "__main__":
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)
