"""How tests start the program: as a user would, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

# -P: like a console script, it does not look for modules in the current folder.
PROGRAM = ("-P", "-m", "leanmark.cli")


def leanmark(
    *arguments: str, cwd: Path, python: str = sys.executable, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line and wait for it."""
    return subprocess.run(
        [python, *PROGRAM, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
