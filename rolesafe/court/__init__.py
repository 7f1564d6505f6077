"""The court: articles about a reply that a program decides, with a veto at every token."""

from rolesafe.court.any_depth import AnyDepthReply, any_depth_replies
from rolesafe.court.articles import Article, Articles
from rolesafe.court.court import Court
from rolesafe.court.declare import declared_articles
from rolesafe.court.language import AllowedLanguage
from rolesafe.court.normalise import Normalisation
from rolesafe.court.phrases import ForbiddenPhrases, Secrets
from rolesafe.court.processor import CourtProcessor, project, veto_mask
from rolesafe.court.provenance import NoCopy, ToolCalls
from rolesafe.court.replies import CourtReply, generate
from rolesafe.court.seat import CourtVeto, sitting
from rolesafe.court.shape import Closing, Length, Opening, Repetition
from rolesafe.court.storing import load_articles, save_articles
from rolesafe.court.tree import Veto
from rolesafe.court.tries import ArticleTries, try_to_break
from rolesafe.court.verify import (
    ClassifierReader,
    ModelReader,
    ProgramReader,
    Proposal,
    Release,
    Verdict,
    generate_verified,
    isolated,
    judge,
)
from rolesafe.court.vocabulary import Vocabulary

ARTICLES: dict[str, type[Article]] = {
    kind.kind: kind
    for kind in (
        ForbiddenPhrases,
        Secrets,
        AllowedLanguage,
        Opening,
        Closing,
        Length,
        Repetition,
        NoCopy,
        ToolCalls,
    )
}
"""The class of each article, by its kind."""

__all__ = [  # noqa: RUF022  (in the order of use)
    "ARTICLES",
    "Article",
    "Articles",
    "ForbiddenPhrases",
    "Secrets",
    "AllowedLanguage",
    "Opening",
    "Closing",
    "Length",
    "Repetition",
    "NoCopy",
    "ToolCalls",
    "Normalisation",
    "Court",
    "Veto",
    "Vocabulary",
    "load_articles",
    "save_articles",
    "declared_articles",
    "generate",
    "CourtReply",
    "CourtProcessor",
    "project",
    "veto_mask",
    "sitting",
    "CourtVeto",
    "try_to_break",
    "ArticleTries",
    "generate_verified",
    "judge",
    "isolated",
    "Verdict",
    "ProgramReader",
    "ClassifierReader",
    "ModelReader",
    "Proposal",
    "Release",
    "any_depth_replies",
    "AnyDepthReply",
]
