"""The `ngd` command, which ends in one line if it is interrupted in the seconds that its imports take."""

import os
import signal
from types import FrameType


def main() -> None:
    """Import the command, and run it."""
    own = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # nohup has it ignored
    if own:
        signal.signal(signal.SIGINT, _leave)
    from ngd_timm.cli import main as run_command

    if own:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run_command()


def _leave(number: int, frame: FrameType | None) -> None:
    # an exception could end in the midst of an import that swallows it; nothing is open or written yet
    os.write(2, b"ngd: interrupted\n")
    os._exit(128 + number)
