#!/bin/sh
# dSprites: Burgess et al.'s objective and network up to x, y and scale, then a new encoder for shape and rotation.
# Further flags are passed on:  sh run_dsprites_B.sh --max_iter 2000 --display_step 500
cd "$(dirname "$0")" || exit 1
if [ -z "$PYTHON" ] && [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
exec "${PYTHON:-python}" "${PROGRAM:-main.py}" --dataset dsprites --objective restart --model B --z_dim 10 --batch_size 64 \
    --gamma 1000 --delta 1 --C_max 10 --C_stop_iter 10000 --restart_iter 10000 --beta 4 \
    --lr 1e-3 --lr_start_iter 27000 --lr_stop_iter 60000 --max_iter 60000 --viz_name dsprites_B "$@"
