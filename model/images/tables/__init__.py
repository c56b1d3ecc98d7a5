"""Tables in a dataset folder: labels.csv (path, label, ...) and groups.csv (path, group).

May import include, utils, model/images/index.py and paths.py. Start reading at splits.py, which lists a dataset folder
as its folders and its tables say; rows.py reads a CSV file as people and their spreadsheets write it.
"""
