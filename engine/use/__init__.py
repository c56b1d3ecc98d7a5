"""Work with a trained net, or beside a run: prediction, evaluation, export, --verify; trials/ looks before training.

Start reading at inference.py.
"""
