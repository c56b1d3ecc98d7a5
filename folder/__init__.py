"""THE experiment folder: its names, lock, status, history, manifest, provenance, and the flags that ask for one.

May import include, utils and params; never torch. Only this room knows where things stand in an experiment folder.
Start reading at folder.py (the class Folder), then manifest.py (what counts as committed) and history.py.
"""
