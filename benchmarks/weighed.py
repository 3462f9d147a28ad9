"""Run a command, and say what it cost: `python -m benchmarks.weighed FILE COMMAND ...` writes it there as JSON.

Linux counts a process' peak from what it was forked from: the memory of a benchmark that starts one itself would be
counted with it. So this one, which is small, stands between the two. Ends as the command does.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

if __name__ == "__main__":
    _, status, usage = os.wait4(subprocess.Popen(sys.argv[2:]).pid, 0)
    told = {"cpu_s": usage.ru_utime + usage.ru_stime, "peak_mib": usage.ru_maxrss / 1024}
    Path(sys.argv[1]).write_text(json.dumps(told))
    sys.exit(os.waitstatus_to_exitcode(status) & 0xFF)
