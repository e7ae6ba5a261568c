import platform

import pytest

from virnucpro.store import processor

AMD = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 17
model name\t: AMD EPYC

processor\t: 1
vendor_id\t: other
"""
ARM = "processor\t: 0\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd40\n"


@pytest.mark.parametrize(
    ("text", "middle"),
    [(AMD, "AuthenticAMD 25 17 "), (ARM, "0x41 0xd40 "), ("", ""), (None, "")],
    ids=["amd", "arm", "empty", "not there"],
)
def test_makers_and_models_tell_processors_apart(tmp_path, monkeypatch, text, middle):
    monkeypatch.setattr(processor, "_CPUINFO", tmp_path / "cpuinfo")
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    assert processor.processor_kind("AVX2") == f"cpu {platform.machine()} {middle}AVX2"
