"""Where the MLX panel meets mlx_lm: model files, copied into an exported folder, where they run
without the rest; the caches of both."""
