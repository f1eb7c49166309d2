"""How good a segmentation is, with one stated policy for absent classes.

Logits or label maps and references enter; scores of each case and class leave: Dice, IoU, surface distances.

The policy, nnU-Net's: a class that neither the prediction nor the reference contains has no score; it is NaN, and means
leave it out. A class that only one of them contains scores 0. The soft Dice that the losses report follows it too, but
for being 1 where nothing at all is left to measure, because a training step needs a finite number.
"""
