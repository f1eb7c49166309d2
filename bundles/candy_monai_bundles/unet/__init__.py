"""The U-Net of MONAI as a ready-made trainer and predictor, 2-D and 3-D."""
