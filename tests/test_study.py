"""What a study reads of a run's folder. Its summary: see test_sweep.py."""

import json

from evaluation import study


def test_numbers_are_of_the_last_row_and_of_the_scores_at_its_iteration_and_level(tmp_path):
    (tmp_path / "log.csv").write_text(
        "iter,recon_loss,total_kld,kld_0,kld_1\n3,90,9,9,9\n9,80,1,0.011,0.009\n"
    )
    losses = dict(iterations=9, recon_loss=80, total_kld=1, active_latents=1)
    assert study.read_numbers(tmp_path) == losses
    for iteration, mig in ((3, 0.1), (9, 0.5)):
        (tmp_path / str(iteration)).mkdir()
        scores = {"mig": mig, "dci": None, "latents": [], "settings": {"level": "fast"}}
        (tmp_path / str(iteration) / "metrics.json").write_text(json.dumps(scores))
    assert study.read_numbers(tmp_path, "fast") == losses | {"mig": 0.5}
    assert study.read_numbers(tmp_path, "full") is None
