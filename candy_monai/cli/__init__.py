"""The command line: one module a command, with ``add_parser`` and ``run``.

Arguments enter; a call of ``recipes``, a few printed lines and an exit code leave. Heavy packages are imported by
``run`` only, so that ``--help`` is immediate.
"""
