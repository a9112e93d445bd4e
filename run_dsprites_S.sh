#!/bin/sh
# dSprites: beta-TCVAE's objective on a decoder that draws a shape where it is, with Muon; a strong KL at first, for the axes, then a weak one, for hearts.
# Further flags are passed on:  sh run_dsprites_S.sh --max_iter 2000 --display_step 500
cd "$(dirname "$0")" || exit 1
if [ -z "$PYTHON" ] && [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
exec "${PYTHON:-python}" "${PROGRAM:-main.py}" --dataset dsprites --objective TC --model S --z_dim 10 --batch_size 64 \
    --beta 4 --kl_weight 0:20,1000:8,1500:4,2000:0.05,3500:0.05,5000:0.2,7000:1,9000:1,11000:0.65 \
    --optimizer muon --lr 11000:1e-3,20000:1e-5 --max_iter 20000 --viz_name dsprites_S "$@"
