"""What every picture is made of: pixels, class colours, text and legends, Matplotlib figures without ``pyplot``.

Tensors, ids, texts and numbers enter; arrays of pixels, figures and PNG files leave.
"""
