"""Synthetic images inside training loops: NumPy callable, PyTorch, MONAI, TorchIO.

Each module imports its library when it is imported itself: `from csg_edge.integrations.monai import RandCsgEdged`.
"""
