"""How tests start the program: as a user would, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path


def leanmark(
    *arguments: str, cwd: Path, python: str = sys.executable, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line and wait for it."""
    return subprocess.run(
        [python, "-m", "leanmark.cli", *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
