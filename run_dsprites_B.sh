#!/bin/sh
# Burgess et al. (2018) on dSprites: objective B, gamma 1000, C to 25 nats; --delta 1 smooths the penalty (misc/capacity.md).
# Further flags are passed on:  sh run_dsprites_B.sh --max_iter 2000 --display_step 500
cd "$(dirname "$0")" || exit 1
if [ -z "$PYTHON" ] && [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
exec "${PYTHON:-python}" "${PROGRAM:-main.py}" --dataset dsprites --objective B --model B --z_dim 10 --batch_size 64 \
    --gamma 1000 --delta 1 --C_max 25 --C_stop_iter 1e5 --lr 5e-4 --max_iter 150000 --viz_name dsprites_B "$@"
