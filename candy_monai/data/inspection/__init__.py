"""Inspection: check and measure every case of a dataset once.

The input is a dataset; the outputs are problems, warnings and a fingerprint. Results are stored by case.
"""
