"""What `mlx.nn.quantize` leaves of our models."""

import mlx.core as mx
import mlx.nn as nn


def matrix(linear):
    """W (out, in) of x Wᵀ, quantized or not."""
    if not isinstance(linear, nn.QuantizedLinear):
        return linear.weight
    return mx.dequantize(linear.weight, linear.scales, linear.get("biases"), linear.group_size,
                         linear.bits, linear.mode)
