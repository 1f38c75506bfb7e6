"""Run a script, and exit without waiting for gloo's threads, whose end now and then aborts a process.

``python -m tests.support.run_and_exit SCRIPT ARGUMENTS``
"""

import os
import runpy
import sys

if __name__ == "__main__":
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
