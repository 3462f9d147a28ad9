"""`python -m tests.faults`: see tests.faults.schedule.

A module of its own, since the processes of the stages would import the one that was started.
"""

import sys

if __name__ == "__main__":
    from tests.faults.schedule import main

    sys.exit(main())
