"""Figures of many runs: their curves, the metric against each parameter, the importance of the parameters.

All of them start from ranking.rank_runs. Runs that differ in seed or fold alone are replicates of one setting and are
drawn as one: their mean, and a band from the lowest to the highest.
"""
