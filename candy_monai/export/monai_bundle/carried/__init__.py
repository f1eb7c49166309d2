"""Modules that a bundle carries in ``scripts/``, in addition to those of ``candy_monai.transforms``.

They import only PyTorch and MONAI. Nothing here imports them: they are copied.
"""
