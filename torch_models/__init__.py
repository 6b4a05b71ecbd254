"""The PyTorch panel: the only folder that imports torch."""
