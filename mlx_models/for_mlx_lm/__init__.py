"""Model files for mlx_lm: copied into an exported folder, where they run without the rest."""
