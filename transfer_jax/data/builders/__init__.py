"""TFDS builders whose data come with scikit-learn. TFDS registers each class under its name in snake case."""

from transfer_jax.data.builders.digit_scenes import DigitScenes
from transfer_jax.data.builders.digits import Digits, DigitsPhoto

BUILDERS = {"digits": Digits, "digits_photo": DigitsPhoto, "digit_scenes": DigitScenes}
