"""What our TFDS builders share."""

from __future__ import annotations

import tensorflow_datasets as tfds
from etils import epath


class OfflineBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A builder that downloads nothing, and so is prepared wherever the package is installed."""

    # TFDS 4.9 finds this path by way of `importlib_resources`, a package that it does not ask for at installation.
    code_path = epath.Path(__file__)
