"""Networks that MONAI does not have, in modules that a MONAI Bundle can carry: they import only PyTorch and MONAI."""
