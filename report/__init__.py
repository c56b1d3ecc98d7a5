"""Experiment folders -> rows -> tables, statistics, figures and pages.

May import include, utils, params and folder. Reads folders only: nothing here can change a result. html/ writes
report.html. Start reading at rows.py (a folder becomes a row), then tables.py and summary.py.
"""
