"""report.html: one static page per experiment, and one per group of runs, that open from disk without a network.

experiment_page.py and runs_page.py collect what a page shows and hand it to their template (*.html.j2); document.py
renders it. page.js and page.css are embedded in every page.
"""
