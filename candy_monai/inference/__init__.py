"""From an image to a label map in the geometry of the scan.

An experiment's folder (or a network) and images of any spacing and orientation enter; logits and label maps on the
images' own grids leave, as arrays or files. Large images are run window by window.
"""
