"""Parts around a network: losses, deep supervision, schedules, moving average, padding, slices of volumes.

Networks, logits ``(B, C, *spatial)`` and labels enter; losses, schedules and modules leave. What MONAI or PyTorch has
is used from there. Nothing here reads files or trains.
"""
