"""candy_monai: from a folder of labelled medical images to a trained, checked and deployable MONAI model."""
