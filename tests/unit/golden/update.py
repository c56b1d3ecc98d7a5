"""Write net_parameters.json anew: python tests/unit/golden/update.py. Read the difference before committing."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[3]), str(Path(__file__).resolve().parents[1])]

if __name__ == "__main__":
    from test_net import GOLDEN, parameter_counts

    from utils import write_json

    write_json(GOLDEN, parameter_counts())
