"""Makes the folders of domains that docs/adaptation_classical.md is about, from the standard data sets:

    PYTHONPATH=. python configs/adaptation/domains.py OUT

OUT/office holds links to the SURF features of Office-Caltech10 (800 bins, 10 classes); OUT/amazon holds bag-of-words
features of the Amazon reviews (2,000 a domain, positive or negative): counts of the 400 words that stand in most of the
reviews of all domains together. No label has a say in which words these are.
"""

from __future__ import annotations

import gzip
import html
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer

from transfer_jax import command_line
from transfer_jax.core.errors import UserError
from transfer_jax.data.sources.locations import standard_folder

OFFICE = {"caltech": "Caltech10", "amazon": "amazon", "webcam": "webcam", "dslr": "dslr"}
REVIEWS = ("books", "dvd", "electronics", "kitchen")
WORDS = 400


def office(out: Path) -> None:
    """Links with short names."""
    folder = standard_folder("office_caltech10_surf", None)
    out.mkdir(parents=True, exist_ok=True)
    for name, original in OFFICE.items():
        link = out / f"{name}.mat"
        link.unlink(missing_ok=True)
        link.symlink_to((folder / f"{original}_SURF_L10.mat").resolve())


def amazon(out: Path) -> None:
    """One .npz a domain: x uint16 [2000, 400], y 'negative' or 'positive', words."""
    folder = standard_folder("amazon_text", None)
    texts, labels, domains = [], [], []
    for domain in REVIEWS:
        for label in ("negative", "positive"):
            found = reviews(folder / f"{domain}_{label}.parsed.gz")
            texts += found
            labels += [label] * len(found)
            domains += [domain] * len(found)
    labels, domains = np.array(labels), np.array(domains)
    vectorizer = CountVectorizer(min_df=20)
    counts = vectorizer.fit_transform(texts)
    chosen = np.sort(np.argsort(-np.asarray((counts > 0).sum(0)).ravel(), kind="stable")[:WORDS])
    words = vectorizer.get_feature_names_out()[chosen].astype(str)
    x = counts[:, chosen].toarray().astype(np.uint16)
    out.mkdir(parents=True, exist_ok=True)
    for domain in REVIEWS:
        rows = domains == domain
        np.savez_compressed(out / f"{domain}.npz", x=x[rows], y=labels[rows], words=words)


def reviews(path: Path) -> list[str]:
    """The texts of a file of <review> elements."""
    with gzip.open(path, "rt", encoding="utf-8", errors="replace") as file:
        found = re.findall(r"<review>(.*?)</review>", file.read(), re.DOTALL)
    return [html.unescape(text).strip() for text in found]


def main(arguments: Sequence[str]) -> int:
    """Both folders; a UserError where the data sets are absent."""
    if len(arguments) != 1:
        raise UserError("give one folder: PYTHONPATH=. python configs/adaptation/domains.py OUT")
    out = Path(arguments[0])
    office(out / "office")
    amazon(out / "amazon")
    print(f"written: {out / 'office'} and {out / 'amazon'}")
    return 0


if __name__ == "__main__":
    command_line.run(main)
