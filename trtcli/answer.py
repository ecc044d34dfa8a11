"""What a command answers on standard output: lines for people, or with ``--json`` one object for programs."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Callable, Sequence
from typing import Any

from trtcli.files import json_text
from trtcli.log import printable
from trtcli.parse import Parsed


def answer(parsed: Parsed, value: Callable[[], Any], lines: Callable[[], Sequence[str]]) -> None:
    """Print the JSON ``value``, or the ``lines``; only what is wanted is made.

    On a standard output that is not UTF-8, other characters than ASCII's are escaped as JSON has it.
    """
    if parsed.get("json"):
        print(json_text(value(), ascii_only=codecs.lookup(sys.stdout.encoding or "utf-8").name != "utf-8"))
    else:
        print(printable("\n".join(lines())))
