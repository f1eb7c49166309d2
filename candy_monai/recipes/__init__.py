"""Complete tasks in one call, as on the command line: train, resume, cross-validate, predict, inspect.

The inputs are the folder of a dataset, the name of a bundle and a budget; the outputs are trained experiments and
folders of predictions. This package combines the components of the packages below it.
"""
