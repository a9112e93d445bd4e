"""How an image gets from a folder to a batch.

    archives.open_images    folder, zip or tar -> {name: function that reads the file}
    images.decode           bytes of a file -> uint8 (C, size, size)
    images.make_array       all of them -> celeba_64x64.npy, uint8 (N, C, size, size)
    sets.find_images        does this if need be, and maps the array into memory
    dataset.Images.batch    indices (B,) -> float32 (B, C, size, size) in [0, 1]

dSprites is drawn (dsprites.py) or packed from its official file (official_dsprites.py), a bit a pixel.
"""
