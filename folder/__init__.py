"""THE experiment folder: its names, lock, status, history, manifest, provenance, and command-line flags.

May import include, utils and params; never torch. Only this package knows the layout of an experiment folder.
Start reading at folder.py (the class Folder), then manifest.py (what counts as committed) and history.py.
"""
