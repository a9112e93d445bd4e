"""The command line, and that the README's commands agree with it."""

import re
import shlex

import pytest

import main
import sweep
from conftest import ROOT

TEXTS = [ROOT / "README.md", ROOT / "misc" / "capacity.md"]


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


def commands():
    """Each command of main.py and sweep.py in texts and scripts: file, program, flags, with its line ends joined."""
    for path in [*TEXTS, *ROOT.glob("*.sh")]:
        text = path.read_text().replace("\\\n", " ")
        for line in text.splitlines():
            if "--help" in line:
                continue
            program = sweep if "sweep.py" in line else main
            if found := re.search(
                r"(?:python|PYTHON:-python}\"?) main\.py(.*)",
                line.replace('"${PROGRAM:-main.py}"', "main.py"),
            ):
                yield path.name, program, found[1].replace('"$@"', "").split("`")[0].split("#")[0]
            elif found := re.search(r"(?:sh run_\w+\.sh|(?:python|\d) sweep\.py)(.*)", line):
                # the script's own flags come first
                objective = re.findall(r"sh run_\w+?_([BH])\w*\.sh", found[0])
                yield (
                    path.name,
                    program,
                    " ".join(f"--objective {each}" for each in objective) + re.split("[`#*']", found[1])[0],
                )


@pytest.mark.parametrize("file, program, flags", list(commands()))
def test_every_command_parses(file, program, flags):
    program.parse(shlex.split(flags))


def test_the_commands_are_there_and_every_script_that_the_readme_names_exists():
    assert {"README.md", "run_dsprites_B.sh"} <= {file for file, _, _ in commands()}
    readme = (ROOT / "README.md").read_text()
    for name in re.findall(r"[\w/]+\.(?:py|sh|png|txt)\b", readme):
        if not name.startswith(
            (
                "outputs",
                "traverse",
                "reconstruction",
                "curves",
                "capacity",
                "factors",
                "latent_",
                "summary",
                "mutual_",
            )
        ):
            assert (ROOT / name).exists(), name


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.name)
def test_every_link_leads_to_a_file_or_heading_that_is_there(text):
    headings = [
        re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in text.read_text().splitlines()
        if line.startswith("#")
    ]
    for link in re.findall(r"\]\(([^)]+)\)", text.read_text()):
        file, _, heading = link.partition("#")
        assert (text.parent / file).exists() and (file or heading in headings), link


def test_the_dsprites_scripts_are_the_papers_settings():
    flags = next(flags for file, _, flags in commands() if file == "run_dsprites_H.sh" and "beta" in flags)
    args = main.parse(shlex.split(flags))
    assert (args.objective, args.model, args.beta, args.optimizer, args.lr) == ("H", "FC", 4, "adagrad", 1e-2)
    assert (args.dataset, args.z_dim, args.viz_name) == ("dsprites", 10, "dsprites_H")
    flags = next(flags for file, _, flags in commands() if file == "run_dsprites_B.sh" and "gamma" in flags)
    args = main.parse(shlex.split(flags))
    assert (args.objective, args.model, args.gamma, args.C_start, args.C_max, args.C_stop_iter) == (
        "B",
        "B",
        1000,
        0,
        25,
        10**5,
    )
    assert (args.lr, args.beta1, args.beta2, args.batch_size, args.z_dim) == (5e-4, 0.9, 0.999, 64, 10)
    assert (args.max_iter, args.viz_name) == (10**6, "dsprites_B")
