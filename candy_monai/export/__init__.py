"""Export trained experiments to files that run where candy_monai is not installed.

Experiment folders are converted to a MONAI Bundle, or to a network in another format with a description of its use.
`targets` lists the formats; each is written by a module, and `parity` compares the written files with the experiment on
real cases before they are moved to their final place.
"""
