"""Metrics of segmentations, with one stated policy for absent classes.

Inputs are logits or label maps and references; outputs are scores per case and class: Dice, IoU, surface distances.

The policy is nnU-Net's: a class that neither the prediction nor the reference contains has no score; it is NaN, and
left out of means. A class that only one of them contains scores 0. The soft Dice reported by the losses follows it,
too, except that it is 1 if there is nothing to measure, because a training step needs a finite number.
"""
