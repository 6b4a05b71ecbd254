"""The MLX panel: the only folder that imports mlx. Prepares the process before the import."""

import ctypes
import os
import platform
import sys
from pathlib import Path

# Full float32 products on devices that would otherwise take TF32; the house compares numbers.
os.environ.setdefault("MLX_ENABLE_TF32", "0")



def kernels(cpuinfo):
    """The name of OpenBLAS's kernels for an Intel processor that is described so; none for others.
    An OpenBLAS older than the processor takes it for one of 2004: a fifth of the speed."""
    flags = cpuinfo.partition("\nflags")[2].partition("\n")[0].split()
    if "GenuineIntel" not in cpuinfo or "avx2" not in flags:
        return None
    return "SKYLAKEX" if "avx512bw" in flags else "HASWELL"


BLAS, openblas = "Accelerate", None
if platform.system() == "Linux":
    if (found := kernels(Path("/proc/cpuinfo").read_text())) is not None:
        os.environ.setdefault("OPENBLAS_CORETYPE", found)
    # MLX's Linux wheel links the reference BLAS, 40 times slower; the symbols loaded first win.
    try:
        openblas = ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)
        BLAS = "OpenBLAS"
    except OSError:
        BLAS = "reference"
        print("MLX runs without OpenBLAS here, its products 40 times slower: sudo apt-get install "
              "libopenblas0", file=sys.stderr)
