"""``trtcli compare A B``: layer by layer; exit 3 when B is slower than the threshold allows."""

from __future__ import annotations

from trtcli.errors import PASSED, REGRESSION
from trtcli.files import print_json
from trtcli.log import Log
from trtcli.parse import Parsed
from trtcli.report.comparison import compare, comparison_json, comparison_lines, read_times


def run(parsed: Parsed, log: Log) -> int:
    """Print the comparison."""
    a, b = parsed.words
    threshold = parsed.get("threshold", 5.0)
    found = compare(read_times(a), read_times(b))
    if parsed.get("json"):
        print_json(comparison_json(found, threshold))
    else:
        print("\n".join(comparison_lines(found)))
    return REGRESSION if found.percent > threshold else PASSED
