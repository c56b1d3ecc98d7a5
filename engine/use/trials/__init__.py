"""What train.py can do with a run instead of training it: look at the rate, look for mistakes, learn a few images.

May import what engine/use may. Start reading at trial.py, which chooses one.
"""
