"""Hyperparameter search: which values to try (strategy.py, pure), their child folders, and where and when they run.

May import include, utils, params, folder, report and engine. Its workers get the name of what they run ("train:main").
engines/ runs the children: on this machine, on Slurm, on Ray. Start reading at scheduler.py.
"""
