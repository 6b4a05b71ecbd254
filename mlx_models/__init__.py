"""The MLX panel: the only folder that imports mlx. Prepares the process before the import."""

import ctypes
import os
import platform
import sys

# Full float32 products on devices that would otherwise take TF32; the house compares numbers.
os.environ.setdefault("MLX_ENABLE_TF32", "0")

BLAS, openblas = "Accelerate", None
if platform.system() == "Linux":
    # MLX's Linux wheel links the reference BLAS, 40 times slower; the symbols loaded first win.
    try:
        openblas = ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)
        BLAS = "OpenBLAS"
    except OSError:
        BLAS = "reference"
        print("MLX runs without OpenBLAS here, its products 40 times slower: sudo apt-get install "
              "libopenblas0", file=sys.stderr)
