"""Work with a trained net, or beside a run: prediction, evaluation, the learning-rate range test, --verify.

Start reading at inference.py.
"""
