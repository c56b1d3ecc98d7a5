"""What decides a result: the loop, schedule, precision, several processes, checkpoints, and the plan of a start.

May import include, utils, params, folder and report; never model (train.py hands its parts in) and never search.
use/ is what is done with a trained net or beside a run. Start reading at loop.py (fit), then plan.py and session.py.
"""
