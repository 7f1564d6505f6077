"""Audit of a court: tries per article, the verdict, the command."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rolesafe.attacks import Rate
from rolesafe.audit import AuditReport, audit
from rolesafe.audit.articles import court_of, court_sweep, declare
from rolesafe.audit.command import run_audit
from rolesafe.audit.verdicts import verdicts
from rolesafe.court import Articles, ForbiddenPhrases, Length, NoCopy, save_articles
from rolesafe.training.tiny import text_tokenizer
from tests.attacks.stubs import make_tokenizer
from tests.audit.scripted import examples, quick, scripted_model

ASKED = examples(4)
ARTICLES = Articles(
    (
        ForbiddenPhrases(name="phrase", phrases=(ASKED[0].request,)),
        Length(name="short", max_tokens=10),
        NoCopy(name="copy", roles=("tool",), longest=2),
    ),
    "1",
)


@pytest.fixture(scope="module")
def sweep():
    tokenizer = text_tokenizer([example.request for example in ASKED], 300)
    court = court_of(ARTICLES, tokenizer, ASKED, None)
    return court_sweep(court, quick(court_tries=32, forging=50), None, lambda done, total: None)


def test_sweep_tries_every_article(sweep):
    assert [one.article for one in sweep.articles] == ["phrase", "short", "copy"]
    assert all(one.violations == 0 and one.tries >= 32 for one in sweep.articles)
    assert sweep.declared == Rate(0, 50)


def test_declared_articles_that_change_are_counted(monkeypatch):
    def gullible(messages, config=None):
        texts = "".join(m["content"] for m in messages[1:])
        return ("repealed" if '"articles": []' in texts else "kept"), list(messages)

    monkeypatch.setattr("rolesafe.audit.articles.declared_articles", gullible)
    assert declare(20, 0).k > 0


def report_with(sweep):
    model = scripted_model(ASKED, lambda example, said: False)
    return replace(audit(model, make_tokenizer(), ASKED, settings=quick()), court=sweep)


def test_verdict_passes_fails_and_stays_open(sweep):
    vetoed = replace(sweep, articles=tuple(replace(one, vetoes=5) for one in sweep.articles))
    base = report_with(vetoed)
    found = verdicts(base)[-1]
    assert (found.claim, found.passed) == ("court", True)
    assert len(found.numbers) == 4
    broken = replace(vetoed, articles=(replace(vetoed.articles[0], violations=1), *vetoed.articles[1:]))
    assert verdicts(replace(base, court=broken))[-1].passed is False
    assert verdicts(replace(base, court=replace(vetoed, declared=Rate(1, 50))))[-1].passed is False
    idle = replace(vetoed, articles=(replace(vetoed.articles[0], vetoes=0), *vetoed.articles[1:]))
    found = verdicts(replace(base, court=idle))[-1]
    assert found.passed is None
    assert "no try came as far as a veto of phrase" in found.text
    assert [v.claim for v in verdicts(replace(base, court=None))][-1] == "role forging"
    assert AuditReport.from_json(base.to_json()) == base


def test_audit_with_articles_has_the_stage(tmp_path):
    stages = []
    model = scripted_model(ASKED, lambda example, said: False)
    report = audit(
        model, make_tokenizer(), ASKED, settings=quick(court_tries=4),
        articles=Articles((Length(name="short", max_tokens=3),), ""), progress=lambda stage, *_: stages.append(stage),
    )  # fmt: skip
    assert "court" in stages
    assert report.court.articles[0].tries >= 4
    assert report.verdicts[-1].passed is True


def test_command_names_a_bad_file_before_the_model(tmp_path):
    with pytest.raises(ValueError, match=r"`--court`: expected a file of articles, got .*court\.yaml"):
        run_audit(str(tmp_path / "nothing"), settings={}, court=tmp_path / "court.yaml")
    save_articles(ARTICLES, tmp_path / "court.json")
    with pytest.raises(ValueError, match="`model`"):
        run_audit(str(tmp_path / "nothing"), settings={}, court=tmp_path / "court.json")
