"""Hyperparameter search: which values to try (strategy.py, pure), their child folders, and who trains them when.

May import include, utils, params, folder, report and engine. What its workers run is named to them ("train:main").
engines/ runs the children: on this machine, on Slurm, on Ray. Start reading at scheduler.py.
"""
