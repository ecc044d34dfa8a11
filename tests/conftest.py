"""Shared by all tests: GPU tests are skipped where there is no GPU."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

from trtcli.host import cuda_version

# A busy machine draws examples slowly; that says nothing about the code.
settings.register_profile("trtcli", suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("trtcli")

# Reports are compared as text: no colours, whatever the terminal that runs the tests.
os.environ["NO_COLOR"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if cuda_version():
        return
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
