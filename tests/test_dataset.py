"""Data sets as training sees them: batches, fingerprints, and runs on sets of images."""

import numpy as np
import pytest
import torch

import dataset
import main
from images import encoded, grey, photo, run, write_folder
from prepare import sets


def data_of(name, folder, *flags):
    return dataset.return_data(main.parse(["--dataset", name, "--dset_dir", str(folder), *flags]))


def photos(folder, n=9):
    return write_folder(folder, {f"{i}.png": encoded(photo(i), "PNG") for i in range(n)})


def test_a_batch_of_images_is_the_rows_asked_for_in_0_to_1():
    images = np.random.default_rng(0).integers(0, 256, (500, 3, 64, 64), dtype=np.uint8)
    data = dataset.Images(images, "500 images")
    assert (len(data), data.channels, data.factor_sizes, data.seed_images) == (500, 3, None, {})
    indices = torch.tensor([7, 0, 499, 7])
    batch = data.batch(indices)
    assert batch.dtype == torch.float32 and batch.shape == (4, 3, 64, 64)
    assert (batch.numpy() == images[indices.numpy()].astype(np.float32) / 255).all()


def test_a_batch_of_dsprites_is_the_unpacked_images_in_the_order_asked_for(dset_dir):
    indices = torch.tensor([0, 737279, 5, 300_000])
    expected = np.unpackbits(sets.find_dsprites(dset_dir)[0][indices.numpy()], axis=-1)
    batch = data_of("dsprites", dset_dir).batch(indices)
    assert batch.dtype == torch.float32 and batch.shape == (4, 1, 64, 64)
    assert (batch[:, 0].numpy() == expected).all()


def test_each_factor_of_dsprites_has_the_role_that_its_name_says(dset_dir):
    data = data_of("dsprites", dset_dir)
    assert dict(zip(data.factor_roles, data.factor_sizes)) == dict(shape=3, scale=6, rotation=40, x=32, y=32)
    grid = torch.arange(len(data)).view(data.factor_sizes)
    for role, axis in (("x", 2), ("y", 1)):  # columns, rows of an image
        ends = [0, 5, 0, 16, 16]
        centres = []
        for ends[data.factor_roles.index(role)] in (0, 31):
            centres.append(data.batch(grid[tuple(ends)][None])[0].nonzero()[:, axis].float().mean())
        assert centres[1] - centres[0] == pytest.approx(32, abs=0.5)


def test_the_seed_images_of_dsprites_are_the_largest_shapes_in_the_middle(dset_dir):
    data = data_of("dsprites", dset_dir)
    indices = torch.tensor(list(data.seed_images.values()))
    x, one_scale_smaller = data.batch(indices)[:, 0], data.batch(indices - 40 * 32 * 32)[:, 0]
    assert list(data.seed_images) == ["square", "ellipse", "heart"]
    assert (x.sum(dim=(1, 2)) > 1.1 * one_scale_smaller.sum(dim=(1, 2))).all()


@pytest.mark.slow
def test_main_prepares_by_itself_trains_and_draws(runs):
    write_folder(runs.folder / "data/3DChairs/images", {f"{i}.png": grey(i, (400, 400)) for i in range(9)})
    flags = ["--dataset", "3dchairs", "--dset_dir", runs.folder / "data", "--max_iter", 4, "--z_dim", 5]
    output = runs.run("run", *flags).stdout
    assert "preparing 9 images" in output and "9 images, grey" in output
    assert (runs.outputs("run") / "4" / "traverse.png").exists()
    assert "dist bernoulli (now gaussian)" in runs.run("run", *flags, "--dist", "gaussian", status=1).stderr
    # said or not, it is the same run
    assert "is finished" in runs.run("run", *flags, "--dist", "bernoulli").stdout


# A run goes on with the same images only.


def test_a_run_does_not_go_on_with_another_pixel_under_the_same_names(runs):
    folder = photos(runs.folder / "data")
    flags, train = ["--dataset", "folder", "--dset_dir", folder, "--max_iter"], ["--save_output", "no"]
    runs.run("run", *flags, 3, *train)
    whole = (folder / "4.png").read_bytes()
    (folder / "4.png").write_bytes(grey(200))
    error = runs.run("run", *flags, 6, *train, status=1).stderr.splitlines()[-1]
    assert "was made with 64x64, 9 images, colour" in error and "holds 64x64, 9 images, colour" in error
    (folder / "4.png").write_bytes(whole)
    run("folder", "--dset_dir", folder, "--channels", 1)  # prepared in another way
    assert "holds 64x64, 9 images, grey" in runs.run("run", *flags, 6, *train, status=1).stderr
    run("folder", "--dset_dir", folder, "--channels", 3)
    assert "resumed" in runs.run("run", *flags, 6, *train).stdout


def test_a_model_of_a_folder_encodes_the_images_of_another(runs):
    images, others = photos(runs.folder / "photos"), photos(runs.folder / "others", 5)
    no_pictures, codes = ["--save_output", "no"], runs.folder / "codes.npz"
    runs.run("run", "--dataset", "folder", "--dset_dir", images, "--max_iter", 3, *no_pictures)
    runs.run("run", "--train", "no", "--dset_dir", others, *no_pictures, "--encode", codes)
    assert np.load(codes)["mu"].shape == (5, 10)


def test_the_pictures_of_runs_do_not_become_training_images(tmp_path, capsys):
    folder = photos(tmp_path / "data")
    before = data_of("folder", folder).fingerprint
    run_files = {"args.json": b"{}", "20/factors.png": grey(8)}
    write_folder(folder / "outputs/run", run_files)
    write_folder(folder / "outputs", {"compare.png": grey(7), "sweep/summary.png": grey(7)})
    assert data_of("folder", folder).fingerprint == before
    (folder / "9.png").write_bytes(grey(9))
    assert len(data_of("folder", folder)) == 10
    assert "left out: files of runs (first: 'outputs/" in capsys.readouterr().out
