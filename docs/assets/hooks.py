"""Hooks of MkDocs: formulas become MathML, and what pages link to outside of docs/ becomes part of the site.

Browsers display MathML without scripts or fonts, so that the site needs no other server. Pages link to files of the repository
by relative paths, which work in a checkout as well; here each such file becomes a page below ``repository/``.
"""

import html
import inspect
import logging
import os
import re
from pathlib import Path, PurePosixPath

import click
import jieba
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from fflm.cli import main

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?(\))")
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
SPACE = '<mspace width="0.167em"/>'
FUNCTION = r"<mi>(?:exp|log|max)</mi>"
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
SHORT_CODE = re.compile(r"<code>([^<\n]{1,30})</code>")
LONG_CODE = re.compile(r"<code>[^<\n]{31,}</code>")
OPTION = re.compile(r"(?<![\w-])-[\w-]+")
EXAMPLE = re.compile(r"^\x08\n(.*)\n((?:  .*(?:\n|\Z))+)", re.MULTILINE)
LANGUAGES = {".py": "python", ".toml": "toml", ".json": "json", ".yml": "yaml", ".cff": "yaml"}
UNSEARCHED = "---\nsearch:\n  exclude: true\n---\n\n"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Prepare the commands for mkdocs-click: their names, which click takes from their functions, and their examples."""
    jieba.setLogLevel(logging.WARNING)  # it reports on standard error that it reads its dictionary
    _prepare(main)
    return config


def _prepare(command: click.Command) -> None:
    text = re.sub(r"</?\w+>", r"`\g<0>`", inspect.cleandoc(command.help or ""))  # Markdown would read <unk> as HTML
    command.help = EXAMPLE.sub(_example, text)
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            own = command.get_command(context, name)
            assert own is not None
            own.name = name
            _prepare(own)


def _example(found: re.Match[str]) -> str:
    return f"{found[1]}\n\n```text\n{inspect.cleandoc(found[2])}\n```\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files of the repository that pages link to, directly or by way of another page."""
    waiting = [(f"docs/{file.src_uri}", Path(file.abs_src_path).read_text("utf-8")) for file in files.documentation_pages()]
    seen = {place for place, _ in waiting}
    while waiting:
        place, text = waiting.pop()
        for _, target, _, _ in LINK.findall(FENCED.sub("", text)):
            path = _resolve(place, target)
            if path in seen or path.startswith(("docs/", "../")) or not (ROOT / path).exists():
                continue
            seen.add(path)
            if path.endswith(".png"):
                files.append(File.generated(config, f"repository/{path}", content=(ROOT / path).read_bytes()))
                continue
            content = _page(ROOT / path, path)
            files.append(File.generated(config, _uri(path), content=UNSEARCHED + content))
            if path.endswith(".md"):
                waiting.append((path, content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links that leave docs/ at the pages that `on_files` has made."""
    own = page.file.src_uri
    inside = own.startswith("repository/")
    place = _original(own) if inside else f"docs/{own}"

    def point(link: re.Match[str]) -> str:
        path = _resolve(place, link[2])
        target = path.removeprefix("docs/") if path.startswith("docs/") else _uri(path)
        if (not inside and path.startswith("docs/")) or files.get_file_from_path(target) is None:
            return link[0]
        return f"{link[1]}{os.path.relpath(target, PurePosixPath(own).parent)}{link[3] or ''}{link[4]}"

    pieces = FENCED.split(markdown)
    fences = [*FENCED.findall(markdown), ""]
    return "".join(LINK.sub(point, piece) + fence for piece, fence in zip(pieces, fences, strict=True))


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Finish a page's HTML.

    LaTeX, which arithmatex has marked, becomes MathML. Short pieces of code and the options in longer ones get a class, so that
    they are not broken after hyphens. Pages in Chinese are marked, so that browsers choose a Chinese font.
    """

    def formula(found: re.Match[str]) -> str:
        display = "block" if found[1] == "div" else "inline"
        mathml = convert(html.unescape(found[2]), display=display)
        return re.sub(f"(?<=</mi>)(?={FUNCTION})|(?<=exp</mi>|log</mi>|max</mi>)(?!<mo[ >])", SPACE, mathml)

    def options(found: re.Match[str]) -> str:
        return OPTION.sub(r'<span class="short">\g<0></span>', found[0])

    content = LONG_CODE.sub(options, FORMULA.sub(formula, content))
    content = SHORT_CODE.sub(r'<code class="short">\1</code>', content)
    return f'<div lang="zh-Hans">{content}</div>' if page.file.src_uri.endswith(".zh.md") else content


def _resolve(place: str, target: str) -> str:
    """Return a link's target as a path from the repository's root."""
    return os.path.normpath(PurePosixPath(place).parent / target).replace(os.sep, "/")


def _uri(path: str) -> str:
    """Return where a file of the repository is in the site's sources."""
    if path.endswith((".md", ".png")):
        return f"repository/{path}"
    return f"repository/{path}.md"


def _original(uri: str) -> str:
    path = uri.removeprefix("repository/")
    return path if (ROOT / path).is_file() else path.removesuffix(".md")


def _page(path: Path, name: str) -> str:
    """Return a page that shows a file, or lists a folder."""
    if path.is_dir():
        lines = [f"- `{each.name}`" for each in sorted(path.iterdir()) if not each.name.startswith((".", "__"))]
        return "\n".join([f"# {name}", "", *lines, ""])
    text = path.read_text("utf-8")
    if name.endswith(".md"):
        return text
    return f"# {name}\n\n```{LANGUAGES.get(path.suffix, 'text')}\n{text}\n```\n"
