"""Links of the pages to files of the repository, for the site.

On a code host `[results](../benchmarks/results)` opens the file; on the site there is nothing outside `docs/`. Such a
link becomes its text with the path behind it. A path that does not exist stops the build, as every broken link does.
"""

import re
from pathlib import Path

from mkdocs.exceptions import PluginError

ROOT = Path(__file__).parents[1]


def on_page_markdown(markdown: str, **page: object) -> str:
    """Called by MkDocs for each page, before it is turned into HTML."""

    def named(match: re.Match[str]) -> str:
        text, path = match[1], match[2]
        if not (ROOT / path).exists():
            raise PluginError(f"{page['page']}: links to ../{path}, which does not exist")
        return text if Path(path).name in text else f"{text} (`{path}`)"

    return re.sub(r"\[([^\]]+)\]\(\.\./([^)#]+)(?:#[^)]*)?\)", named, markdown)
