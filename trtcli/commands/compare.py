"""``trtcli compare A B``: layer by layer; exit 3 when B is slower than the threshold allows."""

from __future__ import annotations

from trtcli.answer import answer
from trtcli.errors import PASSED, REGRESSION
from trtcli.log import Log
from trtcli.parse import Parsed
from trtcli.report.comparison import compare, comparison_json, comparison_lines, read_times


def run(parsed: Parsed, log: Log) -> int:
    """Print the comparison."""
    a, b = parsed.words
    threshold = parsed.get("threshold", 5.0)
    found = compare(read_times(a), read_times(b))
    answer(parsed, lambda: comparison_json(found, threshold), lambda: comparison_lines(found))
    return REGRESSION if found.percent > threshold else PASSED
