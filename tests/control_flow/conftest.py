"""A device on which memory that is free is overwritten."""

from __future__ import annotations

import ctypes

import pytest

from runtime.heap import Heap
from tests.harness.memory import OverwritingDevice


@pytest.fixture(scope="module")
def cpu():
    return OverwritingDevice()


@pytest.fixture(autouse=True)
def what_is_free_is_overwritten(monkeypatch, request):
    """On the CPU device work runs when it is enqueued: memory that is given back before its last reader ran shows as wrong results."""
    if request.node.get_closest_marker("gpu"):
        return
    take, drop = Heap.take, Heap.drop

    def taken(heap, size):
        address = take(heap, size)
        ctypes.memset(address, 0xFF, size)  # NaN, and large negative numbers
        return address

    def dropped(heap, address):
        block = heap._at(address)
        drop(heap, address)
        if block is not None and not block.holders:
            ctypes.memset(block.start, 0xFF, block.end - block.start)

    monkeypatch.setattr(Heap, "take", taken)
    monkeypatch.setattr(Heap, "drop", dropped)
