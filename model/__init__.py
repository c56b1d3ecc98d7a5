"""What a researcher edits: nets, metrics, augmentation, loaders, test-time views, custom optimizers.

May import include, utils and params; never imports folder, report, engine or search. Subpackages: nets/ (backbones,
published weights, layer groups), images/ (index, decoding, cache, order, building), pixels/ (batched augmentation).
Start reading at net.py and data_loader.py.
"""
