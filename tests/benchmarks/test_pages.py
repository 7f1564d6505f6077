"""Generated parts of the documentation pages."""

from __future__ import annotations

import pytest

from benchmarks import demo_blocks, pages


def test_generated_parts_are_up_to_date() -> None:
    found = list(pages.pages())
    assert {path.name for path in found} >= {"override-resistance.md", "demo.md", "steering.md"}
    stale = [path.name for path in found if pages.filled(text := path.read_text(encoding="utf-8")) != text]
    assert not stale, f"{stale}: run python -m benchmarks.pages"


def test_filled_replaces_a_part() -> None:
    text = "before\n<!-- steering -->\nold\n<!-- end -->\nafter"
    new = pages.filled(text)
    assert new.startswith("before\n<!-- steering -->\n| setting |")
    assert new.endswith("\n<!-- end -->\nafter")
    assert pages.filled(new) == new


@pytest.mark.parametrize("name", ["tables:deep", "nothing"])
def test_filled_unknown_part_raises(name: str) -> None:
    with pytest.raises(ValueError, match=f"`text`: expected parts out of .*, got '{name}'"):
        pages.filled(f"<!-- {name} -->\nold\n<!-- end -->")


@pytest.mark.parametrize(("check", "status"), [(True, 1), (False, 0)])
def test_main_stale_page_is_written_or_refused(tmp_path, monkeypatch, capsys, check: bool, status: int) -> None:
    page = tmp_path / "README.md"
    page.write_text("<!-- steering -->\nold\n<!-- end -->\n")
    monkeypatch.setattr(pages, "pages", lambda: iter([page]))
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["pages", *(["--check"] if check else [])])
    assert pages.main() == status
    assert ("old" in page.read_text()) is check
    assert ("out of date: README.md" in capsys.readouterr().err) is check


def test_demo_bad_arguments_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="`selection`: expected 'all' or one of"):
        demo_blocks.demo("demo", "most")
    monkeypatch.setitem(demo_blocks.ROWS, "odd", ("no such row",))
    with pytest.raises(ValueError, match="`record`: expected a row 'no such row' in 'demo'"):
        demo_blocks.demo("demo", "odd")
