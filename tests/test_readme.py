"""README.md and the texts in misc/: commands parse, links lead somewhere, and numbers are those of misc/runs."""

import csv
import importlib
import json
import math
import re
import shlex

import main
from helpers import ROOT

RUNS = ROOT / "misc" / "runs"
TEXTS = {path: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "misc").glob("*.md"))]}
PROSE = {path: re.sub(r"```.*?```", "", text, flags=re.DOTALL) for path, text in TEXTS.items()}


def tables(text):
    """Yield the rows of all tables of a text as dicts {heading: cell}, without code quotes around a cell."""
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        lines = [re.split(r"(?<!\\)\|", line.strip())[1:-1] for line in table.splitlines()]
        head, _, *rows = [[cell.strip().strip("`") for cell in line] for line in lines]
        yield from (dict(zip(head, row)) for row in rows)


# Commands.


def commands():
    """Return all commands in the texts that start one of this repository's programs."""
    blocks = [block for text in TEXTS.values() for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)]
    code = [line for block in blocks for line in block.splitlines()]
    code += [piece for text in PROSE.values() for piece in re.findall(r"`([^`\n]+)`", text)]
    parts = {part.strip() for line in code for part in line.split("&&")}
    others = r"python -m (venv|pytest|visdom\.server)"
    return [
        part for part in parts if re.match(r"(PROGRAM=|sh run_|python )", part) and not re.match(others, part)
    ]


def program_and_flags(command):
    """Return the module that a command starts and its flags, those of a script first."""
    words = shlex.split(command, comments=True)
    program = words.pop(0).removeprefix("PROGRAM=") if "=" in words[0] else "main.py"
    if words[0] == "sh":
        script = (ROOT / words[1]).read_text().replace("\\\n", " ")
        flags = re.search(r'"\$\{PROGRAM:-main\.py\}" (.*) "\$@"', script)[1]
        words = ["python", program, *shlex.split(flags), *words[2:]]
    if words[1] != "-m":
        return words[1].removesuffix(".py").replace("/", "."), words[2:]
    package = words[2] in ("evaluation", "prepare")
    return f"{words[2]}.__main__" if package else words[2], words[3:]


def test_every_command_in_the_texts_parses(capsys):
    refused = []
    for command in commands():
        name, flags = program_and_flags(command)
        program = importlib.import_module(name)
        try:
            if hasattr(program, "parse") and flags not in ([], ["--help"]):  # without flags it is only named
                program.parse(flags)
        except SystemExit:
            refused.append((command, capsys.readouterr().err))
    assert refused == [] and len(commands()) > 20


def test_the_papers_settings_are_one_command_each():
    burgess = next(each for each in commands() if "--objective B " in each and "--C_stop_iter 1e5" in each)
    both = dict(dataset="dsprites", z_dim=10, batch_size=64)
    B = dict(objective="B", model="B", gamma=1000, C_max=25, C_stop_iter=10**5, delta=0)
    B |= dict(optimizer="adam", lr=5e-4, beta1=0.9, beta2=0.999, max_iter=10**6)
    H = dict(objective="H", model="FC", beta=4, optimizer="adagrad", lr=1e-2, viz_name="dsprites_H")
    for command, settings in ((burgess, B | both), ("sh run_dsprites_H.sh", H | both)):
        flags = vars(main.parse(program_and_flags(command)[1]))
        assert flags == flags | settings


# Links.


def anchors(path):
    """Return the anchors that GitHub gives to the headings of a text."""
    headings = re.findall(r"^#+ (.*)$", PROSE[path], flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_link_leads_to_a_file_and_a_heading_that_are_there():
    broken = []
    for path, text in TEXTS.items():
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            file, _, heading = link.partition("#")
            target = (path.parent / file).resolve() if file else path
            if not link.startswith("http"):
                found = target.exists() and (not heading or heading in anchors(target))
                broken += [] if found else [(path.name, link)]
        for name in re.findall(
            r"`((?:misc|tests|viz|prepare|evaluation)/[\w./]+|\w+\.py|run_\w+\.sh)`", text
        ):
            broken += [] if (ROOT / name).exists() else [(path.name, name)]
    assert broken == []


# Numbers.


def run_cells(name, iteration=None):
    """Return what a table may say of a run at an iteration, {column: text}; by default where it was scored, or at its end."""
    path = RUNS / name / "metrics.json"
    scores = json.loads(path.read_text()) if path.exists() else {"settings": {}}
    scored = scores["settings"].get("iter", math.inf)
    with open(RUNS / name / "log.csv") as file:
        row = [row for row in csv.DictReader(file) if int(row["iter"]) <= (iteration or scored)][-1]
    kld = sorted((float(value) for column, value in row.items() if column.startswith("kld_")), reverse=True)
    commit = json.loads((RUNS / name / "args.json").read_text())["commit"]
    cells = {
        "reconstruction": f"{float(row['recon_loss']):.1f}",
        "KL": f"{float(row['total_kld']):.1f}",
        "three highest KL": ", ".join(f"{value:.2f}" for value in kld[:3]),
        "over 0.5 nats": str(sum(value > 0.5 for value in kld)),
        "commit": commit[:7] + "+" * commit.endswith("+changes"),
    }
    if path.exists() and iteration in (None, scored):
        cells |= {key: f"{value:.3f}" for key, value in scores.items() if isinstance(value, float)}
        cells |= {"active_latents": str(scores["active_latents"]), "level": scores["settings"]["level"]}
    return cells


def cells_of(name, iteration):
    """Return run_cells, or the median of each number in them for "median of PATTERN"."""
    runs = [run_cells(path.name, iteration) for path in RUNS.glob(name.removeprefix("median of "))]
    if len(runs) == 1:
        return runs[0]
    numbers = [key for key in runs[0] if all(re.fullmatch(r"[\d.]+", run[key]) for run in runs)]
    return {key: sorted((run[key] for run in runs), key=float)[len(runs) // 2] for key in numbers}


def test_the_tables_of_runs_say_what_their_files_say():
    columns = {key for path in RUNS.glob("*/") for key in run_cells(path.name)}
    rows = [row for text in TEXTS.values() for row in tables(text) if "run" in row and row.get("iterations")]
    wrong = []
    for row in rows:
        cells = cells_of(row["run"], int(row["iterations"].replace(",", "")))
        for column in columns & row.keys():
            said = row[column].split(" (")[0] if column == "commit" else row[column]
            if said != cells.get(column, ""):
                wrong.append((row["run"], column, row[column], cells.get(column)))
    assert wrong == [] and len(rows) > 30


def test_the_numbers_of_the_readmes_results_are_those_of_their_runs():
    """The run is the --viz_name of the row's command, or that name with _seed1, _seed2 .. added."""
    wrong, rows = [], [row for row in tables(TEXTS[ROOT / "README.md"]) if "here" in row]
    for row in rows:
        flags = program_and_flags(row["command"])[1]
        name = flags[len(flags) - flags[::-1].index("--viz_name")]  # the last one given
        runs = [run_cells(path.name) for pattern in (name, f"{name}_seed?") for path in RUNS.glob(pattern)]
        known = {
            float(number) for run in runs for cell in run.values() for number in re.findall(r"[\d.]*\d", cell)
        }
        for number, unit in re.findall(r"(\d+\.\d+|\d+(?= latents))( %)?", row["here"]):
            value = round(float(number) / 100, 5) if unit else float(number)
            wrong += [] if value in known else [(name, number)]
    assert wrong == [] and rows
