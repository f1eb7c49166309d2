"""One case, drawn: a picture as it is, a volume as three planes and a surface.

An image and its labels enter; previews, panels, overlays and figures leave.
"""
