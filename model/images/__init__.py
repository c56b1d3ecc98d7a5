"""From a dataset folder to the images of a batch.

index.py lists files; decode.py reads one, reading.py all of them, cache.py keeps them; source.py is one split, which
image_folder.py, subsets.py and folds.py make; order.py says which images a step takes; fetch.py and workers.py get
them; split.py is what a loader knows without pixels. check.py and build/ serve build_dataset.py alone.
May import include, utils, params and the face of model. Start reading at index.py, then source.py.
"""
