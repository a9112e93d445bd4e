#!/bin/sh
# Higgins et al. (2017) on 3D Chairs: objective H, beta 5, grey, Bernoulli p(x|z), 32 latents.
# Further flags are passed on:  sh run_3dchairs_H.sh --max_iter 2000
cd "$(dirname "$0")" || exit 1
if [ -z "$PYTHON" ] && [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
exec "${PYTHON:-python}" "${PROGRAM:-main.py}" --dataset 3dchairs --objective H --model H --dist bernoulli --z_dim 32 --batch_size 64 \
    --beta 5 --lr 1e-4 --beta1 0.9 --beta2 0.999 --max_iter 1e6 --viz_name 3dchairs_H "$@"
