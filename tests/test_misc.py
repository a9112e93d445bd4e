"""The script of misc/ that draws runs beside published results."""

from helpers import ROOT
from misc import compare

RUN = ROOT / "misc" / "runs" / "dsprites_B_seed1"


def test_a_run_is_drawn_from_its_first_row_below_a_loss_beside_results(tmp_path):
    kl, recon, iteration = compare.read_run(RUN, 100)
    assert max(recon) <= 100 and (round(recon[-1], 1), round(kl[-1], 1), iteration) == (33.7, 16.1, 40_000)
    picture = tmp_path / "new" / "compare.png"
    assert compare.main([str(RUN), "--results", "other:15.4:35.6", "--out", str(picture)]) == 0
    assert picture.stat().st_size > 10_000


def test_a_run_that_cannot_be_compared_is_one_line(tmp_path, capsys):
    assert compare.main([str(RUN), "--to_recon", "1", "--out", str(tmp_path / "compare.png")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("compare.py: ") and error.count("\n") == 1
