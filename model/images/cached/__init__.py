"""Parts of the cache: its files, the lock under which it is built, and the comparison of its images with digests.

May import include, utils and model/images/index.py. Start reading at model/images/cache.py, which uses them.
"""
