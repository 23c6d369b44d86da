"""The table in experiments/prompting/README.md is the one that its CSV gives."""

from experiments.prompting.run import HERE, SETTINGS, read_csv, summarize, table


def test_readme_shows_the_measured_table():
    rows = read_csv()
    assert set(summarize(rows)) == {setting.name for setting in SETTINGS}
    assert table(rows) in (HERE / "README.md").read_text(encoding="utf-8")
