"""Size and content of the chart."""

from __future__ import annotations

import builtins
import struct
import sys
from collections.abc import Callable
from typing import Any

import pytest

from rolesafe.report.view import ModelLine, View

pytest.importorskip("matplotlib")

from rolesafe.report.chart import DARK, draw_chart


def size_of(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", png[16:24])  # type: ignore[return-value]


def test_draw_chart_is_a_png(make_view: Callable[..., View]) -> None:
    png = draw_chart(make_view())
    width, height = size_of(png)
    assert 1000 <= width <= 2000
    assert 900 <= height <= 2400
    assert 20_000 < len(png) < 600_000
    assert draw_chart(make_view(), theme=DARK) != png


def test_draw_chart_is_deterministic(make_view: Callable[..., View]) -> None:
    assert draw_chart(make_view(), dpi=50) == draw_chart(make_view(), dpi=50)


def test_draw_chart_marks_a_partial_run(make_view: Callable[..., View]) -> None:
    assert draw_chart(make_view(), dpi=50) != draw_chart(make_view(partial="stopped"), dpi=50)


def test_draw_chart_empty_run_is_drawn(make_view: Callable[..., View]) -> None:
    size_of(draw_chart(make_view(curves=(), rows=()), dpi=50))


def test_draw_chart_names_are_not_parsed(make_view: Callable[..., View]) -> None:
    """Neither as mathematics nor as an instruction to leave the legend out (a leading underscore)."""
    view = make_view()
    names = {"plain": r"$\frac{", "role-aware": "_hidden\x1b" + "x" * 300}
    curves = tuple(type(curve)(model=names[curve.model], points=curve.points) for curve in view.curves)
    models = tuple(ModelLine(name=names[model.name], about="") for model in view.models)
    size_of(draw_chart(make_view(curves=curves, models=models), dpi=50))


def test_draw_chart_does_not_import_pyplot(make_view: Callable[..., View], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    draw_chart(make_view(), dpi=50)
    assert "matplotlib.pyplot" not in sys.modules


def test_draw_chart_without_matplotlib_names_the_extra(
    make_view: Callable[..., View], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without_matplotlib(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    with pytest.raises(ImportError, match=r'pip install "rolesafe\[demo\]"'):
        draw_chart(make_view())
