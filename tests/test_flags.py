"""The command line."""

import contextlib
import io
import shlex

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import main

NONSENSE = [
    "--batch_size 0", "--C_max -1", "--C_max 1e39 --C_stop_iter 1", "--lr=--", "--lr", "--lr 0", "--beta nan", "--beta2 1",
    "--max_iter 1.5", "--seed -1", "--threads -1", "--z_dim 1e30", "--num_workers 1000", "--viz_port 0", "--train maybe",
    "--model X", "--image_size 128", "--lr_start_iter 5 --lr_stop_iter 5", "--batch 64", "--unknown 1", "extra",
    "--viz_server ''", "--output_dir ''", "--encode ''", "--output_dir x --ckpt_dir ./x", "--viz_name ../x",
    "--viz_name m/7", "--viz_name m/last", "--viz_name m/previous", "--viz_name m/20.old",  # results of the run m
    "--viz_name m/lock", "--viz_name m/log.csv", "--viz_name m/x/curves.png", "--viz_name m/.last.tmp",
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


def test_a_row_of_the_log_comes_with_each_picture():
    assert main.parse(["--display_step", "500"]).gather_step == 500
    assert main.parse(["--display_step", "500", "--gather_step", "7"]).gather_step == 7


def test_data_that_cannot_be_prepared_is_one_line(tmp_path, capsys):
    folders = ["--ckpt_dir", str(tmp_path / "c"), "--output_dir", str(tmp_path / "o")]
    assert main.main(["--dataset", "celeba", "--dset_dir", str(tmp_path), *folders]) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error and "CelebA" in error and "--download" in error
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} <= {"lock", "lock.pid"}


# Any command line at all.

FLAGS = [f"--{name}" for name in vars(main.parse([]))]
STRANGE = [
    "", "nan", "inf", "-inf", "1e400", "9" * 5000, "1e308", "1e39", "true", "no", "a\0b", "a\nb", "\udcff", "\ud800", "/",
    ".", "..", "~", "x" * 300, "H", "B", "FC", "none", "full", "dsprites", "-", "--", "0x10", "1_000", "\u0663",
]  # fmt: skip
VALUES = st.one_of(
    st.text(max_size=9),
    st.integers(-(2**70), 2**70).map(str),
    st.floats().map(str),
    st.sampled_from(STRANGE),
)


@settings(max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@example([("x", "a\nb", False)])
@example([("--output_dir", "a\0b", False)])
@example([("--viz_name", "\ud800", True)])
@example([("--lr", "--", True)])
@given(st.lists(st.tuples(st.sampled_from([*FLAGS, "--unknown", "x"]), VALUES, st.booleans()), max_size=6))
def test_any_command_line_is_accepted_or_one_line_and_status_2(words):
    argv = [part for flag, text, joined in words for part in ([f"{flag}={text}"] if joined else [flag, text])]
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main.parse(argv)
    except SystemExit as stop:
        message = err.getvalue()
        assert stop.code == (0 if "-h" in argv or "--help" in argv else 2)
        assert stop.code == 0 or (message.count("\n") == 1 and message.endswith("\n") and not out.getvalue())
