"""What carries a run out. Knows no net, dataset or metric by name."""
