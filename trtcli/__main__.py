"""``python -m trtcli``."""

from trtcli.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
