"""Drawings of one case: a picture unchanged, a volume as three planes and a surface.

The inputs are an image and its labels; the outputs are previews, panels, overlays and figures.
"""
