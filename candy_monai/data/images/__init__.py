"""Read and write image files with their geometry.

Converts NIfTI, NRRD, MetaImage, TIFF and picture files into tensors ``(C, *spatial)`` with an affine, and the reverse.
Images of one case are aligned onto one grid or refused.
"""
