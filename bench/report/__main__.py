"""``python -m bench.report``: tables, pictures and CSV from the records under bench/results, and README's tables."""

from bench.harness.records import JSON_NAME
from bench.report.pages import RESULTS, write
from bench.report.readme import fill

if __name__ == "__main__":
    for record in sorted(RESULTS.glob(f"*/{JSON_NAME}")):
        write(record.parent)
    fill()
