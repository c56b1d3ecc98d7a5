"""What build_dataset.py does: sources -> a dataset folder {train,valid,test}/CLASS/IMAGE. No result depends on it.

May import include, utils and the rest of model/images. Start reading at dataset.py (the whole build); items.py says
what an image on its way is; folders, archives, tables and named are the kinds of sources; write.py links and shrinks.
"""
