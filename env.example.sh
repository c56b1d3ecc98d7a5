# shellcheck shell=bash
# Copy to env.sh (never committed): sourced by setup.sh, run.sh and test.sh.
# export CUDA_VISIBLE_DEVICES=0
# export TORCH_HOME=/scratch/torch        # where published weights are kept
# export PYTHON=/opt/python3.12/bin/python
