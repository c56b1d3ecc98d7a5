"""From a dataset folder to decoded images: index, decoding, cache, folds, and build_dataset.py's building and checking.

May import include, utils and params. Start reading at index.py (which files there are), then source.py (one split).
"""
