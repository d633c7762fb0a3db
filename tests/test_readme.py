"""The examples of README and docs/parts.md run, and the links of all pages lead somewhere."""

import re
from pathlib import Path

import pytest

import rml_jax

ROOT = Path(rml_jax.__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README, PARTS = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/parts.md"))


def examples(text):
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def run(code):
    """Runs an example, returns the names that it leaves behind."""
    names = {}
    exec(compile(code, "example", "exec"), names)
    return names


def test_parts_are_used_in_a_few_lines_that_give_what_they_say():
    for code in examples(PARTS):
        lines = [line for line in code.splitlines() if line and not line.startswith(("import", "from"))]
        assert len(lines) <= 5
    par, crf, transformer, losses = map(run, examples(PARTS))
    assert par["refined"].shape == (1, 96, 96, 2)
    assert crf["mask"].shape == (96, 96)
    assert [stage.shape[1] for stage in transformer["features"]] == [32, 16, 16, 16]
    assert transformer["attention"].shape == (1, 8, 256, 256)
    assert 0 <= losses["information"] < 0.5
    # All pairs are positive, R_a = 0.5, and the negative half is empty.
    assert losses["loss"] == pytest.approx(0.25)


def test_readme_refines_soft_masks():
    names = run(examples(README.split("\n## Use the parts\n")[1])[0])
    assert names["refined"].shape == (1, 96, 96, 2)
    # PAR's weights sum to 1.01: ten rounds let the sum of the probabilities grow by that much.
    assert float(names["refined"].sum(axis=-1).mean()) == pytest.approx(1.01**10, rel=1e-4)
    assert set(names["mask"].ravel().tolist()) <= {0, 1}


def test_readme_is_short():
    assert len(README.split()) <= 900


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^) ]+)\)", text):
        if link.startswith(("http:", "https:")):
            continue
        name, _, heading = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if heading:
            assert heading in headings(target.read_text(encoding="utf-8")), link


def headings(text):
    """The anchors of a Markdown page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_docs_index_names_every_page():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert [
        page.name for page in PAGES[1:] if page.name != "README.md" and f"]({page.name})" not in index
    ] == []
