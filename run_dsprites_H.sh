#!/bin/sh
# Higgins et al. (2017) on dSprites ("2D shapes"): fully connected network, Adagrad, beta 4.
# Further flags are passed on:  sh run_dsprites_H.sh --max_iter 2000 --display_step 500
cd "$(dirname "$0")" || exit 1
if [ -z "$PYTHON" ] && [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
exec "${PYTHON:-python}" "${PROGRAM:-main.py}" --dataset dsprites --objective H --model FC --z_dim 10 --batch_size 64 \
    --beta 4 --optimizer adagrad --lr 1e-2 --max_iter 1e6 --viz_name dsprites_H "$@"
