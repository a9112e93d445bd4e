"""The command line of main.py."""

import shlex

import pytest

import main


@pytest.mark.parametrize(
    "flags",
    [
        "--batch_size 0",
        "--C_max -1",
        "--C_start -1",
        "--image_size 128",
        "--model X",
        "--objective h",
        "--beta nan",
        "--lr 0",
        "--lr inf",
        "--gamma -1",
        "--max_iter 1.5",
        "--max_iter inf",
        "--seed -1",
        "--train maybe",
        "--beta2 1",
        "--dataset mnist",
        "--viz_port 0",
        "--viz_server ''",
        "--viz_name ../x",
        "--viz_name /x",
        "--batch 64",
        "--unknown 1",
        "extra",
        "--z_dim 0",
        "--C_stop_iter 0",
        "--gather_step 0",
        "--threads -1",
        "--output_dir ''",
        "--lr",
        "--z_dim 1e30",
        "--output_dir x --ckpt_dir ./x",
        "--precision fp16",
        "--metrics all",
        "--dist normal",
        "--num_workers 1000",
        "--train no --ckpt_name none",
    ],
)
def test_a_value_that_makes_no_sense_is_one_line_and_status_2(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        main.parse(shlex.split(flags))
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "usage" not in err


def test_defaults():
    assert vars(main.parse([])) == dict(
        train=True,
        seed=1,
        cuda=True,
        precision="float32",
        threads=0,
        max_iter=10**6,
        batch_size=64,
        z_dim=10,
        beta=4.0,
        objective="H",
        dist=None,
        model="H",
        gamma=1000.0,
        delta=0.0,
        C_start=0.0,
        C_max=25.0,
        C_stop_iter=10**5,
        optimizer="adam",
        lr=1e-4,
        beta1=0.9,
        beta2=0.999,
        dset_dir="data",
        dataset="dsprites",
        image_size=64,
        num_workers=2,
        viz_on=True,
        viz_name="main",
        viz_server="localhost",
        viz_port=8097,
        save_output=True,
        metrics="none",
        output_dir="outputs",
        gather_step=1000,
        display_step=10000,
        save_step=10000,
        ckpt_dir="checkpoints",
        ckpt_name="last",
        overwrite=False,
    )


def test_counts_booleans_and_names_of_data_sets_are_read_as_people_write_them():
    args = main.parse(["--max_iter", "1e6", "--train", "No", "--cuda", "1", "--dataset", "DSprites"])
    assert (args.max_iter, args.train, args.cuda, args.dataset) == (1_000_000, False, True, "dsprites")


def test_every_flag_has_a_help_sentence():
    for action in main.make_parser()._actions:
        assert len(action.help) > 10, action.dest


def test_data_that_cannot_be_prepared_is_one_line(capsys, tmp_path):
    assert (
        main.main(
            ["--dataset", "celeba", "--ckpt_dir", str(tmp_path / "c"), "--output_dir", str(tmp_path / "o")]
        )
        == 1
    )
    err = capsys.readouterr().err
    assert (
        "Traceback" not in err
        and "python dataset.py celeba --dset_dir data --download" in err
        and "GB" in err
    )
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} == {"lock"}
