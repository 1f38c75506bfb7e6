"""The page, the tables and the pictures of one machine's records."""

import re
from pathlib import Path

from bench.harness.records import CSV_NAME, JSON_NAME, BenchmarkRun, load, write_csv
from bench.report.headlines import gan_sentences, speed_table, training_sentences
from bench.report.plots import HERO, PICTURES
from bench.report.tables import all_tables, list_left_out, our_records, short_tables

RESULTS = Path(__file__).parents[1] / "results"
LEGEND = """Medians; in brackets, quartiles of the turns. All contenders of a row took turns in one process. GB/s are by
the byte model (`bench/harness/byte_model.py`): 16K + 16 bytes per float32 parameter for a step of MTAdam with K terms,
4K + 24 for one of CombinedAdam, and 4K more with a rule that looks at the gradients. "x copy bandwidth" divides them by
the GB/s of a copy, which moves 8; a processor that reads what it overwrites really moves 12. "K x Adam" is
`torch.optim.Adam(fused=True)` on the gradients of each term in turn, "one Adam" a single such step, on their sum.
A step of MTAdam reads 12K + 8 of its bytes if no gradient is still in a cache when it is read again, and 8K + 8 from
memory if all are; so "x what a sum reads" can pass 1.
"Triton" is the same step on the Triton kernels. TorchJD has its Jacobians ready where the step alone is timed, and
combines them as it does by default, or "layerwise" with `optimize_gramian_computation=True`. `torch.compile` is of the
reference."""


def describe_machine(run: BenchmarkRun) -> str:
    """Describe in a line what a run was measured on."""
    facts = run.machine
    versions = [f"{name} {facts[name]}" for name in ("driver", "python", "torch", "triton") if facts[name]]
    machine = [facts["gpu"], facts["cpu_model"], f"{facts['threads']} threads"]
    line = ", ".join(filter(None, [*machine, *versions, f"commit {run.commit}", run.time[:10]])) + "."
    return " ".join([line, *(f"{group}: {when}." for group, when in run.added.items()), *describe_load(run)])


def describe_load(run: BenchmarkRun) -> list[str]:
    """Say in a sentence how busy the machine was with other work. Nothing where that was not recorded throughout."""
    known = [record.other_cpus for record in run.records if record.other_cpus is not None]
    if not known or run.added:
        return []
    return [f"While a case was measured, others kept at most {max(known):.2f} CPUs busy."]


def pictures_of(run: BenchmarkRun) -> dict:
    """Return the pictures that the run has records for."""
    steps = {record.workload for record in our_records(run.records, "step")}
    return {name: picture for name, picture in PICTURES.items() if steps and (HERO in steps or name != "hero.png")}


def section_of(title: str, table: str) -> str:
    """Return a table under its title, between the marks by which pages under docs include it."""
    name = re.sub(r"\W+", "-", title.split(",")[0].lower())
    return f"## {title}\n\n<!-- --8<-- [start:{name}] -->\n\n{table}\n\n<!-- --8<-- [end:{name}] -->"


def page(run: BenchmarkRun) -> str:
    """Return the README of a machine's folder."""
    tables = [section_of(title, table) for title, table in all_tables(run.records).items()]
    pictures = [f"![{title}]({name})" for name, (title, _) in pictures_of(run).items()]
    left_out = f"## Left out\n\n{list_left_out(run.left_out) or 'Nothing.'}"
    return "\n\n".join([f"# Records\n\n{describe_machine(run)}", LEGEND, *pictures, *tables, left_out]) + "\n"


def write(folder: Path) -> None:
    """Write tables, page, CSV and pictures into ``folder``, from its JSON."""
    run = load(folder / JSON_NAME)
    write_csv(run, folder / CSV_NAME)
    (folder / "README.md").write_text(page(run))
    (folder / "table.md").write_text(f"{short_tables(run.records)}\n\n{describe_machine(run)}\n")
    if speed := speed_table(run.records):
        text = "\n\n".join(filter(None, [speed, training_sentences(run.records), describe_machine(run)]))
        (folder / "speed.md").write_text(f"{text}\n")
    if sentences := gan_sentences(run.records):
        (folder / "gan.md").write_text(f"{sentences}\n")
    for name, (_, draw) in pictures_of(run).items():
        draw(run.records, folder / name)
