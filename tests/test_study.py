"""Numbers of many runs: what a study reads of a run's folder, and its summary."""

import csv
import json

from evaluation import study
from viz import figures


def write_run(folder, seed=0, mig=0.5):
    """A run of 9 iterations: its log, and scores at iterations 3 and 9."""
    for iteration, score in ((3, 0.1), (9, mig)):
        (folder / str(iteration)).mkdir(parents=True)
        scores = {"mig": score, "dci": None, "latents": [], "settings": {"level": "fast"}}
        (folder / str(iteration) / "metrics.json").write_text(json.dumps(scores))
    rows = f"iter,recon_loss,total_kld,kld_0,kld_1\n3,90,9,9,9\n9,{80 + seed},7.5,7.491,0.009\n"
    (folder / "log.csv").write_text(rows)
    return folder


def test_numbers_are_of_the_last_row_and_of_the_scores_at_its_iteration_and_level(tmp_path):
    folder = write_run(tmp_path / "run")
    assert study.iterations(folder) == 9
    assert study.read_numbers(folder) == dict(iterations=9, recon_loss=80, total_kld=7.5, active_latents=1)
    assert study.read_scores(folder, 9, "fast") == {"mig": 0.5}
    assert study.read_scores(folder, 9, "full") == study.read_scores(folder, 7, "fast") == {}
    for begun in ("iter,recon_loss\n", "iter,recon_loss\n3,4"):  # its first row is not written, or half
        (folder / "log.csv").write_text(begun)
        assert study.iterations(folder) == 0 and study.read_numbers(folder) == {}


def test_the_summary_is_a_table_of_means_and_a_picture_with_a_dot_a_run(tmp_path, monkeypatch):
    results = []
    for beta, seed, mig in ((1, 0, 0.25), (4, 0, 0.5), (1, 1, 0.75), (4, 1, None)):  # the last still trains
        folder = write_run(tmp_path / f"s_beta={beta}_seed={seed}", seed, mig)
        numbers = study.read_numbers(folder) | study.read_scores(folder, 9, "fast")
        results.append(study.Result(folder.name, {"beta": str(beta), "seed": str(seed)}, bool(mig), numbers))
    new = study.Result("s_beta=4_seed=2", {"beta": "4", "seed": "2"}, False, {})
    drawn = []
    monkeypatch.setattr(figures, "save", lambda path, write: drawn.append(write.__self__))
    study.write(tmp_path, "s", [*results, new])
    rows = list(csv.reader(open(tmp_path / "summary.csv")))
    assert rows[0] == "run beta seed finished iterations recon_loss total_kld active_latents mig".split()
    assert rows[3] == ["s_beta=1_seed=1", "1", "1", "True", "9", "81.0", "7.5", "1", "0.75"]
    assert rows[4:] == [
        ["s_beta=4_seed=1", "4", "1", "False", "9", "81.0", "7.5", "1", ""],
        ["s_beta=4_seed=2", "4", "2", "False", *[""] * 5],
    ]
    text = (tmp_path / "summary.md").read_text()
    assert "3 of 5 runs are finished" in text
    assert [line for line in text.splitlines() if line.startswith("| beta")] == [
        "| beta=1 | 2 | 80.500 ± 0.707 | 7.500 ± 0.000 | 1.000 ± 0.000 | 0.500 ± 0.354 |",
        "| beta=4 | 1 | 80.000 | 7.500 | 1.000 | 0.500 |",
    ]
    panel = next(axes for axes in drawn[0].axes if axes.get_title() == "mig")
    assert [list(line.get_ydata()) for line in panel.lines] == [[0.25, 0.75], [0.5]]
    assert [lines.get_segments()[0][:, 1].tolist() for lines in panel.collections] == [[0.5, 0.5], [0.5, 0.5]]
    assert len({x for line in panel.lines for x in line.get_xdata()}) == 3  # none hides another

    results[0].numbers.pop("mig")  # what a run lacks is not in the table
    study.write(tmp_path, "s", results)
    assert "total_kld | active_latents |\n" in (tmp_path / "summary.md").read_text()
