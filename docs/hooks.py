"""Turn Sphinx roles of docstrings, such as ``:func:`rolesafe.encode```, into links of the site."""

import re

_ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):<code>~?([\w.]+)</code>")


def on_page_content(html: str, **_: object) -> str:
    """Replace every role by its name, linked where the site documents that name."""
    return _ROLE.sub(r'<autoref optional identifier="\1"><code>\1</code></autoref>', html)
