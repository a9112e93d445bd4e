#!/bin/sh
# Higgins et al. (2017) on CelebA: objective H, Gaussian p(x|z), 32 latents. beta goes with the loss of this code:
# the squared error summed over pixels. Further flags are passed on:  sh run_celeba_H.sh --max_iter 2000
cd "$(dirname "$0")" || exit 1
if [ -z "$PYTHON" ] && [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
exec "${PYTHON:-python}" "${PROGRAM:-main.py}" --dataset celeba --objective H --model H --dist gaussian --z_dim 32 --batch_size 64 \
    --beta 10 --lr 1e-4 --beta1 0.9 --beta2 0.999 --max_iter 1e6 --viz_name celeba_H "$@"
