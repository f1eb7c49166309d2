"""Whole tasks in one call, as the command line offers them: train, resume, cross-validate, predict, inspect.

A dataset's folder, a bundle's name and a budget enter; a trained experiment, or a folder of predictions, leaves. The
parts are of the packages below; here they are put together.
"""
