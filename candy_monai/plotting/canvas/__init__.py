"""Components of all pictures: pixels, class colours, text and legends, Matplotlib figures without ``pyplot``.

The inputs are tensors, ids, texts and numbers; the outputs are arrays of pixels, figures and PNG files.
"""
