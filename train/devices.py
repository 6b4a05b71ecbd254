"""What can be bought: published rates, memory, bandwidth and rents of single devices.

Rates are dense products in FLOP/s, without sparsity. `float32` is that of plain float32, which is
what this project computes, not TF32. A rent is that of one device on demand, in dollars an hour,
on the day that stands beside it; None where none was found. Figures without a source are left out.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    name: str
    backend: str
    bfloat16: float  # FLOP/s
    float32: float  # FLOP/s
    memory: float  # bytes
    bandwidth: float  # bytes/s
    source: str
    rent: float | None = None  # dollars an hour
    rent_source: str = "none was found"


# The rents of RunPod's Secure Cloud were read from its page (runpod.io/pricing) by two collections:
_IN_OCTOBER = "RunPod Secure Cloud, 2026-10-07 (github.com/api-evangelist/runpod)"
_IN_NOVEMBER = "RunPod Secure Cloud, 2026-11-09 (github.com/datareceipts/data-receipts)"

DEVICES = {
    "h100": Device(
        "NVIDIA H100 SXM", "torch", 989.4e12, 66.9e12, 80e9, 3.35e12,
        "glennklockwood.com/garden/processors/h100, after NVIDIA's Hopper white paper",
        3.99, _IN_NOVEMBER),
    "h200": Device(
        "NVIDIA H200 SXM", "torch", 989.4e12, 66.9e12, 141e9, 4.8e12,
        "aiwiki.ai/wiki/nvidia_h200, after NVIDIA's data sheet: the H100's rates",
        4.59, _IN_OCTOBER),
    "b200": Device(
        "NVIDIA B200 HGX", "torch", 2250e12, 80e12, 180e9, 8e12,
        "glennklockwood.com/garden/processors/B200, at 1,000 W; memory as RunPod lists it",
        6.79, _IN_OCTOBER),
    "a100": Device(
        "NVIDIA A100 SXM 80GB", "torch", 312e12, 19.5e12, 80e9, 2.039e12,
        "NVIDIA's A100 data sheet, as in github.com/exo-explore/exo and huataihuang/cloud-atlas",
        1.79, _IN_NOVEMBER),
    "rtx4090": Device(
        "NVIDIA RTX 4090", "torch", 165.2e12, 82.6e12, 24e9, 1.008e12,
        "NVIDIA's Ada white paper, as in calwoo.github.io/notes (NVIDIA GPU Hardware)",
        0.29, "OpenRelay, 2026-09-20 (github.com/api-evangelist/openrelay)"),
    # Apple publishes no rate. Half precision has the units of float32 (metal-benchmarks).
    "m4-max": Device(
        "Apple M4 Max, 40-core GPU", "mlx", 18.03e12, 18.03e12, 128e9, 546e9,
        "rate: cpu-monkey.com, as in github.com/exo-explore/exo, and philipturner/metal-benchmarks;"
        " memory and bandwidth: Apple, 2024-10-30, as on macrumors.com"),
}
