#!/bin/sh
# As run_dsprites_B.sh, with the bars of |KL - C| rounded off within 1 nat, so that more than two latents are learnt.
# Further flags are passed on:  sh run_dsprites_B_rounded.sh --max_iter 2000 --display_step 500
cd "$(dirname "$0")" || exit 1
if [ -z "$PYTHON" ] && [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
exec "${PYTHON:-python}" "${PROGRAM:-main.py}" --dataset dsprites --objective B --model B --z_dim 10 --batch_size 64 \
    --gamma 1000 --delta 1 --C_max 25 --C_stop_iter 1e5 --lr 5e-4 --beta1 0.9 --beta2 0.999 \
    --max_iter 1e6 --viz_name dsprites_B_rounded "$@"
