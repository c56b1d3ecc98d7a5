"""Augmentation, resizing and normalisation of a whole batch at once, as uint8. May import include, utils and params.

Start reading at batched.py (each transform) and fused.py (a recipe done in one gather).
"""
