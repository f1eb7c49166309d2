"""Modules that a bundle carries in ``scripts/``, beside those of ``candy_monai.transforms``.

They import only PyTorch and MONAI. Nothing here imports them: they are copied.
"""
