"""The command line."""

import shlex
from pathlib import Path

import pytest

import main

NONSENSE = [
    "--batch_size 0", "--C_max -1", "--C_max 1e39 --C_stop_iter 1", "--lr", "--lr 0", "--beta nan", "--beta2 1",
    "--max_iter 1.5", "--seed -1", "--threads -1", "--z_dim 1e30", "--num_workers 1000", "--viz_port 0", "--train maybe",
    "--model X", "--image_size 128", "--lr 5:1,5:2", "--beta 5:1,x", "--beta 7:", "--lr 5:0", "--lr 5:1,2", "--batch 64", "--unknown 1", "extra",
    "--viz_server ''", "--output_dir ''", "--encode ''", "--encode nowhere/c.npz", "--output_dir x --ckpt_dir ./x", "--viz_name ../x", "--viz_name /x",
    "--viz_name m/7", "--overwrite True --ckpt_name x",
]  # fmt: skip


@pytest.mark.parametrize("flags", NONSENSE)
def test_a_value_that_makes_no_sense_is_one_line_and_status_2(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        main.parse(shlex.split(flags))
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "usage" not in err


def test_counts_booleans_and_names_of_data_sets_are_read_as_people_write_them():
    args = main.parse(["--max_iter", "1e6", "--train", "No", "--cuda", "1", "--dataset", "DSprites"])
    assert (args.max_iter, args.train, args.cuda, args.dataset) == (1_000_000, False, True, "dsprites")
    assert main.parse(["--viz_name=m/n7"]).viz_name == "m/n7"
    assert main.parse(["--beta", "0:4,1e4:.5"]).beta == ((0, 4.0), (10_000, 0.5))


def test_a_row_of_the_log_comes_with_each_picture_and_a_short_run_has_twenty():
    assert main.parse([]).gather_step == 1000
    assert main.parse(["--max_iter", "300"]).gather_step == 15
    assert main.parse(["--display_step", "500"]).gather_step == 500
    assert main.parse(["--display_step", "500", "--gather_step", "7"]).gather_step == 7


def test_a_mistyped_flag_is_answered_with_the_nearest(capsys):
    with pytest.raises(SystemExit):
        main.parse(["--bta", "4"])
    assert "did you mean --beta?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flag", ["--output_dir", "--ckpt_dir", "--dset_dir", "--encode", "--init", "--ckpt_name"]
)
def test_a_path_may_begin_with_the_home_folder(flag):
    assert getattr(main.parse([f"{flag}=~/runs"]), flag[2:]) == str(Path.home() / "runs")


def test_data_that_cannot_be_prepared_is_one_line(tmp_path, capsys):
    folders = ["--ckpt_dir", str(tmp_path / "c"), "--output_dir", str(tmp_path / "o")]
    assert main.main(["--dataset", "celeba", "--dset_dir", str(tmp_path), *folders]) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error and "CelebA" in error and "--download" in error
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
