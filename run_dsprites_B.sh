#!/bin/sh
# Burgess et al. (2018) on dSprites: objective B, C from 0 to 25 nats over 100,000 iterations.
# Further flags are passed on:  sh run_dsprites_B.sh --max_iter 2000 --display_step 500
cd "$(dirname "$0")" || exit 1
if [ -z "$PYTHON" ] && [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
exec "${PYTHON:-python}" "${PROGRAM:-main.py}" --dataset dsprites --objective B --model B --z_dim 10 --batch_size 64 \
    --gamma 1000 --C_max 25 --C_stop_iter 1e5 --lr 5e-4 --beta1 0.9 --beta2 0.999 \
    --max_iter 1e6 --viz_name dsprites_B "$@"
