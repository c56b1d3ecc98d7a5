"""Backbones by name, published weights, and layer groups: what net.py is made of. May import include, utils, params.

Start reading at backbones.py.
"""
