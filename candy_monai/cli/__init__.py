"""The command line: one module per command, with ``add_parser`` and ``run``.

The inputs are arguments; the outputs are a call of ``recipes``, some printed lines and an exit code. Heavy packages are
imported only by ``run``, so that ``--help`` is fast.
"""
