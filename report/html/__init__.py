"""report.html: one static page per experiment, and one per group of runs, that open from disk without a network.

Start reading at experiment_page.py; markup.py has what both pages are made of, page.js and page.css what runs in them.
"""
