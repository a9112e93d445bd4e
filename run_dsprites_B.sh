#!/bin/sh
# dSprites: Burgess et al.'s objective up to x, y and scale, then beta-TCVAE's for shape and rotation, with Muon.
# Further flags are passed on:  sh run_dsprites_B.sh --max_iter 2000 --display_step 500
cd "$(dirname "$0")" || exit 1
if [ -z "$PYTHON" ] && [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
exec "${PYTHON:-python}" "${PROGRAM:-main.py}" --dataset dsprites --objective B_TC --model B --z_dim 10 --batch_size 64 \
    --gamma 1000 --delta 1 --C_max 10 --C_stop_iter 10000 --kl_weight 0.5 --weak_iters 5000 --rise_iters 5000 --beta 4 \
    --optimizer muon --lr 1e-3 --lr_start_iter 20000 --lr_stop_iter 40000 --max_iter 40000 --viz_name dsprites_B "$@"
