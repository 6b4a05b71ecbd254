"""OpenBLAS computes with the kernels of this processor, whatever it takes it for."""

import ctypes
import platform
from pathlib import Path

import pytest

import mlx_models

INTEL = "vendor_id\t: GenuineIntel\nflags\t\t: fpu {}\nbugs\t\t: none\n"


@pytest.mark.parametrize(("cpuinfo", "found"), [
    (INTEL.format("avx2 avx512f avx512bw"), "SKYLAKEX"),
    (INTEL.format("avx2 fma"), "HASWELL"),
    (INTEL.format("avx"), None),
    (INTEL.format("avx2").replace("GenuineIntel", "AuthenticAMD"), None),
    ("", None),
])
def test_kernels_of_a_processor(cpuinfo: str, found: str | None) -> None:
    assert mlx_models.kernels(cpuinfo) == found


@pytest.mark.skipif(mlx_models.openblas is None or platform.machine() != "x86_64",
                    reason="OpenBLAS on x86-64 alone")
def test_no_kernels_of_2004() -> None:
    name = mlx_models.openblas.openblas_get_corename
    name.restype = ctypes.c_char_p
    assert "avx2" not in Path("/proc/cpuinfo").read_text() or name() != b"Prescott"
