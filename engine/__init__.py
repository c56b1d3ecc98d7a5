"""What decides a result: the loop, schedule, precision, several processes, checkpoints, and the plan of a start.

May import include, utils, params, folder and report; never model (train.py passes its parts in) and never search.
use/ works with a trained net, or beside a run. Start reading at loop.py (fit), then plan.py and session.py.
"""
