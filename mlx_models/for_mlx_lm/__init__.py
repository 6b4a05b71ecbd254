"""Where the MLX panel meets mlx_lm: model files that exports carry, and caches of either."""
