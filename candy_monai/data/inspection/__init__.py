"""Inspection: check every case of a dataset once, and measure it.

A dataset enters; problems, warnings and a fingerprint leave. What was found out is kept by case.
"""
