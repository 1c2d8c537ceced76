"""The machine: devices that are there, memory measured anew for each stage."""

import pytest
import torch

from stemma.core import device
from stemma.core.errors import UsageError


def test_device_that_is_not_there_is_refused():
    assert device.pick("cpu").type == "cpu"
    for name in ("cuda:77", "tpu", ""):
        with pytest.raises(UsageError, match="device"):
            device.pick(name)


def test_peak_memory_is_seen_and_forgotten():
    device.forget_peak_memory()
    before = device.peak_memory_bytes()
    block = bytearray(64 << 20)
    block[::4096] = b"x" * len(block[::4096])
    held = device.peak_memory_bytes()
    del block
    device.forget_peak_memory()
    assert held - before > 48 << 20
    assert device.peak_memory_bytes() < held - (32 << 20)


def test_machine_facts_name_no_host_and_no_folder():
    facts = device.machine() | device.versions()
    assert facts["cores"] >= 1 and facts["torch"]
    assert bool(facts["accelerator"]) == torch.cuda.is_available()
    assert not any("/home" in str(v) or "/root" in str(v) for v in facts.values())
