"""README's tables are what the commands recorded."""

from bench.report.readme import ROOT, with_records


def test_tables_are_the_recorded_ones() -> None:
    text = (ROOT / "README.md").read_text()
    assert with_records(text) == text


def test_a_typed_number_is_seen() -> None:
    text = (ROOT / "README.md").read_text()
    typed = text.replace("times faster (resnet50", "times faster than (resnet50")
    assert typed != text
    assert with_records(typed) == text
