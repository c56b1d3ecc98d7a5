"""Where the children of a search are trained: local.py (a pool of forks), slurm.py, ray.py.

All keep the protocol of base.py.
"""
