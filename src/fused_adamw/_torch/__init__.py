"""Shared code of the optimizers for PyTorch; with torch.py, the only importer of torch."""
