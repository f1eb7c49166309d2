"""Planning: derive everything that preprocessing, network and training need from a fingerprint.

Returns a plan and its explanation for a fingerprint, a memory size and a user's overrides. Reads no images.
"""
