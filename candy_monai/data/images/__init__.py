"""Image files, read and written with the geometry that belongs to them.

Paths of NIfTI, NRRD, MetaImage, TIFF or picture files enter; tensors ``(C, *spatial)`` with an affine leave,
and the other way round. Images that belong together are aligned onto one grid or refused.
"""
