"""How an image gets from a folder to a batch.

    images.find_files       folder, zip or tar -> image files
    images.decode           an image file -> uint8 (C, size, size)
    images.make_array       all of them -> celeba_64x64.npy, uint8 (N, C, size, size)
    sets.find_images        does this if need be, and maps the array into memory
    dataset.Images.batch    indices (B,) -> float32 (B, C, size, size) in [0, 1]

dSprites is drawn, or packed from its official file, a bit a pixel (dsprites.py).
"""
