import subprocess
import sys

import talaria


def test_the_command_says_its_version() -> None:
    done = subprocess.run([sys.executable, "-m", "talaria.cli", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"talaria {talaria.__version__}\n"
