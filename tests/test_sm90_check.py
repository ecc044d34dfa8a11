"""The sm_90a kernels' benchmark, as far as it goes without a GPU: its groups name kernels that can be compiled."""

from __future__ import annotations

import pytest

from benchmarks.gpu.sm90.groups import GROUPS, units_of


@pytest.mark.parametrize("group", [name for name in GROUPS if name.startswith("check")])
def test_a_group_of_checks(group: str) -> None:
    everything = units_of(group, "")
    assert len(everything) > 10 and set(units_of(group, f"{group} .*1")) < set(everything)
