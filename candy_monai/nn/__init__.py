"""Components around a network: losses, deep supervision, schedules, moving average, padding, slices of volumes.

The inputs are networks, logits ``(B, C, *spatial)`` and labels; the outputs are losses, schedules and modules. Existing
components of MONAI and PyTorch are used directly. Nothing here reads files or trains.
"""
