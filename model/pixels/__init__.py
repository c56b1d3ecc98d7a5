"""From uint8 base images to what a net takes: augmentation, normalisation, size. May import include, utils and params.

batched.py has each transform of a whole batch; windows.py and fused.py do several of them as one gather; per_image.py
is albumentations; normalise.py makes floats; progressive.py says the size of an epoch. Start reading at batched.py.
"""
