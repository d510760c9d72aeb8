"""The command `duckvec`: a SQL prompt with the functions loaded, and checks."""

from __future__ import annotations

import sys


def main() -> None:
    """Run what the command line asks for; the entry point of `duckvec`."""
    try:
        from duckvec.shell.commands import duckvec
    except ImportError as error:
        sys.exit(f'the shell needs {error.name}: pip install "duckvec[shell]"')
    duckvec()
