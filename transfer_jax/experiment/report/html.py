"""A document as one HTML file that needs nothing else: style inside, images as data, no request to anywhere."""

from __future__ import annotations

import base64
import html

from transfer_jax.experiment.report.document import Block, Document, Gallery, Picture, Section
from transfer_jax.experiment.report.tables import Table, to_html

_MIME = {"svg": "image/svg+xml", "png": "image/png"}

_STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--muted:#57606a;--line:#d8dee4;--page:#fff;--best:#e3f1ea}
@media (prefers-color-scheme:dark){:root{--ink:#e6edf3;--muted:#9aa4af;--line:#343b44;--page:#12161b;
--best:#1d3a2d}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,"DejaVu Sans",sans-serif}
main{max-width:68rem;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.7rem;line-height:1.2;margin:.3rem 0 1rem}
h2{font-size:1.25rem;margin:2.6rem 0 .8rem;padding-top:1rem;border-top:1px solid var(--line)}
h3{font-size:1rem;margin:1.4rem 0 .4rem}
p{margin:.5rem 0;max-width:46rem}
.note,figcaption,ul.lead{color:var(--muted);font-size:.875rem}
ul.lead{padding-left:1.1rem;margin:.5rem 0}
nav{font-size:.875rem;margin:1rem 0}nav a{margin-right:.9rem;display:inline-block}
a{color:inherit}
.scroll{overflow-x:auto;margin:.4rem 0}
table{border-collapse:collapse;font-size:.875rem;font-variant-numeric:tabular-nums}
th,td{padding:.32rem .6rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
th{color:var(--muted);font-weight:600;vertical-align:bottom;border-bottom:2px solid var(--line)}
.label{text-align:left}td.label{white-space:normal;min-width:9rem}
td.label:first-child,th.label:first-child{position:sticky;left:0;background:var(--page)}
td small{display:block;color:var(--muted);font-weight:400;font-size:.78rem}
td[data-best]{font-weight:700;background:var(--best)}
details{margin:.6rem 0;border:1px solid var(--line);border-radius:6px;padding:.1rem .8rem}
summary{cursor:pointer;padding:.45rem 0;font-weight:600;font-size:.9rem}
figure{margin:1.2rem 0}figure img{display:block;width:100%;max-width:44rem;height:auto}
figure.wide{overflow-x:auto}figure.wide img{min-width:30rem}
figcaption{position:sticky;left:0;margin-top:.3rem;max-width:44rem}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,18rem),1fr));gap:1rem 1.4rem;
margin:.8rem 0}
.gallery figure{margin:0}
.tiles{display:flex;flex-wrap:wrap;gap:.8rem;margin:.8rem 0}
.tiles figure{margin:0}.tiles img{width:auto;height:7rem;max-width:100%;image-rendering:pixelated;border-radius:4px}
.tiles figcaption{max-width:8rem;font-size:.8rem}
@media print{details:not([open])>*{display:block}nav{display:none}}
"""


def render(document: Document) -> str:
    """The whole page as text."""
    title = html.escape(document.title)
    links = "".join(f'<a href="#s{i}">{html.escape(section.title)}</a>' for i, section in enumerate(document.sections))
    lead = "".join(f"<li>{html.escape(text)}</li>" for text in document.lead)
    body = "\n".join(_section(i, section) for i, section in enumerate(document.sections))
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none';img-src data:;style-src 'unsafe-inline'">
<title>{title}</title><style>{_STYLE}</style></head>
<body><main>
<h1>{title}</h1>
<nav>{links}</nav>
{body}
<h2>How to read the numbers</h2><ul class="lead">{lead}</ul>
</main></body></html>
"""


def _section(index: int, section: Section) -> str:
    blocks = "\n".join(_block(block) for block in section.blocks)
    return f'<section id="s{index}"><h2>{html.escape(section.title)}</h2>\n{blocks}</section>'


def _block(block: Block) -> str:
    if isinstance(block, Table):
        return to_html(block)
    if isinstance(block, Picture):
        return _picture(block)
    if isinstance(block, Gallery):
        kind = "tiles" if all(picture.kind == "png" for picture in block.pictures) else "gallery"
        return f'<div class="{kind}">' + "\n".join(map(_picture, block.pictures)) + "</div>"
    return f"<p>{html.escape(block)}</p>"


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.content).decode("ascii")
    text = html.escape(picture.caption or picture.name.replace("_", " "), quote=True)
    caption = f"<figcaption>{html.escape(picture.caption)}</figcaption>" if picture.caption else ""
    kind = '' if picture.small else ' class="wide"'
    return f'<figure{kind}><img alt="{text}" src="data:{_MIME[picture.kind]};base64,{data}">{caption}</figure>'
