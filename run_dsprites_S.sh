#!/bin/sh
# dSprites: objective H on a decoder that draws a shape where it is, with Muon. beta is low in between, for the shapes.
# Further flags are passed on:  sh run_dsprites_S.sh --max_iter 2000 --display_step 500
cd "$(dirname "$0")" || exit 1
if [ -z "$PYTHON" ] && [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
exec "${PYTHON:-python}" "${PROGRAM:-main.py}" --dataset dsprites --objective H --model S --z_dim 10 --batch_size 64 \
    --beta 3000:2.5,3300:0.3,6000:0.3,8000:2.5 --optimizer muon --lr 8000:1e-3,16000:1e-5 --max_iter 16000 --viz_name dsprites_S "$@"
