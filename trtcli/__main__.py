"""``trtcli``, and ``python -m trtcli``: the process around :func:`trtcli.cli.main`."""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until a command runs: an interrupted import has nothing to say

from trtcli import process
from trtcli.cli import main


def run() -> int:
    """Run the command line of this process and return its exit code."""
    process.prepare_streams()
    process.prepare_signals()
    return main()


if __name__ == "__main__":
    raise SystemExit(run())
