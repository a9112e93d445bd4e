"""The script of misc/ that draws runs beside published results."""

from helpers import ROOT
from misc import compare


def test_a_run_is_drawn_from_its_first_row_below_a_loss_or_refused_in_one_line(tmp_path, capsys):
    run, picture = ROOT / "misc" / "runs" / "dsprites_H_modelB", tmp_path / "new" / "compare.png"
    kl, recon, iteration = compare.read_run(run, 100)
    assert max(recon) <= 100 and (round(recon[-1], 1), round(kl[-1], 1), iteration) == (78.9, 12.3, 20_000)
    assert compare.main([str(run), "--results", "other:15.4:35.6", "--out", str(picture)]) == 0
    assert picture.stat().st_size > 10_000
    assert compare.main([str(run), "--to_recon", "1", "--out", str(picture)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("compare.py: ")
