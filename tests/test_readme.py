"""README.md and the texts in misc/: commands parse, links lead somewhere, and numbers are those of misc/runs."""

import argparse
import csv
import importlib
import json
import re
import shlex
import sys

import pytest

import main
from helpers import ROOT

README, MISC = ROOT / "README.md", ROOT / "misc"
TEXTS = [README, *sorted(MISC.glob("*.md"))]
RUNS, TRIALS = MISC / "runs", json.loads((MISC / "runs" / "trials.json").read_text())["trials"]
OTHERS = ("venv", "pytest", "visdom.server")  # programs of others, behind python -m


def read(path):
    """A text without its HTML comments, and with the ends of continued lines joined."""
    return re.sub(r"<!--.*?-->", "", path.read_text(), flags=re.DOTALL).replace("\\\n", " ")


def without_code(path):
    return re.sub(r"```.*?```", "", read(path), flags=re.DOTALL)


def tables(path):
    """Rows of all tables of a text, as dicts {heading: cell}, cells without their code quotes."""
    header = None
    for line in read(path).splitlines():
        cells = [cell.strip().strip("`").strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]
        if not cells:
            header = None
        elif header is None:
            header = cells
        elif not re.fullmatch(r"[-: ]*", "".join(cells)):
            yield dict(zip(header, cells))


# Commands.


def commands():
    """(file, command) of all code in the texts that starts one of this repository's programs."""
    for path in TEXTS:
        blocks = re.findall(r"```sh\n(.*?)```", read(path), flags=re.DOTALL)
        code = [line for block in blocks for line in block.splitlines()]
        for line in code + re.findall(r"`([^`\n]+)`", without_code(path)):
            for part in line.split(" && "):
                if re.match(r"(PROGRAM=\S+ )?(sh run_|python |\.venv/bin/python )", part):
                    yield path.name, part
        for row in tables(path):
            if "flags added" in row:  # to the papers' command
                flags = re.match(r"[^`,;]*", row["flags added"])[0]
                yield path.name, f"python main.py --objective B --model B {flags}"


def split_command(command):
    """The program of a command, as a module's name, and its flags; those of a script come first."""
    words = shlex.split(command, comments=True)
    program = words.pop(0).removeprefix("PROGRAM=") if command.startswith("PROGRAM=") else "main.py"
    if words[0] == "sh":
        script = (ROOT / words[1]).read_text().replace("\\\n", " ")
        flags = re.search(r'"\$\{PROGRAM:-main\.py\}" (.*) "\$@"', script)[1]
        words = ["python", program, *shlex.split(flags), *words[2:]]
    if words[1] != "-m":
        return words[1].removesuffix(".py").replace("/", "."), words[2:]
    package = words[2] in ("evaluation", "prepare")
    return f"{words[2]}.__main__" if package else words[2], words[3:]


class Parsed(Exception):
    """Raised in place of what a program would do after it has read its flags."""


def parse(module, flags, monkeypatch):
    """Have a module's own parser read flags; SystemExit if it refuses them."""
    program = importlib.import_module(module)
    if getattr(program, "parse", None) and program.parse.__module__ == module:
        return program.parse(flags)
    original = argparse.ArgumentParser.parse_args

    def parse_args(self, *args, **kwargs):
        original(self, *args, **kwargs)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr(sys, "argv", [module, *flags])
    with pytest.raises(Parsed):
        program.main()


@pytest.mark.parametrize("file, command", sorted(set(commands())))
def test_every_command_parses(file, command, monkeypatch):
    module, flags = split_command(command)
    if module not in OTHERS and flags not in ([], ["--help"]):  # without flags, a program is only named
        parse(module, flags, monkeypatch)


def test_the_papers_settings_are_one_command_each():
    burgess = next(command for _, command in commands() if "--objective B" in command and "C_stop" in command)
    both = dict(dataset="dsprites", z_dim=10, batch_size=64)
    B = dict(objective="B", model="B", gamma=1000, C_start=0, C_max=25, C_stop_iter=10**5, delta=0)
    B |= dict(optimizer="adam", lr=5e-4, beta1=0.9, beta2=0.999, max_iter=10**6)
    H = dict(objective="H", model="FC", beta=4, optimizer="adagrad", lr=1e-2, viz_name="dsprites_H")
    for command, settings in ((burgess, B | both), ("sh run_dsprites_H.sh", H | both)):
        flags = vars(main.parse(split_command(command)[1]))
        assert flags == flags | settings


# Files and links.


def anchors(path):
    """The anchors that GitHub gives to the headings of a text."""
    headings = re.findall(r"^#+ (.*)$", without_code(path), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_every_link_leads_to_a_file_and_heading_that_are_there(path):
    for link in re.findall(r"\]\(([^)\s]+)\)", read(path)):
        file, _, heading = link.partition("#")
        if not file.startswith("http"):
            target = path.parent / file if file else path
            assert target.exists(), link
            assert not heading or heading in anchors(target), link


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_every_file_and_test_that_a_text_names_is_there(path):
    folders = "misc|tests|viz|prepare|evaluation|training"
    for name in re.findall(rf"`((?:(?:{folders})/)?\w+\.(?:py|sh|md|json|pt))[` ]", read(path)):
        inside = name in ("args.json", "metrics.json", "summary.md")  # of a run's folder
        assert inside or (ROOT / name).exists() or (path.parent / name).exists(), name
    tests = "".join(each.read_text() for each in (ROOT / "tests").glob("test_*.py"))
    for name in re.findall(r"`(test_\w+)`", read(path)):
        assert f"def {name}(" in tests, name


def test_the_readme_is_short():
    assert README.stat().st_size <= 12_288 and len(README.read_text().splitlines()) <= 200


# Numbers.


def shown(scores):
    """Scores as a table shows them; without those that were not computed."""
    digits = {"total_correlation": 2, "active_latents": 0}
    numbers = {name: value for name, value in scores.items() if isinstance(value, (int, float))}
    return {name: f"{value:.{digits.get(name, 3)}f}" for name, value in numbers.items()}


def log_cells(recon, kl, latents):
    """What a row of a log is in a table: columns and their texts. latents: KL of each, nats."""
    return {
        "reconstruction": f"{recon:.1f}",
        "KL": f"{kl:.1f}",
        "three highest KL": ", ".join(f"{value:.2f}" for value in sorted(latents, reverse=True)[:3]),
        "over 0.5 nats": str(sum(value > 0.5 for value in latents)),
    }


def run_cells(name, iteration):
    """What misc/runs says of a run: at its last row in the log up to iteration, and of its scores there."""
    with open(RUNS / name / "log.csv") as file:
        row = [row for row in csv.DictReader(file) if int(row["iter"]) <= iteration][-1]
    latents = [float(value) for column, value in row.items() if column.startswith("kld_")]
    cells = log_cells(float(row["recon_loss"]), float(row["total_kld"]), latents)
    if (path := RUNS / name / "metrics.json").exists():
        scores = json.loads(path.read_text())
        if scores["settings"]["iter"] == iteration:
            cells |= {**shown(scores), "level": scores["settings"]["level"]}
            names = ("shape", "scale", "orientation", "posX", "posY")
            if "latents" in scores:
                cells |= information_cells(
                    [[each["information"][name] for name in names] for each in scores["latents"]]
                )
    return cells


def information_cells(information):
    """Cells about the mutual information of latents and factors: z_dim rows (shape, scale, orientation, posX, posY), nats."""
    main = {factor: max(information, key=lambda latent: latent[factor]) for factor in (3, 4, 1)}
    shares = [f"{100 * latent[factor] / sum(latent):.0f}" for factor, latent in main.items()]
    leak = max(latent[factor] for factor in (3, 4) for latent in information if latent is not main[factor])
    return {"share of x, y, scale": ", ".join(shares), "leak, nats": f"{leak:.2f}"}


def trial_cells(trial):
    """What misc/runs/trials.json says of a trial at its end."""
    iteration, recon, kl, *latents = trial["log"][-1]
    cells = {"iterations": f"{iteration:,}", **information_cells(trial["scores"]["information"])}
    return log_cells(recon, kl, latents) | shown(trial["scores"]) | cells


def median_cells(pattern, iteration):
    """Medians over the five runs that pattern matches, of numbers as their rows show them."""
    seeds = [run_cells(path.name, iteration) for path in RUNS.glob(pattern)]
    assert len(seeds) == 5
    columns = [column for column in seeds[0] if all(re.fullmatch(r"[\d.]+", seed[column]) for seed in seeds)]
    return {column: sorted((seed[column] for seed in seeds), key=float)[2] for column in columns}


def numbers():
    """(file, row of a table, what misc/runs says of it) of each run and trial in the texts."""
    for path in TEXTS:
        for row in tables(path):
            if "trial" in row:
                yield path.name, row, trial_cells(TRIALS[row["trial"]])
            elif "run" in row and row.get("iterations"):
                iteration = int(row["iterations"].replace(",", ""))
                median = row["run"].split("median of ")[1:]
                cells = median_cells(*median, iteration) if median else run_cells(row["run"], iteration)
                yield path.name, row, cells


NUMBERS = list(numbers())
SCORES = """higgins_paper higgins factor_vae mig sap modularity active_latents dci_disentanglement dci_completeness
    dci_informativeness total_correlation"""
COLUMNS = {*log_cells(0, 0, [0]), *SCORES.split(), "level", "share of x, y, scale", "leak, nats"}


@pytest.mark.parametrize("file, row, source", NUMBERS, ids=[f"{f} {[*r.values()][0]}" for f, r, _ in NUMBERS])
def test_the_numbers_of_a_table_are_those_of_misc_runs(file, row, source):
    known = {column: text for column, text in row.items() if column in COLUMNS}
    assert known and known == {column: source.get(column, "") for column in known}


def test_the_tables_of_all_runs_are_there():
    mentioned = {list(row.values())[0] for file, row, _ in NUMBERS if file == "results.md"}
    runs = {path.name for path in RUNS.iterdir() if path.is_dir()}
    assert {name for name in mentioned if not name.startswith("median of ")} == {*runs, *TRIALS}


def test_the_numbers_of_the_readmes_results_stand_in_results_md():
    """Also as a fraction: 93.8 % as 0.938."""
    results = read(MISC / "results.md")
    known, rows = set(re.findall(r"\d[\d,.]*\d", results)), [row for row in tables(README) if "here" in row]
    assert len(rows) >= 8
    for row in rows:
        for number in re.findall(r"\d[\d,.]*\d", f"{row['paper, or best public code']} {row['here']}"):
            fraction = f"{float(number.replace(',', '')) / 100:.3f}"
            assert known & {number, fraction}, f"{number} in {row['experiment']}"
        assert row["time"] in results, f"{row['time']} in {row['experiment']}"
