"""How good a segmentation is, with one stated policy for absent classes."""
