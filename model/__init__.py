"""What a researcher edits: nets, metrics, augmentation, loaders, test-time views, optimizers of one's own.

May import include, utils and params; never meets folder, report, engine or search. Below the face: nets/ (backbones,
published weights, layer groups), images/ (index, decoding, cache, order, building), pixels/ (batched augmentation).
Start reading at net.py and data_loader.py.
"""
