"""A transposed convolution that computes what nn.ConvTranspose2d does, but trains faster on the CPU."""

import torch
import torch.nn.functional as F
from torch import nn


class ConvTranspose2d(nn.ConvTranspose2d):
    """nn.ConvTranspose2d with a faster training step on the CPU; in eval mode and on other devices, torch's own layer.

    The bias is added outside: inside, the CPU kernel (torch 2.14, channels_last) takes longer for the gradient of the
    bias than for the other two together: 3.4 of 5.2 ms for 32 channels of 32x32, batch 64, float32. As a term of its own
    it takes 0.2 ms. Layers to fewer than four channels go through ConvTransposeByPixelShuffle.
    """

    def forward(self, x):
        """x (B, C_in, H, W) -> (B, C_out, H', W'); 2 H, 2 W in the networks of model.py, or 4, 4 from 1, 1."""
        # In eval mode, torch.func, torch.jit.trace and torch.export see no function but torch's own.
        if not self.training or x.device.type != "cpu" or self.bias is None:
            return super().forward(x)
        options = (self.stride, self.padding, self.output_padding, self.groups, self.dilation)
        doubles = self.kernel_size == (4, 4) and options == ((2, 2), (1, 1), (0, 0), 1, (1, 1))
        if doubles and self.out_channels < 4:
            y = ConvTransposeByPixelShuffle.apply(x, self.weight)
        else:
            y = F.conv_transpose2d(x, self.weight, None, *options)
        return y.add_(self.bias.to(y.dtype)[:, None, None])


class ConvTransposeByPixelShuffle(torch.autograd.Function):
    """F.conv_transpose2d(x, weight, None, 2, 1) for 4x4 kernels, as a convolution that makes 2x2 output pixels at a time.

    Each output pixel sees 2x2 input pixels, through the kernel weights that the parity of its row and column selects: a
    2x2 convolution to four times the channels, then a pixel shuffle (Shi et al., 2016). With one output channel, torch's
    forward kernel leaves the CPU's vector registers almost empty. Its backward kernel does not, so it is used here.
    """

    @staticmethod
    def forward(ctx, x, weight):
        """x (B, C_in, H, W), weight (C_in, C_out, 4, 4) -> (B, C_out, 2 H, 2 W)."""
        C_in, C_out = weight.shape[:2]
        # C_in, C_out, h, even/odd row, w, even/odd column
        parts = weight.unflatten(3, (2, 2)).unflatten(2, (2, 2)).flip(2, 4)
        kernel = parts.permute(1, 3, 5, 0, 2, 4).reshape(4 * C_out, C_in, 2, 2)
        y = F.pixel_shuffle(F.conv2d(x, kernel, padding=1), 2)  # B, C_out, 2 H + 2, 2 W + 2
        ctx.save_for_backward(x.to(y.dtype), weight.to(y.dtype))  # bfloat16 under autocast
        return y[..., 1:-1, 1:-1].contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx, grad):
        """grad (B, C_out, 2 H, 2 W) -> gradients of x and weight, each shaped like it."""
        x, weight = ctx.saved_tensors
        return torch.ops.aten.convolution_backward(
            grad, x, weight, None, [2, 2], [1, 1], [1, 1], True, [0, 0], 1, [True, True, False]
        )[:2]
