"""Planning: from a fingerprint to everything that preprocessing, network and training need.

A fingerprint, a memory and a user's overrides enter; a plan and its explanation leave. No image is read.
"""
