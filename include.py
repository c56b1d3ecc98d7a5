"""Settings that every room shares: file names, statistics, environment. No heavy imports.

The environment is set here, before torch, albumentations or matplotlib are first imported, because
each of them reads it at import.
"""

import os
import sys
from pathlib import Path

VERSION = "0.2.0.dev0"  # the one place: pyproject.toml takes it from here
ROOT = Path(__file__).resolve().parent
PACKAGES = ("torch", "torchvision", "numpy", "PIL", "tabulate", "matplotlib", "safetensors")  # requirements.txt has all

# albumentations asks the network for a newer version unless told not to, in workers too.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("KMP_BLOCKTIME", "1")  # ms; idle OpenMP threads give their core back to the data work
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic cuBLAS, needed before CUDA starts
sys.dont_write_bytecode = sys.dont_write_bytecode or not os.access(ROOT, os.W_OK)

# --- statistics, per channel, of pixels in [0, 1] ------------------------------------------------
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

# --- the dataset folder -----------------------------------------------------------------------------
SPLITS = ("train", "valid", "test")
SPLIT_SYNONYMS = {"val": "valid", "validation": "valid"}
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")

# --- the experiment folder --------------------------------------------------------------------------
PARAMS = "params.json"
HISTORY_JSON, HISTORY_CSV = "history.json", "history.csv"
TRAIN_LOG, TRAIN_HISTORY_PNG, BATCH_PNG = "train.log", "train_history.png", "batch_train.png"
METRICS_BEST, METRICS_LAST = "metrics_val_best_weights.json", "metrics_val_last_weights.json"
METRICS_TEST, EVALUATION = "metrics_test_best.json", "evaluation"
WEIGHTS, CHECKPOINTS, TENSORBOARD, ATTEMPTS, RECORD = "weights", "checkpoints", "tensorboard", "attempts", "record"
STATUS, RESOLVED, META = "record/status.json", "record/resolved.json", "record/meta.json"
CODE, AUGMENTATION, TEST_LOOKS = "record/code", "record/augm.json", "record/test_looks.jsonl"
STDOUT, STDERR, DIFF_PATCH = "record/stdout.txt", "record/stderr.txt", "record/diff.patch"
REQUIREMENTS = "record/requirements.txt"
TRUST = "record/trust.json"  # whose code record/code is
MONITORS = "monitors"  # tables of the observers that look into the net
FOLD, FOLDS = "record/fold.json", "record/folds.json"  # of one experiment, of a search
DOCTOR, OVERFIT = "record/doctor.json", "record/overfit.json"
LR_FIND, LR_FIND_PNG = "record/lr_find.json", "lr_find.png"
JOBS = "record/jobs"  # of a search: what its tasks print; of one run: its Slurm job

# --- exit codes -----------------------------------------------------------------------------------
EXIT_USER, EXIT_DAMAGED, EXIT_BUSY, EXIT_SYSTEM, EXIT_NONFINITE, EXIT_BUG = 2, 3, 4, 5, 6, 70
