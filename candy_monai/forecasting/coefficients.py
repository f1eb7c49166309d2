"""What the features of a curve say about its future, learned from real runs.

Written by ``benchmarks/curves/calibrate.py`` from 237 real runs; not to be edited by hand.
"""

FEATURES = {
    "learning left": (-1.5782, 1.8161, -0.17747, 0.2054, 0.29406),
    "rise": (-2.8936, 1.7512, -0.11754, 0.02355, -0.15022),
    "late rise by time": (-2.933, 1.8227, -0.50588, 0.29264, -0.15573),
    "rises or falls": (0.34031, 0.6397, -0.2007, 0.10959, 0.25948),
    "late rise": (0.68376, 1.4365, -0.08684, -0.20598, 0.15575),
    "noise": (-3.8588, 1.0031, 0.19129, -0.18571, -0.25604),
    "since best": (0.2784, 0.33997, 0.24476, 0.17411, 0.1199),
    "below best": (-2.372, 1.393, -0.46249, 0.49756, 0.22592),
    "late records": (-3.3249, 1.3574, -0.37719, 0.31256, 0.0522),
    "headroom": (0.61468, 1.2467, -0.4906, 0.20525, 0.15845),
    "scores": (3.1586, 0.67975, 0.20439, -0.1577, -0.17741),
    "share": (0.53132, 0.24768, 0.13062, -0.26509, -0.28232),
    "rate decayed": (0.41065, 0.32571, 0.27913, 0.01868, -0.1668),
    "loss": (0.4725, 0.49924, -0.01236, -0.11496, -0.19027),
    "promised none": (-0.85427, 3.121, -0.95034, 0.3978, 0.15491),
    "promised middle": (-2.9027, 1.5322, 0.71152, -0.84701, -0.23595),
    "promised spread": (0.51284, 0.3546, -0.09941, -0.27169, -0.50432),
}
"""Of each feature: mean, standard deviation, and its weights for the chance of no gain, its middle and its spread."""
CONSTANTS = (0.81226, 0.54987, 0.79782)
"""Of these three numbers."""
WIDENING = ((1.9, 1.7, 1.7), (1.2, 1.4, 1.4))
"""At a quarter, a half and three quarters of a run: of other scores, and of losses."""
LEAST_CHANCE = (0.524, 0.181)
"""Of a gain, for each share of the learning that is left: of other scores, and of losses."""
